/* What prot32's files tell each other. */
#pragma once
#include "common.h"
#include "io.h"

#define PAGE_SIZE 4096u
#define KERNEL_BASE 0xC0000000u

/* desc.c: selectors. */
#define KERNEL_CS 0x08
#define KERNEL_DS 0x10
#define USER_CS (0x18 | 3)
#define USER_DS (0x20 | 3)
#define TSS_SELECTOR 0x28
#define SMALL_SELECTOR 0x30       /* data, limit 0xFFF, base at small_segment */
#define EXPAND_DOWN_SELECTOR 0x38 /* data, offsets above 0xFFF only, base one page below small_segment */
#define ABSENT_SELECTOR 0x40      /* data, not present */
#define CALL_GATE (0x48 | 3)
#define ALLOWED_PORT 0x80 /* the one port that the TSS's bitmap opens to ring 3 */
extern u8 small_segment[PAGE_SIZE];
extern u32 gdt[][2];
void descriptors_init(void);

/* trap.S */
struct trap_frame {
    u32 es, ds;
    u32 edi, esi, ebp, esp_ignored, ebx, edx, ecx, eax; /* PUSHA */
    u32 vector, error;
    u32 eip, cs, eflags;
    u32 esp, ss; /* from ring 3 only */
};
#define EFLAGS_TF 0x100
#define EFLAGS_IF 0x200
#define SYSTEM_CALL_VECTOR 0x80
extern const u8 trap_stubs[];
void system_call_stub(void);
void call_gate_entry(void);
void enter_user(const struct trap_frame *frame);
_Noreturn void leave_user(void);

enum vector { DE = 0, DB = 1, BP = 3, OF = 4, BR = 5, UD = 6, NP = 11, SS = 12, GP = 13, PF = 14 };
#define NO_FAULT 0xFFFFFFFFu

/* paging.c: two-level page tables; `directory` is the kernel's view of one. */
#define PAGE_P 0x01
#define PAGE_W 0x02
#define PAGE_U 0x04
#define PAGE_A 0x20
#define PAGE_D 0x40
#define PAGE_PS 0x80
extern u32 kernel_directory[1024];
extern u8 kernel_end[];
static inline u32 physical(const void *kernel_address) { return (u32)kernel_address - KERNEL_BASE; }
static inline void invlpg(const void *at) { asm volatile("invlpg (%0)" : : "r"(at) : "memory"); }
static inline void load_cr3(const u32 *directory)
{
    asm volatile("mov %0, %%cr3" : : "r"(physical(directory)) : "memory");
}
void *page_allocate(void);
u32 *page_entry(u32 *directory, u32 linear); /* makes the page table if it is missing */
void page_map(u32 *directory, u32 linear, const void *page, u32 flags);
u32 *directory_create(void);

/* tasks.c: ring-3 tasks. The whole state of one that is not running is its trap frame. */
#define USER_STACK_TOP 0xBFFFF000u
#define DEMAND_START 0x800000u /* pages here come with the first touch */
#define DEMAND_END 0x900000u
struct task {
    struct trap_frame frame;
    u32 *directory;
    bool done;
    u32 status;             /* what it passed to SYS_EXIT */
    u32 vector, error, cr2; /* the exception that ended it, or NO_FAULT */
    u32 demand_pages, preempted;
};
struct task task_create(void (*entry)(void), u32 argument);
void tasks_run(struct task *tasks, int count);
extern volatile u32 ticks;

/* The fault that a test expects in ring 0: while `recover` is set, the next exception is noted here, and
 * execution goes on at `recover`. */
struct caught {
    u32 recover;
    u32 vector, error, eip, cr2;
};
extern struct caught caught;

/* main.c */
void print(const char *text, ...) __attribute__((format(printf, 1, 2)));
_Noreturn void power_off(void);

/* tests.c */
struct test {
    const char *name;
    bool (*run)(void);
};
extern const struct test tests[];
extern const int test_count;

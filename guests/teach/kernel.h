/* Everything that teach's kernel files tell each other, one paragraph per file. */
#pragma once
#include "abi.h"
#include "io.h"
#include "multiboot.h"

/* The machine: privileged instructions as functions. */
static inline void wrmsr(u32 msr, u64 value)
{
    asm volatile("wrmsr" : : "c"(msr), "a"((u32)value), "d"((u32)(value >> 32)));
}
static inline u64 rdmsr(u32 msr)
{
    u32 low, high;
    asm volatile("rdmsr" : "=a"(low), "=d"(high) : "c"(msr));
    return (u64)high << 32 | low;
}
static inline u64 read_cr2(void)
{
    u64 value;
    asm volatile("mov %%cr2, %0" : "=r"(value));
    return value;
}
static inline void load_cr3(u64 value) { asm volatile("mov %0, %%cr3" : : "r"(value) : "memory"); }

#define MSR_EFER 0xC0000080
#define MSR_STAR 0xC0000081
#define MSR_LSTAR 0xC0000082
#define MSR_FMASK 0xC0000084

/* desc.c: GDT, IDT, TSS. The order of the selectors is what SYSCALL and SYSRET expect. */
#define KERNEL_CS 0x08
#define KERNEL_SS 0x10
#define USER_SS (0x18 | 3)
#define USER_CS (0x20 | 3)
#define TSS_SELECTOR 0x28
void descriptors_init(void);
void set_kernel_stack(u64 rsp0);

/* trap.S and interrupts.c. The frame is what the stubs push, lowest address first. */
struct trap_frame {
    u64 r15, r14, r13, r12, r11, r10, r9, r8, rdi, rsi, rbp, rbx, rdx, rcx, rax;
    u64 vector, error;
    u64 rip, cs, rflags, rsp, ss;
};
#define RFLAGS_IF 0x200
#define IRQ_BASE 32
extern const u8 trap_stubs[];
void trap_return(void);
void syscall_entry(void);
void switch_context(u64 *save_rsp, u64 load_rsp);
void interrupts_init(void);

/* console.c: the serial port. */
void console_init(void);
void console_interrupt(void);
void console_put(char c);
int console_get(void); /* -1: nothing there */
void console_wait(void); /* until there is something */
void kprintf(const char *text, ...) __attribute__((format(printf, 1, 2)));
_Noreturn void panic(const char *text, ...) __attribute__((format(printf, 1, 2)));

/* timer.c: 100 Hz from the 8254. */
extern volatile u64 ticks;
void timer_init(void);

/* pages.c: physical page frames. */
#define DIRECT_MAP 0xFFFF800000000000ULL /* physical address p is readable and writable at DIRECT_MAP + p */
#define KERNEL_BASE 0xFFFFFFFF80000000ULL
#define MEMORY_LIMIT (1ULL << 30) /* what boot.S maps; memory above it stays unused */
static inline void *direct(u64 physical) { return (void *)(DIRECT_MAP + physical); }
extern char kernel_text[], kernel_rodata[], kernel_data[], kernel_end[]; /* kernel.ld */
extern u64 pages_total, pages_free, memory_top;
void pages_init(const struct multiboot_info *info);
u64 page_allocate(void); /* a zeroed page's physical address, or 0 when there is none */
void page_release(u64 physical);

/* vm.c: address spaces. */
#define PTE_P 0x1ULL
#define PTE_W 0x2ULL
#define PTE_U 0x4ULL
#define PTE_PS 0x80ULL
#define PTE_G 0x100ULL
#define PTE_NX (1ULL << 63)
#define PTE_ADDRESS 0x000FFFFFFFFFF000ULL
#define USER_END 0x00007FFFFFFFF000ULL /* one page below the canonical limit */
#define USER_STACK_TOP USER_END
#define USER_STACK_LIMIT (256ULL * PAGE_SIZE)
void vm_init(void);
u64 space_create(void); /* physical address of a PML4, or 0 */
void space_free(u64 pml4);
u64 space_pages(u64 pml4);
bool space_map(u64 pml4, u64 linear, u64 physical, u64 flags);
u64 space_lookup(u64 pml4, u64 linear); /* the page-table entry, or 0 */
extern u64 kernel_pml4;

/* process.c: processes and the scheduler. */
enum process_state { UNUSED, RUNNABLE, RUNNING, SLEEPING, ZOMBIE };
struct process {
    enum process_state state;
    u64 pid, parent;
    char name[NAME_SIZE];
    u64 pml4;
    u64 kernel_stack; /* physical page */
    u64 saved_rsp;    /* while it is not running */
    u64 heap_start, heap_end;
    u64 wake_tick;       /* SLEEPING with wait_on == &ticks */
    const void *wait_on; /* SLEEPING: what wake() must name */
    u64 status;
    u64 ticks, preempted, faults, calls;
};
extern struct process *current;
void process_init(void);
long process_spawn(const char *name, const char *argument, u64 parent);
_Noreturn void process_exit(u64 status);
long process_wait(u64 pid, struct wait_result *result, bool no_hang);
void process_list(struct process_info *to, u64 *count);
void schedule(void);
void preempt(void);
void sleep_on(const void *what);
void wake(const void *what);
void wake_sleepers(void);
bool fault_is_growth(u64 linear, u64 error);
_Noreturn void idle(void);

/* elf.c and programs.S: user programs inside the kernel image. */
struct program {
    const char *name;
    const u8 *start, *end;
};
extern const struct program programs[], programs_end[];
bool elf_load(const struct program *program, u64 pml4, u64 *entry, u64 *end);

/* syscall.c, power.c, main.c. */
void syscall_init(void);
_Noreturn void power_off(void);
_Noreturn void power_reset(void);
extern char command_line[256];

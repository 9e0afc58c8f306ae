/* prot32: descriptor tables. Intel SDM volume 3, "Segment Descriptors", "32-Bit Task-State Segment". */
#include "kernel.h"

#define VECTORS 48
#define IDT_ENTRIES (SYSTEM_CALL_VECTOR + 1)
#define GATE_INTERRUPT 0x8E00 /* present, DPL 0, 32-bit interrupt gate */
#define GATE_INTERRUPT_USER 0xEE00
#define GATE_CALL_USER 0xEC00 /* present, DPL 3, 32-bit call gate */
#define BITMAP_BYTES 32       /* ports 0-255; all above them are closed, being outside the TSS limit */

struct table_pointer {
    u16 limit;
    u32 base;
} __attribute__((packed));

struct tss32 {
    u32 back_link;
    u32 esp0, ss0; /* the stack that a change to ring 0 loads; trap.S sets esp0, at offset 4 */
    u32 other[22];
    u16 trap, io_map;
    u8 bitmap[BITMAP_BYTES + 1]; /* the processor reads two bytes at a time, so one more of ones */
} __attribute__((packed)) tss;

u32 gdt[10][2];
static u32 idt[IDT_ENTRIES][2];
u8 small_segment[PAGE_SIZE] __attribute__((aligned(4096)));

/* `access` is bits 8-15 of the high word, `flags` G, D/B, L, AVL. */
static void set_segment(u32 selector, u32 base, u32 limit, u32 access, u32 flags)
{
    gdt[selector / 8][0] = base << 16 | (limit & 0xFFFF);
    gdt[selector / 8][1] =
        (base & 0xFF000000) | flags << 20 | (limit & 0xF0000) | access << 8 | (base >> 16 & 0xFF);
}

static void set_gate(u32 *gate, const void *target, u32 type)
{
    gate[0] = KERNEL_CS << 16 | ((u32)target & 0xFFFF);
    gate[1] = ((u32)target & 0xFFFF0000) | type;
}

void descriptors_init(void)
{
    set_segment(KERNEL_CS, 0, 0xFFFFF, 0x9A, 0xC);
    set_segment(KERNEL_DS, 0, 0xFFFFF, 0x92, 0xC);
    set_segment(USER_CS, 0, 0xFFFFF, 0xFA, 0xC);
    set_segment(USER_DS, 0, 0xFFFFF, 0xF2, 0xC);
    set_segment(TSS_SELECTOR, (u32)&tss, sizeof tss - 1, 0x89, 0);
    set_segment(SMALL_SELECTOR, (u32)small_segment, 0xFFF, 0x92, 0x4);
    set_segment(EXPAND_DOWN_SELECTOR, (u32)small_segment - PAGE_SIZE, 0xFFF, 0x96, 0x4);
    set_segment(ABSENT_SELECTOR, 0, 0xFFFFF, 0x12, 0xC);
    set_gate(gdt[CALL_GATE / 8], call_gate_entry, GATE_CALL_USER | 1); /* one parameter to copy */

    for (int vector = 0; vector < VECTORS; vector++)
        set_gate(idt[vector], trap_stubs + vector * 16, GATE_INTERRUPT);
    set_gate(idt[SYSTEM_CALL_VECTOR], system_call_stub, GATE_INTERRUPT_USER);

    tss.ss0 = KERNEL_DS;
    tss.io_map = offsetof(struct tss32, bitmap);
    memset(tss.bitmap, 0xFF, sizeof tss.bitmap);
    tss.bitmap[ALLOWED_PORT / 8] &= ~(1 << ALLOWED_PORT % 8);

    struct table_pointer gdtr = {sizeof gdt - 1, (u32)gdt}, idtr = {sizeof idt - 1, (u32)idt};
    asm volatile("lgdt %0\n\t"
                 "lidt %1\n\t"
                 "ljmp %2, $1f\n"
                 "1:\n\t"
                 "mov %3, %%ds\n\tmov %3, %%es\n\tmov %3, %%ss\n\t"
                 "mov %4, %%fs\n\tmov %4, %%gs\n\t"
                 "ltr %w5"
                 :
                 : "m"(gdtr), "m"(idtr), "i"(KERNEL_CS), "r"(KERNEL_DS), "r"(0), "r"(TSS_SELECTOR)
                 : "memory");
}

/* teach: descriptor tables. Intel SDM volume 3, "Segment Descriptors", "64-Bit Mode IDT", "64-bit TSS". */
#include "kernel.h"

struct table_pointer {
    u16 limit;
    u64 base;
} __attribute__((packed));

struct gate {
    u16 offset_low, selector;
    u8 ist, type;
    u16 offset_middle;
    u32 offset_high, reserved;
};

struct tss64 {
    u32 reserved0;
    u64 rsp[3]; /* loaded into RSP on a change to ring 0, 1, 2 */
    u64 reserved1;
    u64 ist[7];
    u64 reserved2;
    u16 reserved3, io_map;
} __attribute__((packed)) tss; /* trap.S reads rsp[0] at offset 4 */

#define GATE_INTERRUPT 0x8E /* present, DPL 0, 64-bit interrupt gate: IF is cleared on entry */
#define GATE_INTERRUPT_USER 0xEE
#define VECTOR_BREAKPOINT 3
#define VECTOR_DOUBLE_FAULT 8
#define VECTORS 48

static u64 gdt[7] = {
    0,
    0x00209B0000000000, /* 08 kernel code: L, present, ring 0 */
    0x0000930000000000, /* 10 kernel data */
    0x0000F30000000000, /* 18 user data: DPL 3 */
    0x0020FB0000000000, /* 20 user code: L, DPL 3 */
    0, 0,               /* 28 TSS, two slots */
};
static struct gate idt[VECTORS];
static u8 double_fault_stack[PAGE_SIZE] __attribute__((aligned(16)));

void set_kernel_stack(u64 rsp0) { tss.rsp[0] = rsp0; }

void descriptors_init(void)
{
    u64 base = (u64)&tss, limit = sizeof tss - 1;
    gdt[5] = limit | (base & 0xFFFFFF) << 16 | 0x89ULL << 40 | (base >> 24 & 0xFF) << 56;
    gdt[6] = base >> 32;
    tss.io_map = sizeof tss; /* no I/O permission bitmap: ring 3 has no ports */
    /* A double fault often means that the kernel stack is bad, so its handler gets a stack of its own. */
    tss.ist[0] = (u64)double_fault_stack + sizeof double_fault_stack;

    for (u64 vector = 0; vector < VECTORS; vector++) {
        u64 stub = (u64)trap_stubs + vector * 16;
        idt[vector] = (struct gate){
            .offset_low = stub,
            .offset_middle = stub >> 16,
            .offset_high = stub >> 32,
            .selector = KERNEL_CS,
            .ist = vector == VECTOR_DOUBLE_FAULT,
            .type = vector == VECTOR_BREAKPOINT ? GATE_INTERRUPT_USER : GATE_INTERRUPT,
        };
    }

    struct table_pointer gdtr = {sizeof gdt - 1, (u64)gdt}, idtr = {sizeof idt - 1, (u64)idt};
    asm volatile("lgdt %0\n\t"
                 "lidt %1\n\t"
                 "mov %2, %%ss\n\t" /* SYSCALL will load the same selector */
                 "pushq %3\n\t"     /* reload CS by a far return to the next instruction */
                 "lea 1f(%%rip), %%rax\n\t"
                 "push %%rax\n\t"
                 "lretq\n\t"
                 "1: ltr %w4"
                 :
                 : "m"(gdtr), "m"(idtr), "r"(KERNEL_SS), "i"(KERNEL_CS), "r"(TSS_SELECTOR)
                 : "rax", "memory");
}

/* teach: the two 8259A interrupt controllers, and what happens on each exception and interrupt. */
#include "kernel.h"

#define PIC1 0x20
#define PIC2 0xA0
#define PIC_DATA 1
#define ICW1_INIT_ICW4 0x11
#define ICW4_8086 0x01
#define OCW2_EOI 0x20
#define OCW3_READ_ISR 0x0B

#define IRQ_TIMER 0
#define IRQ_CASCADE 2
#define IRQ_COM1 4
#define IRQ_SPURIOUS 7

#define VECTOR_PAGE_FAULT 14

static const char *const exception_names[32] = {
    "divide error", "debug", "NMI", "breakpoint", "overflow", "bound range", "invalid opcode",
    "device not available", "double fault", "coprocessor overrun", "invalid TSS", "segment not present",
    "stack fault", "general protection", "page fault", "reserved", "x87 error", "alignment check",
    "machine check", "SIMD error", "virtualization", "control protection",
};

/* After reset the controllers deliver IRQ 0-7 on the exception vectors 8-15: move them to 32-47. */
void interrupts_init(void)
{
    outb(PIC1, ICW1_INIT_ICW4);
    outb(PIC2, ICW1_INIT_ICW4);
    outb(PIC1 + PIC_DATA, IRQ_BASE);
    outb(PIC2 + PIC_DATA, IRQ_BASE + 8);
    outb(PIC1 + PIC_DATA, 1 << IRQ_CASCADE); /* the second controller hangs on this input of the first */
    outb(PIC2 + PIC_DATA, IRQ_CASCADE);
    outb(PIC1 + PIC_DATA, ICW4_8086);
    outb(PIC2 + PIC_DATA, ICW4_8086);
    outb(PIC1 + PIC_DATA, (u8) ~(1 << IRQ_TIMER | 1 << IRQ_COM1));
    outb(PIC2 + PIC_DATA, 0xFF);
}

static void interrupt(u64 irq, bool from_user)
{
    if (irq == IRQ_SPURIOUS) { /* a request that went away: no EOI unless it is really in service */
        outb(PIC1, OCW3_READ_ISR);
        if (!(inb(PIC1) & 1 << IRQ_SPURIOUS))
            return;
    }
    if (irq >= 8)
        outb(PIC2, OCW2_EOI);
    outb(PIC1, OCW2_EOI); /* before schedule(), which may come back much later */

    if (irq == IRQ_TIMER) {
        ticks++;
        current->ticks++;
        wake_sleepers();
        if (from_user) /* the kernel itself is never preempted */
            preempt();
    } else if (irq == IRQ_COM1) {
        console_interrupt();
    }
}

static void describe_page_fault(u64 linear, u64 error)
{
    kprintf("page fault: %s of 0x%lx in ring %d, %s", error & 16 ? "fetch" : error & 2 ? "write" : "read",
            (ulong)linear, error & 4 ? 3 : 0,
            error & 1    ? "not allowed there"
            : pages_free ? "nothing mapped there"
                         : "no memory left");
}

static void exception(struct trap_frame *frame, u64 linear, bool from_user)
{
    bool page_fault = frame->vector == VECTOR_PAGE_FAULT;

    if (page_fault && linear < USER_END && fault_is_growth(linear, frame->error))
        return;
    /* The kernel reads and writes user memory through the addresses that programs give it, and only at
     * moments when all its own data is in order, so such a fault may end the process as one of its own. */
    if (!from_user && !(page_fault && linear < USER_END && current->pid))
        panic("%s in ring 0, error 0x%lx, rip 0x%lx, rsp 0x%lx, cr2 0x%lx",
              exception_names[frame->vector], (ulong)frame->error, (ulong)frame->rip, (ulong)frame->rsp,
              (ulong)linear);

    kprintf("[%s, pid %lu killed: ", current->name, (ulong)current->pid);
    if (page_fault)
        describe_page_fault(linear, frame->error);
    else
        kprintf("%s, error 0x%lx", exception_names[frame->vector], (ulong)frame->error);
    kprintf(", rip 0x%lx]\n", (ulong)frame->rip);
    process_exit(STATUS_KILLED + frame->vector);
}

/* Called by trap.S with interrupts off. */
void trap(struct trap_frame *frame)
{
    bool from_user = (frame->cs & 3) == 3;

    if (frame->vector >= IRQ_BASE)
        interrupt(frame->vector - IRQ_BASE, from_user);
    else
        exception(frame, read_cr2(), from_user);
}

/* prot32: ring-3 tasks and what ends, serves and interrupts them. Ring 0 runs with interrupts off and on one
 * stack: a task that is not running is nothing but its frame and its page directory. */
#include "kernel.h"
#include "user.h"

#define IRQ_BASE 32
#define IRQ_TIMER 0
#define PIC1 0x20
#define EOI 0x20
#define PF_PRESENT 1

extern const u8 user_image[], user_image_size[]; /* kernel.ld; the size is the symbol's address */

volatile u32 ticks;
struct caught caught;
static struct task *tasks, *current;
static int task_count;

struct task task_create(void (*entry)(void), u32 argument)
{
    struct task t = {.directory = directory_create(), .vector = NO_FAULT};
    for (u32 offset = 0; offset < (u32)user_image_size; offset += PAGE_SIZE)
        page_map(t.directory, 0x400000 + offset, user_image + offset, PAGE_U); /* read-only: tasks share it */
    page_map(t.directory, USER_STACK_TOP - PAGE_SIZE, page_allocate(), PAGE_U | PAGE_W);
    t.frame = (struct trap_frame){
        .es = USER_DS, .ds = USER_DS, .eax = argument, .eip = (u32)entry, .cs = USER_CS,
        .eflags = EFLAGS_IF | 2, .esp = USER_STACK_TOP, .ss = USER_DS,
    };
    return t;
}

/* Runs the tasks, round robin, until all are done. */
void tasks_run(struct task *first, int count)
{
    tasks = current = first;
    task_count = count;
    load_cr3(current->directory);
    enter_user(&current->frame);
    load_cr3(kernel_directory);
    current = NULL;
}

static void switch_task(struct trap_frame *frame)
{
    struct task *next = current;
    for (int i = 0; i < task_count; i++) {
        if (++next == tasks + task_count)
            next = tasks;
        if (!next->done)
            break;
    }
    if (next->done)
        leave_user();
    if (next == current)
        return;
    current->frame = *frame;
    current = next;
    *frame = next->frame;
    load_cr3(next->directory);
}

static void timer(struct trap_frame *frame, bool from_user)
{
    struct task *before = current;
    ticks++;
    outb(PIC1, EOI);
    if (!from_user)
        return;
    switch_task(frame);
    if (current != before)
        before->preempted++;
}

static void system_call(struct trap_frame *frame)
{
    switch (frame->eax) {
    case SYS_EXIT:
        current->status = frame->ebx;
        current->done = true;
        switch_task(frame);
        break;
    case SYS_TICKS:
        frame->eax = ticks;
        break;
    case SYS_SUM:
        frame->eax = frame->ebx + frame->ecx + frame->edx + frame->esi + frame->edi;
        break;
    default:
        frame->eax = -1;
    }
}

static void user_exception(struct trap_frame *frame, u32 cr2)
{
    if (frame->vector == PF && !(frame->error & PF_PRESENT) && cr2 >= DEMAND_START && cr2 < DEMAND_END) {
        page_map(current->directory, cr2 & ~(PAGE_SIZE - 1), page_allocate(), PAGE_U | PAGE_W);
        current->demand_pages++;
        return;
    }
    current->vector = frame->vector;
    current->error = frame->error;
    current->cr2 = cr2;
    current->done = true;
    switch_task(frame);
}

static void kernel_exception(struct trap_frame *frame, u32 cr2)
{
    if (!caught.recover) {
        print("prot32: unexpected exception %u in ring 0, error 0x%x, eip 0x%x, cr2 0x%x\n", frame->vector,
              frame->error, frame->eip, cr2);
        power_off();
    }
    u32 recover = caught.recover;
    caught = (struct caught){0, frame->vector, frame->error, frame->eip, cr2};
    frame->eip = recover;
    frame->eflags &= ~EFLAGS_TF;
}

void trap(struct trap_frame *frame)
{
    bool from_user = (frame->cs & 3) == 3;
    u32 cr2;
    asm volatile("mov %%cr2, %0" : "=r"(cr2));

    if (frame->vector == IRQ_BASE + IRQ_TIMER)
        timer(frame, from_user);
    else if (frame->vector == SYSTEM_CALL_VECTOR)
        system_call(frame);
    else if (from_user)
        user_exception(frame, cr2);
    else
        kernel_exception(frame, cr2);
}

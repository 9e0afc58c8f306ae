/* teach: processes and their scheduling. One processor; the kernel runs with interrupts off and is never
 * preempted, so its data needs no locks. */
#include "kernel.h"

#define PROCESSES 32
#define PF_PRESENT 1

static struct process processes[PROCESSES]; /* [0] is the idle process: the thread that booted */
struct process *current = &processes[0];
static u64 next_pid = 1;
static u64 switches; /* from one process to another, since boot */

void process_init(void)
{
    current->state = RUNNING;
    current->pml4 = kernel_pml4;
    copy_string(current->name, "idle", NAME_SIZE);
}

static struct process *unused_process(void)
{
    for (struct process *p = processes + 1; p < processes + PROCESSES; p++)
        if (p->state == UNUSED)
            return p;
    return NULL;
}

/* The argument string lies at the top of the stack, its address goes to the program in RDI. */
static bool prepare_stack(struct process *p, const char *argument, u64 entry)
{
    u64 page = page_allocate(), size = (strlen(argument) + 16) & ~15ULL;
    if (!page)
        return false;
    memcpy((char *)direct(page) + PAGE_SIZE - size, argument, strlen(argument));
    if (!space_map(p->pml4, USER_STACK_TOP - PAGE_SIZE, page, PTE_W | PTE_U | PTE_NX)) {
        page_release(page);
        return false;
    }

    u64 *stack = direct(p->kernel_stack + PAGE_SIZE);
    struct trap_frame *frame = (struct trap_frame *)stack - 1;
    frame->rip = entry;
    frame->cs = USER_CS;
    frame->rflags = RFLAGS_IF;
    frame->rsp = USER_STACK_TOP - size;
    frame->ss = USER_SS;
    frame->rdi = USER_STACK_TOP - size;
    /* Under it what switch_context() pops: six registers (zero) and a return address. */
    stack = (u64 *)frame;
    *--stack = (u64)trap_return;
    p->saved_rsp = (u64)(stack - 6);
    return true;
}

long process_spawn(const char *name, const char *argument, u64 parent)
{
    const struct program *program = programs;
    struct process *p = unused_process();
    u64 entry;

    while (program < programs_end && strcmp(program->name, name))
        program++;
    if (program == programs_end || !p)
        return -1;

    *p = (struct process){.parent = parent};
    p->kernel_stack = page_allocate();
    p->pml4 = p->kernel_stack ? space_create() : 0;
    if (!p->pml4 || !elf_load(program, p->pml4, &entry, &p->heap_start) || !prepare_stack(p, argument, entry)) {
        if (p->pml4)
            space_free(p->pml4);
        if (p->kernel_stack)
            page_release(p->kernel_stack);
        return -1;
    }
    copy_string(p->name, name, NAME_SIZE);
    p->heap_end = p->heap_start;
    p->pid = next_pid++;
    p->state = RUNNABLE;
    return p->pid;
}

/* --- Scheduling */

static void run(struct process *next)
{
    struct process *previous = current;
    if (next == previous)
        return;
    current = next;
    switches++;
    set_kernel_stack(DIRECT_MAP + next->kernel_stack + PAGE_SIZE);
    if (next->pml4 != previous->pml4)
        load_cr3(next->pml4);
    switch_context(&previous->saved_rsp, next->saved_rsp);
}

/* Gives the processor to the next runnable process after `current`, round robin, or else to the idle one.
 * Returns when it is this process's turn again. */
void schedule(void)
{
    struct process *previous = current, *next = &processes[0];
    u64 from = previous - processes;

    for (u64 i = 1; i < PROCESSES; i++) {
        struct process *p = &processes[1 + (from + i - 1) % (PROCESSES - 1)];
        if (p->state == RUNNABLE) {
            next = p;
            break;
        }
    }
    if (previous->state == RUNNING) {
        if (next == &processes[0])
            return; /* nobody else wants it */
        previous->state = RUNNABLE;
    }
    next->state = RUNNING;
    run(next);
}

/* The end of a time slice. */
void preempt(void)
{
    u64 switches_before = switches;
    struct process *self = current;
    schedule();
    if (switches != switches_before)
        self->preempted++;
}

void sleep_on(const void *what)
{
    current->wait_on = what;
    current->state = SLEEPING;
    schedule();
}

void wake(const void *what)
{
    for (struct process *p = processes + 1; p < processes + PROCESSES; p++)
        if (p->state == SLEEPING && p->wait_on == what)
            p->state = RUNNABLE;
}

void wake_sleepers(void)
{
    for (struct process *p = processes + 1; p < processes + PROCESSES; p++)
        if (p->state == SLEEPING && p->wait_on == (void *)&ticks && p->wake_tick <= ticks)
            p->state = RUNNABLE;
}

void idle(void)
{
    for (;;) {
        schedule();
        /* STI takes effect after HLT has begun: an interrupt cannot slip in between and be slept through. */
        asm volatile("sti; hlt; cli" : : : "memory");
    }
}

/* --- End of a process */

void process_exit(u64 status)
{
    if (current->pid == 1)
        panic("the first process has ended with status %lu", (ulong)status);
    for (struct process *p = processes + 1; p < processes + PROCESSES; p++)
        if (p->parent == current->pid)
            p->parent = 1;
    load_cr3(kernel_pml4); /* leave the address space before it goes */
    space_free(current->pml4);
    current->pml4 = kernel_pml4;
    current->status = status;
    current->state = ZOMBIE;
    wake(processes); /* waiting parents look through the table again */
    schedule();
    __builtin_unreachable();
}

long process_wait(u64 pid, struct wait_result *result, bool no_hang)
{
    for (;;) {
        bool any = false;
        for (struct process *p = processes + 1; p < processes + PROCESSES; p++) {
            if (p->state == UNUSED || p->parent != current->pid || (pid && p->pid != pid))
                continue;
            any = true;
            if (p->state != ZOMBIE)
                continue;
            u64 ended = p->pid;
            if (result)
                *result = (struct wait_result){ended, p->status};
            page_release(p->kernel_stack);
            p->state = UNUSED;
            return ended;
        }
        if (!any)
            return -1;
        if (no_hang)
            return 0;
        sleep_on(processes);
    }
}

/* --- Memory and reports */

/* A fault on the heap or the stack of the current process, where nothing is mapped yet: map a zeroed page. */
bool fault_is_growth(u64 linear, u64 error)
{
    bool heap = linear >= current->heap_start && linear < current->heap_end;
    bool stack = linear >= USER_STACK_TOP - USER_STACK_LIMIT && linear < USER_STACK_TOP;
    u64 page;

    if ((error & PF_PRESENT) || !(heap || stack) || !(page = page_allocate()))
        return false;
    if (!space_map(current->pml4, linear & ~(PAGE_SIZE - 1ULL), page, PTE_W | PTE_U | PTE_NX)) {
        page_release(page);
        return false;
    }
    current->faults++;
    return true;
}

/* Fills up to *count records, and sets *count to how many. */
void process_list(struct process_info *to, u64 *count)
{
    static const char *const states[] = {"unused", "ready", "running", "sleeping", "ended"};
    u64 room = *count;

    *count = 0;
    for (struct process *p = processes; p < processes + PROCESSES && *count < room; p++) {
        if (p->state == UNUSED)
            continue;
        struct process_info *info = &to[(*count)++];
        *info = (struct process_info){
            .pid = p->pid, .parent = p->parent, .ticks = p->ticks, .preempted = p->preempted,
            .faults = p->faults, .calls = p->calls,
            .pages = p->pml4 == kernel_pml4 ? 0 : space_pages(p->pml4),
        };
        copy_string(info->name, p->name, NAME_SIZE);
        copy_string(info->state, states[p->state], NAME_SIZE);
    }
}

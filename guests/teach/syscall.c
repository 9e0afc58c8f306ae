/* teach: system calls. trap.S: syscall_entry calls system_call() with interrupts off, in the address space of
 * the caller. Pointers from user space are checked to lie in the user half; what is not mapped there faults,
 * and interrupts.c then maps it or ends the process. */
#include "kernel.h"

#define EFER_SCE 1
#define RFLAGS_TF 0x100
#define RFLAGS_DF 0x400
#define RFLAGS_NT 0x4000
#define RFLAGS_AC 0x40000
#define FAILED ((u64)-1)

void syscall_init(void)
{
    wrmsr(MSR_EFER, rdmsr(MSR_EFER) | EFER_SCE);
    /* SYSCALL: CS = 8, SS = 10h. SYSRET: SS = 10h + 8, CS = 10h + 16, both with RPL 3. */
    wrmsr(MSR_STAR, (u64)KERNEL_CS << 32 | (u64)(KERNEL_SS | 3) << 48);
    wrmsr(MSR_LSTAR, (u64)syscall_entry);
    wrmsr(MSR_FMASK, RFLAGS_IF | RFLAGS_TF | RFLAGS_DF | RFLAGS_NT | RFLAGS_AC);
}

static bool user_range(u64 start, u64 count) { return start < USER_END && count <= USER_END - start; }

/* Brings a string of the program into the kernel; false if it is too long or not in the user half. */
static bool user_string(char *to, u64 from, size_t size)
{
    for (size_t i = 0; i < size; i++) {
        if (!user_range(from + i, 1))
            return false;
        if (!(to[i] = *(const char *)(from + i)))
            return true;
    }
    return false;
}

static u64 sys_write(u64 buffer, u64 count)
{
    if (!user_range(buffer, count))
        return FAILED;
    for (u64 i = 0; i < count; i++)
        console_put(((const char *)buffer)[i]);
    return count;
}

static u64 sys_read(u64 buffer, u64 count)
{
    u64 done = 0;
    int c;

    if (!user_range(buffer, count) || !count)
        return FAILED;
    while ((c = console_get()) < 0)
        console_wait();
    do
        ((u8 *)buffer)[done++] = c;
    while (done < count && (c = console_get()) >= 0);
    return done;
}

static u64 sys_spawn(u64 name, u64 argument)
{
    char program[NAME_SIZE], text[128];
    if (!user_string(program, name, sizeof program) || !user_string(text, argument, sizeof text))
        return FAILED;
    return process_spawn(program, text, current->pid);
}

static u64 sys_wait(u64 pid, u64 result, bool no_hang)
{
    if (!user_range(result, sizeof(struct wait_result)))
        return FAILED;
    return process_wait(pid, (struct wait_result *)result, no_hang);
}

static u64 sys_sleep(u64 count)
{
    current->wake_tick = ticks + count;
    if (count)
        sleep_on((void *)&ticks);
    return 0;
}

/* Only the limit moves: pages come with the first touch (fault_is_growth). */
static u64 sys_sbrk(long bytes)
{
    u64 old = current->heap_end, new = old + bytes;
    if (bytes < 0 || new < old || new > USER_STACK_TOP - USER_STACK_LIMIT)
        return FAILED;
    current->heap_end = new;
    return old;
}

static u64 sys_processes(u64 to, u64 count)
{
    if (count > PAGE_SIZE || !user_range(to, count * sizeof(struct process_info)))
        return FAILED;
    process_list((struct process_info *)to, &count);
    return count;
}

static u64 sys_memory(u64 to)
{
    if (!user_range(to, sizeof(struct memory_info)))
        return FAILED;
    *(struct memory_info *)to = (struct memory_info){pages_total, pages_free, kernel_end - kernel_text};
    return 0;
}

static u64 sys_cmdline(u64 to, u64 size)
{
    if (!size || !user_range(to, size))
        return FAILED;
    copy_string((char *)to, command_line, size);
    return 0;
}

/* Instructions that only ring 0 may execute, on request: the program `exits` shows what they cost. */
static u64 sys_kernel(u64 operation, u64 times)
{
    u64 value;
    for (; times; times--) {
        switch (operation) {
        case OP_HLT: asm volatile("sti; hlt; cli" : : : "memory"); break;
        case OP_RDMSR: rdmsr(MSR_EFER); break;
        case OP_READ_CR0: asm volatile("mov %%cr0, %0" : "=r"(value)); break;
        case OP_LOAD_CR3: load_cr3(current->pml4); break;
        case OP_INVLPG: asm volatile("invlpg (%0)" : : "r"(current->heap_start) : "memory"); break;
        case OP_IN: inb(0x80); break; /* the POST code port: reading it has no effect */
        case OP_WBINVD: asm volatile("wbinvd" : : : "memory"); break;
        default: return FAILED;
        }
    }
    return 0;
}

u64 system_call(u64 a, u64 b, u64 c, u64 number)
{
    current->calls++;
    switch (number) {
    case SYS_EXIT: process_exit(a);
    case SYS_WRITE: return sys_write(a, b);
    case SYS_READ: return sys_read(a, b);
    case SYS_SPAWN: return sys_spawn(a, b);
    case SYS_WAIT: return sys_wait(a, b, c);
    case SYS_YIELD: schedule(); return 0;
    case SYS_SLEEP: return sys_sleep(a);
    case SYS_SBRK: return sys_sbrk(a);
    case SYS_GETPID: return current->pid;
    case SYS_UPTIME: return ticks;
    case SYS_PROCESSES: return sys_processes(a, b);
    case SYS_MEMORY: return sys_memory(a);
    case SYS_CMDLINE: return sys_cmdline(a, b);
    case SYS_KERNEL: return sys_kernel(a, b);
    case SYS_POWER: a ? power_reset() : power_off();
    default: return FAILED;
    }
}

/* prot32: what runs in ring 3. Each function is a task of its own, with its argument in EAX. This file is
 * linked at 4 MiB and may call nothing of the kernel. */
#include "user.h"

static u32 system_call(u32 number, u32 b, u32 c, u32 d, u32 si, u32 di)
{
    u32 result;
    asm volatile("int $0x80" : "=a"(result) : "a"(number), "b"(b), "c"(c), "d"(d), "S"(si), "D"(di) : "memory");
    return result;
}

static _Noreturn void leave(u32 status)
{
    system_call(SYS_EXIT, status, 0, 0, 0, 0);
    __builtin_unreachable();
}

/* Must come first in each function: EAX still holds what the kernel put there. */
#define ARGUMENT(name) u32 name; asm volatile("" : "=a"(name))

void user_system_call(void) { leave(system_call(SYS_SUM, 1, 20, 300, 4000, 50000)); }

/* The processor must bring back ring 3's own stack pointer and segments. */
void user_stack_switch(void)
{
    u32 before, after, cs, ss;
    asm volatile("mov %%esp, %0\n\tint $0x80\n\tmov %%esp, %1"
                 : "=&r"(before), "=&r"(after) : "a"(SYS_TICKS) : "memory");
    asm volatile("mov %%cs, %0\n\tmov %%ss, %1" : "=r"(cs), "=r"(ss));
    leave(before == after && (cs & 3) == 3 && (ss & 3) == 3);
}

void user_hlt(void) { asm volatile("hlt"); }
void user_cli(void) { asm volatile("cli"); }
void user_mov_cr(void) { asm volatile("mov %%cr0, %%eax" : : : "eax"); }

void user_port(void)
{
    ARGUMENT(port);
    u8 value;
    asm volatile("in %%dx, %0" : "=a"(value) : "d"(port));
    leave(1);
}

/* Touches `count` pages that do not exist yet, all by writing, then adds them up. */
void user_touch(void)
{
    ARGUMENT(count);
    volatile u32 *memory = (u32 *)SHARED_ADDRESS;
    u32 sum = 0;
    for (u32 i = 0; i < count; i++)
        memory[i * 1024] += i + 1;
    for (u32 i = 0; i < count; i++)
        sum += memory[i * 1024];
    leave(sum);
}

void user_read(void)
{
    ARGUMENT(address);
    leave(*(volatile u32 *)address);
}

void user_write(void)
{
    ARGUMENT(address);
    *(volatile u32 *)address = 0;
    leave(0);
}

/* A vector whose gate is for ring 0 only. */
void user_interrupt(void)
{
    asm volatile("int $0x20");
    leave(0);
}

void user_call_gate(void)
{
    ARGUMENT(value);
    u32 result;
    asm volatile("push %1\n\tlcall $0x4B, $0" : "=a"(result) : "r"(value) : "memory"); /* the gate pops it */
    leave(result);
}

/* Counts for some ticks without ever giving the processor away, in memory that other tasks also have at this
 * address; reports whether anybody else's counting got into it. */
void user_count(void)
{
    ARGUMENT(duration);
    volatile u32 *memory = (u32 *)SHARED_ADDRESS;
    u32 end = system_call(SYS_TICKS, 0, 0, 0, 0, 0) + duration, own = 0;
    while (system_call(SYS_TICKS, 0, 0, 0, 0, 0) < end) {
        for (int i = 0; i < 5000; i++) {
            own++;
            *memory += 1;
        }
    }
    leave(*memory == own && own);
}

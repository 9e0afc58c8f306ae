/* What a user program of teach may call. */
#pragma once
#include "abi.h"

int main(const char *argument);

static inline long syscall3(long number, ulong a, ulong b, ulong c)
{
    long result;
    asm volatile("syscall" : "=a"(result), "+D"(a), "+S"(b), "+d"(c) : "0"(number)
                 : "rcx", "r8", "r9", "r10", "r11", "memory");
    return result;
}

static inline long write(const void *buffer, size_t count) { return syscall3(SYS_WRITE, (ulong)buffer, count, 0); }
static inline long read(void *buffer, size_t count) { return syscall3(SYS_READ, (ulong)buffer, count, 0); }
static inline long spawn(const char *name, const char *argument)
{
    return syscall3(SYS_SPAWN, (ulong)name, (ulong)argument, 0);
}
static inline long wait(long pid, struct wait_result *result, bool no_hang)
{
    return syscall3(SYS_WAIT, pid, (ulong)result, no_hang);
}
static inline void yield(void) { syscall3(SYS_YIELD, 0, 0, 0); }
static inline void sleep(u64 ticks) { syscall3(SYS_SLEEP, ticks, 0, 0); }
static inline void *sbrk(size_t bytes) { return (void *)syscall3(SYS_SBRK, bytes, 0, 0); }
static inline long getpid(void) { return syscall3(SYS_GETPID, 0, 0, 0); }
static inline u64 uptime(void) { return syscall3(SYS_UPTIME, 0, 0, 0); }
static inline long processes(struct process_info *to, u64 count)
{
    return syscall3(SYS_PROCESSES, (ulong)to, count, 0);
}
static inline void memory(struct memory_info *to) { syscall3(SYS_MEMORY, (ulong)to, 0, 0); }
static inline void cmdline(char *to, size_t size) { syscall3(SYS_CMDLINE, (ulong)to, size, 0); }
static inline void kernel_operation(int operation, u64 times) { syscall3(SYS_KERNEL, operation, times, 0); }
static inline void power(int reset) { syscall3(SYS_POWER, reset, 0, 0); }

struct cpuid_result {
    u32 eax, ebx, ecx, edx;
};
static inline struct cpuid_result cpuid(u32 leaf, u32 subleaf)
{
    struct cpuid_result r;
    asm volatile("cpuid" : "=a"(r.eax), "=b"(r.ebx), "=c"(r.ecx), "=d"(r.edx) : "a"(leaf), "c"(subleaf));
    return r;
}
static inline u64 rdtsc(void)
{
    u32 low, high;
    asm volatile("rdtsc" : "=a"(low), "=d"(high));
    return (u64)high << 32 | low;
}

/* One call, one system call: what a process prints at a time is not cut by preemption. */
void printf(const char *text, ...) __attribute__((format(printf, 1, 2)));
/* The caller's own entry in the process list. */
struct process_info self(void);

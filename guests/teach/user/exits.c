/* exits: executes instructions that a hypervisor may have to see, each a known number of times. The table of
 * VM exits by reason, printed when the machine stops, shows which of them left the guest. */
#include "lib.h"

#define TIMES 100
#define HALTS 3

static void report(const char *instruction, u64 times, u64 start)
{
    printf("  %-12s %4lu times, %lu TSC ticks each\n", instruction, (ulong)times, (ulong)((rdtsc() - start) / times));
}

int main(const char *argument)
{
    static const char *const names[OP_COUNT] = {
        "hlt", "rdmsr", "mov cr0", "mov to cr3", "invlpg", "in", "wbinvd",
    };
    u64 start;
    (void)argument;

    printf("exits: in ring 3\n");
    start = rdtsc();
    for (int i = 0; i < TIMES; i++)
        cpuid(0, 0);
    report("cpuid", TIMES, start);
    start = rdtsc();
    for (int i = 0; i < TIMES; i++)
        rdtsc();
    report("rdtsc", TIMES, start);
    start = rdtsc();
    for (int i = 0; i < TIMES; i++)
        asm volatile("pause");
    report("pause", TIMES, start);

    printf("exits: in ring 0, through a system call\n");
    for (int operation = 0; operation < OP_COUNT; operation++) {
        u64 times = operation == OP_HLT ? HALTS : TIMES;
        start = rdtsc();
        kernel_operation(operation, times);
        report(names[operation], times, start);
    }
    return 0;
}

/* hello: says so, from ring 3. While it sleeps nothing can run, so the processor halts. */
#include "lib.h"

int main(const char *argument)
{
    u16 cs;
    asm("mov %%cs, %0" : "=r"(cs));
    printf("hello from ring %d, pid %ld%s%s\n", cs & 3, getpid(), *argument ? ", argument " : "", argument);
    u64 before = uptime();
    sleep(2);
    printf("hello: slept %lu ticks, goodbye\n", (ulong)(uptime() - before));
    return 0;
}

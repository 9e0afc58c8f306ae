/* counter: shows preemption. It starts itself twice, as A and B. Neither gives the processor away: each counts
 * in a loop until two more timer ticks have passed, reports, and starts over. That their reports alternate is
 * the timer's doing. */
#include "lib.h"

#define REPORTS 4
#define SLICE 2      /* ticks between reports */
#define BATCH 20000  /* additions between looks at the clock */

static void count(const char *name)
{
    u64 deadline = uptime();

    for (int report = 1; report <= REPORTS; report++) {
        deadline += SLICE;
        while (uptime() < deadline)
            for (int i = 0; i < BATCH; i++)
                asm volatile("");
        printf("counter %s: report %d\n", name, report);
    }
    printf("counter %s: preempted %s\n", name, self().preempted ? "by the timer" : "never");
}

int main(const char *argument)
{
    struct wait_result result;

    if (*argument) {
        count(argument);
        return 0;
    }
    long a = spawn("counter", "A"), b = spawn("counter", "B");
    if (a < 0 || b < 0)
        return 1;
    wait(a, &result, false);
    wait(b, &result, false);
    printf("counter: both done\n");
    return 0;
}

/* teach: the clock, counter 0 of the 8254 PIT. */
#include "kernel.h"

#define PIT_HZ 1193182
#define PIT_COUNTER0 0x40
#define PIT_CONTROL 0x43
#define PIT_RATE_GENERATOR 0x34 /* counter 0, low byte then high byte, mode 2 */

volatile u64 ticks;

void timer_init(void)
{
    u16 divisor = (PIT_HZ + TICKS_PER_SECOND / 2) / TICKS_PER_SECOND;
    outb(PIT_CONTROL, PIT_RATE_GENERATOR);
    outb(PIT_COUNTER0, divisor);
    outb(PIT_COUNTER0, divisor >> 8);
}

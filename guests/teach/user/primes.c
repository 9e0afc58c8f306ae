/* primes: the sieve of Eratosthenes on the heap. Plain ring-3 work: no exits but the timer's and page faults. */
#include "lib.h"

static u64 number(const char *text)
{
    u64 value = 0;
    for (; *text >= '0' && *text <= '9' && value < 100000000; text++)
        value = value * 10 + *text - '0';
    return value;
}

int main(const char *argument)
{
    u64 limit = *argument ? number(argument) : 100000, count = 0, last = 0;
    u8 *composite = sbrk(limit + 1);

    if (composite == (void *)-1) {
        printf("primes: no heap for %lu bytes\n", (ulong)limit);
        return 1;
    }
    for (u64 n = 2; n <= limit; n++) {
        if (composite[n])
            continue;
        count++;
        last = n;
        for (u64 multiple = n * n; multiple <= limit; multiple += n)
            composite[multiple] = 1;
    }
    printf("primes: %lu primes up to %lu, the last is %lu\n", (ulong)count, (ulong)limit, (ulong)last);
    return 0;
}

/* Integer loops as a compiler makes them, about 10^8 instructions each. Each returns a check sum of its work,
 * which must be the same wherever it runs. */

#include <stdint.h>

static uint64_t random_state = 0x9E3779B97F4A7C15;

static uint64_t next_random(void)
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return random_state;
}

static uint8_t bytes[1 << 20];
static uint32_t words[1 << 17];

__attribute__((unused)) static uint64_t sieve(void)
{
    uint64_t primes = 0;
    for (int round = 0; round < 6; round++) {
        for (uint32_t i = 0; i < sizeof bytes; i++)
            bytes[i] = 1;
        for (uint32_t i = 2; i < sizeof bytes; i++) {
            if (!bytes[i])
                continue;
            primes++;
            for (uint32_t j = 2 * i; j < sizeof bytes; j += i)
                bytes[j] = 0;
        }
    }
    return primes;
}

__attribute__((unused)) static uint64_t crc32(void)
{
    static uint32_t table[256];
    for (uint32_t i = 0; i < 256; i++) {
        uint32_t c = i;
        for (int k = 0; k < 8; k++)
            c = c & 1 ? 0xEDB88320 ^ c >> 1 : c >> 1;
        table[i] = c;
    }
    for (uint32_t i = 0; i < sizeof bytes; i++)
        bytes[i] = next_random();
    uint32_t crc = ~0u;
    for (int round = 0; round < 10; round++)
        for (uint32_t i = 0; i < sizeof bytes; i++)
            crc = table[(crc ^ bytes[i]) & 0xFF] ^ crc >> 8;
    return ~crc;
}

static void sift_down(uint32_t *heap, uint32_t at, uint32_t size)
{
    uint32_t value = heap[at];
    for (uint32_t child; (child = 2 * at + 1) < size; at = child) {
        if (child + 1 < size && heap[child + 1] > heap[child])
            child++;
        if (heap[child] <= value)
            break;
        heap[at] = heap[child];
    }
    heap[at] = value;
}

__attribute__((unused)) static uint64_t sort(void)
{
    const uint32_t size = sizeof words / sizeof *words;
    uint64_t sum = 0;
    for (int round = 0; round < 4; round++) {
        for (uint32_t i = 0; i < size; i++)
            words[i] = next_random();
        for (uint32_t i = size / 2; i-- > 0;)
            sift_down(words, i, size);
        for (uint32_t end = size; --end > 0;) {
            uint32_t largest = words[0];
            words[0] = words[end];
            words[end] = largest;
            sift_down(words, 0, end);
        }
        for (uint32_t i = 0; i < size; i += 997)
            sum = sum * 31 + words[i];
    }
    return sum;
}

__attribute__((unused)) static uint64_t hash(void)
{
    uint64_t h = 0;
    for (uint32_t i = 0; i < 7000000; i++) {
        uint64_t x = h + i;
        x = (x ^ x >> 33) * 0xFF51AFD7ED558CCD;
        x = (x ^ x >> 29) * 0xC4CEB9FE1A85EC53;
        h = (x ^ x >> 32) + (h << 7 | h >> 57);
    }
    return h;
}

__attribute__((unused)) static uint64_t matrix(void)
{
    enum { N = 128 };
    static uint64_t a[N][N], b[N][N], c[N][N];
    for (int i = 0; i < N; i++)
        for (int j = 0; j < N; j++) {
            a[i][j] = next_random();
            b[i][j] = next_random();
        }
    uint64_t sum = 0;
    for (int round = 0; round < 7; round++) {
        for (int i = 0; i < N; i++)
            for (int j = 0; j < N; j++) {
                uint64_t dot = 0;
                for (int k = 0; k < N; k++)
                    dot += a[i][k] * b[k][j];
                c[i][j] = dot;
            }
        for (int i = 0; i < N; i++)
            sum += c[i][(i + round) % N];
    }
    return sum;
}

__attribute__((unused)) static uint64_t collatz(void)
{
    uint64_t longest = 0;
    for (uint64_t start = 1; start < 170000; start++) {
        uint64_t steps = 0;
        for (uint64_t n = start; n != 1; steps++)
            n = n & 1 ? 3 * n + 1 : n / 2;
        if (steps > longest >> 32)
            longest = steps << 32 | start;
    }
    return longest;
}

uint64_t loop(void)
{
    return LOOP();
}

/* Memory and string helpers. The REP instructions are one instruction each to the reader of a trace. */
#include "common.h"

void *memset(void *to, int byte, size_t count)
{
    void *at = to;
    asm volatile("rep stosb" : "+D"(at), "+c"(count) : "a"(byte) : "memory");
    return to;
}

void *memcpy(void *to, const void *from, size_t count)
{
    void *at = to;
    asm volatile("rep movsb" : "+D"(at), "+S"(from), "+c"(count) : : "memory");
    return to;
}

void *memmove(void *to, const void *from, size_t count)
{
    if ((ulong)to - (ulong)from >= count)
        return memcpy(to, from, count);
    /* `to` lies inside `from`: copy from the last byte down, then restore the direction flag. */
    char *last_to = (char *)to + count - 1;
    const char *last_from = (const char *)from + count - 1;
    asm volatile("std; rep movsb; cld" : "+D"(last_to), "+S"(last_from), "+c"(count) : : "memory");
    return to;
}

int memcmp(const void *a, const void *b, size_t count)
{
    const u8 *x = a, *y = b;
    for (; count; count--, x++, y++)
        if (*x != *y)
            return *x - *y;
    return 0;
}

size_t strlen(const char *s)
{
    const char *end = s;
    while (*end)
        end++;
    return end - s;
}

int strcmp(const char *a, const char *b)
{
    while (*a && *a == *b)
        a++, b++;
    return (u8)*a - (u8)*b;
}

void copy_string(char *to, const char *from, size_t size)
{
    while (size > 1 && *from) {
        *to++ = *from++;
        size--;
    }
    *to = 0;
}

/* The text after the first space-separated word that starts with `word_start`, or NULL:
 * find_word("/boot/teach run=ps,mem", "run=") is "ps,mem". */
const char *find_word(const char *text, const char *word_start)
{
    size_t length = strlen(word_start);
    for (bool at_word = true; *text; at_word = *text == ' ', text++) {
        size_t same = 0;
        while (same < length && text[same] == word_start[same])
            same++;
        if (at_word && same == length)
            return text + length;
    }
    return NULL;
}

/* Formatted output to a callback: the only printf machinery of kernels and user programs alike. */
#include "common.h"

struct field {
    int width;
    bool left, zeros;
};

static void put_field(void (*put)(void *, char), void *context, struct field f, const char *s, int length)
{
    int padding = f.width - length;
    if (!f.left)
        for (; padding > 0; padding--)
            put(context, f.zeros ? '0' : ' ');
    for (int i = 0; i < length; i++)
        put(context, s[i]);
    for (; padding > 0; padding--)
        put(context, ' ');
}

/* Writes the digits in front of `end` and returns where they start. */
static char *digits(char *end, ulong value, unsigned base)
{
    do
        *--end = "0123456789abcdef"[value % base];
    while (value /= base);
    return end;
}

void format(void (*put)(void *, char), void *context, const char *text, va_list arguments)
{
    char number[24], *end = number + sizeof number;

    for (; *text; text++) {
        if (*text != '%') {
            put(context, *text);
            continue;
        }
        struct field f = {0};
        bool is_long = false;
        for (text++; *text == '-' || *text == '0'; text++)
            *text == '-' ? (f.left = true) : (f.zeros = true);
        for (; *text >= '0' && *text <= '9'; text++)
            f.width = f.width * 10 + *text - '0';
        if (*text == 'l')
            is_long = true, text++;

        char *start = end;
        switch (*text) {
        case 'd': {
            long value = is_long ? va_arg(arguments, long) : va_arg(arguments, int);
            start = digits(end, value < 0 ? -(ulong)value : (ulong)value, 10);
            if (value < 0)
                *--start = '-';
            break;
        }
        case 'u':
        case 'x': {
            ulong value = is_long ? va_arg(arguments, ulong) : va_arg(arguments, unsigned);
            start = digits(end, value, *text == 'u' ? 10 : 16);
            break;
        }
        case 's': {
            const char *s = va_arg(arguments, const char *);
            put_field(put, context, f, s, strlen(s));
            continue;
        }
        case 'c':
            *--start = va_arg(arguments, int);
            break;
        case 0:
            return;
        default:
            *--start = *text;
        }
        put_field(put, context, f, start, end - start);
    }
}

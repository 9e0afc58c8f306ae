/* What every guest kernel and every user program here shares: integer types, memory and string
 * helpers, formatted output. There is no C library: gcc itself may call the mem* functions. */
#pragma once
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef unsigned long ulong; /* as wide as a general register */

void *memset(void *to, int byte, size_t count);
void *memcpy(void *to, const void *from, size_t count);
void *memmove(void *to, const void *from, size_t count);
int memcmp(const void *a, const void *b, size_t count);
size_t strlen(const char *s);
int strcmp(const char *a, const char *b);
void copy_string(char *to, const char *from, size_t size); /* always ends `to` with a zero */
const char *find_word(const char *text, const char *word_start);

/* %s %c %d %u %x %% with `l`, a width, `0` and `-`. Each character goes to put(context, c). */
void format(void (*put)(void *, char), void *context, const char *text, va_list arguments);

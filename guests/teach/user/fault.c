/* fault: does what a program must not do, and is ended for it. The argument says what. */
#include "lib.h"

static int recurse(volatile int depth) { return depth ? recurse(depth + 1) + depth : 0; }

int main(const char *kind)
{
    static const u8 constant = 0xC3;
    static u8 data = 0xC3; /* RET */

    if (!*kind || !strcmp(kind, "write"))
        *(volatile int *)0xDEADBEEF000 = 1;
    else if (!strcmp(kind, "read"))
        *(volatile int *)0;
    else if (!strcmp(kind, "kernel"))
        *(volatile int *)0xFFFFFFFF80101000;
    else if (!strcmp(kind, "text"))
        *(volatile u8 *)&constant = 0;
    else if (!strcmp(kind, "exec"))
        ((void (*)(void))&data)();
    else if (!strcmp(kind, "stack"))
        return recurse(1);
    else if (!strcmp(kind, "hlt"))
        asm volatile("hlt");
    else if (!strcmp(kind, "ud"))
        asm volatile("ud2");
    else if (!strcmp(kind, "div"))
        asm volatile("div %0" : : "r"(0), "a"(1), "d"(0));
    printf("fault: nothing happened (`%s`)\n", kind);
    return 1;
}

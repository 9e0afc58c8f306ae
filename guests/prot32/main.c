/* prot32: a 32-bit protected-mode kernel with paging that tests the machine it runs on, reports, and stops. */
#include "kernel.h"
#include "multiboot.h"

#define COM1 0x3F8
#define LSR (COM1 + 5)
#define LSR_THRE 0x20
#define PIC1 0x20
#define PIC2 0xA0
#define PIT_COUNTER0 0x40
#define PIT_CONTROL 0x43
#define PIT_RATE_GENERATOR 0x34
#define PIT_DIVISOR 11932 /* of 1193182 Hz: 100 Hz */
#define PM1A_CNT 0x604
#define SLP_EN 0x2000
#define SLP_TYP_S5_VMX (5 << 10)
#define DEBUG_EXIT 0xF4
#define POST_CODE 0x80

static void put(void *unused, char c)
{
    (void)unused;
    if (c == '\n')
        put(NULL, '\r');
    while (!(inb(LSR) & LSR_THRE))
        ;
    outb(COM1, c);
}

void print(const char *text, ...)
{
    va_list arguments;
    va_start(arguments, text);
    format(put, NULL, text, arguments);
    va_end(arguments);
}

void power_off(void)
{
    outw(PM1A_CNT, SLP_EN | SLP_TYP_S5_VMX);
    outw(PM1A_CNT, SLP_EN); /* QEMU's S5 is sleep type 0 */
    for (int i = 0; i < 100000; i++) /* QEMU stops a moment after it was told to */
        inb(POST_CODE);
    outb(DEBUG_EXIT, 0);
    for (;;)
        asm volatile("cli; hlt");
}

/* Only the timer's interrupt is let through, as vector 32. */
static void timer_init(void)
{
    static const u8 words[][2] = {
        {PIC1, 0x11}, {PIC2, 0x11}, {PIC1 + 1, 32}, {PIC2 + 1, 40}, {PIC1 + 1, 4},
        {PIC2 + 1, 2}, {PIC1 + 1, 1}, {PIC2 + 1, 1}, {PIC1 + 1, 0xFE}, {PIC2 + 1, 0xFF},
        {PIT_CONTROL, PIT_RATE_GENERATOR}, {PIT_COUNTER0, PIT_DIVISOR & 0xFF}, {PIT_COUNTER0, PIT_DIVISOR >> 8},
    };
    for (u32 i = 0; i < sizeof words / sizeof *words; i++)
        outb(words[i][0], words[i][1]);
}

void kernel_main(u32 magic)
{
    int passed = 0;

    print("prot32: 32-bit protected mode, 4 MiB pages at 0x%x\n", KERNEL_BASE);
    if (magic != MULTIBOOT_BOOTLOADER_MAGIC)
        print("prot32: EAX was 0x%x at the entry, not multiboot's 0x%x\n", magic, MULTIBOOT_BOOTLOADER_MAGIC);
    descriptors_init();
    kernel_directory[0] = 0; /* from here on, address 0 faults */
    load_cr3(kernel_directory);
    timer_init();

    for (int i = 0; i < test_count; i++) {
        bool ok = tests[i].run();
        print("%-4s %s\n", ok ? "ok" : "FAIL", tests[i].name);
        passed += ok;
    }
    print("prot32: %d of %d tests ok\n", passed, test_count);
    power_off();
}

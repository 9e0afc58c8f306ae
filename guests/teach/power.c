/* teach: switching the machine off, and resetting it. */
#include "kernel.h"

#define PM1A_CNT 0x604 /* where QEMU's PC and vmx put the ACPI PM1a control register */
#define SLP_EN 0x2000
#define SLP_TYP_S5_VMX (5 << 10)
#define SLP_TYP_S5_QEMU (0 << 10)
#define DEBUG_EXIT 0xF4
#define POST_CODE 0x80
#define I8042_COMMAND 0x64
#define I8042_PULSE_RESET 0xFE

static _Noreturn void stop(void)
{
    for (;;)
        asm volatile("cli; hlt");
}

/* The sleep type that means S5 is written in the DSDT's AML, which this kernel does not interpret: it tries
 * the two that its machines use. Where neither works, QEMU's debug-exit device may be there. */
void power_off(void)
{
    outw(PM1A_CNT, SLP_EN | SLP_TYP_S5_VMX);
    outw(PM1A_CNT, SLP_EN | SLP_TYP_S5_QEMU);
    for (int i = 0; i < 100000; i++) /* QEMU stops a moment after it was told to */
        inb(POST_CODE);
    outb(DEBUG_EXIT, 0);
    stop();
}

void power_reset(void)
{
    outb(I8042_COMMAND, I8042_PULSE_RESET);
    stop();
}

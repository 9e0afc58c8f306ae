/* teach: a small kernel in long mode. This file is the order in which it comes to life. */
#include "kernel.h"

char command_line[256];

void kernel_main(u32 magic, u32 info_address)
{
    const struct multiboot_info *info = direct(info_address);

    console_init();
    if (magic != MULTIBOOT_BOOTLOADER_MAGIC)
        panic("EAX was 0x%x at the entry, not multiboot's 0x%x: start it with a multiboot-1 loader", magic,
              MULTIBOOT_BOOTLOADER_MAGIC);
    if (info->flags & MULTIBOOT_INFO_CMDLINE)
        copy_string(command_line, direct(info->cmdline), sizeof command_line);

    descriptors_init();
    pages_init(info); /* the loader's information may be overwritten from the first page_allocate() on */
    vm_init();
    interrupts_init();
    timer_init();
    syscall_init();
    process_init();

    kprintf("teach: long mode, %lu MiB free, kernel %lu KiB at 0x%lx, %d Hz\n",
            (ulong)(pages_free * PAGE_SIZE >> 20), (ulong)(kernel_end - kernel_text) / 1024, (ulong)kernel_text,
            TICKS_PER_SECOND);
    if (process_spawn("sh", "", 0) < 0)
        panic("cannot start the first process, sh");
    idle();
}

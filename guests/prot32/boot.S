# prot32: from the multiboot loader to C code at 3 GiB, through two 4 MiB pages.
# Intel SDM volume 3, "32-Bit Paging": CR4.PSE, CR3, CR0.PG.

        .set MB_MAGIC, 0x1BADB002
        .set MB_FLAGS, 0x0
        .set KERNEL_BASE, 0xC0000000

        .set CR4_PSE, 1 << 4
        .set CR0_PG, 1 << 31
        .set CR0_WP, 1 << 16
        .set PAGE_4M, 0x83                      # present, writable, page size

        .section .multiboot, "a"
        .balign 4
        .long   MB_MAGIC, MB_FLAGS, -(MB_MAGIC + MB_FLAGS)

        .section .boot, "ax"
        .globl  start
start:
        cli
        cld
        # The first 4 MiB are seen at 0 (until kernel_main takes that away) and at 3 GiB.
        movl    $PAGE_4M, kernel_directory - KERNEL_BASE
        movl    $PAGE_4M, kernel_directory - KERNEL_BASE + 768 * 4
        mov     %cr4, %ecx
        or      $CR4_PSE, %ecx
        mov     %ecx, %cr4
        mov     $(kernel_directory - KERNEL_BASE), %ecx
        mov     %ecx, %cr3
        mov     %cr0, %ecx
        or      $(CR0_PG | CR0_WP), %ecx
        mov     %ecx, %cr0
        mov     $higher_half, %ecx
        jmp     *%ecx

        .text
higher_half:
        mov     $boot_stack_top, %esp
        xor     %ebp, %ebp
        push    %eax                            # kernel_main(magic)
        call    kernel_main
1:      hlt
        jmp     1b

        .bss
        .balign 4096
        .globl  kernel_directory
kernel_directory:
        .skip   4096
        .skip   8192
boot_stack_top:

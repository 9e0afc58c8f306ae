# teach: from the multiboot loader's 32-bit protected mode to 64-bit C code in the higher half.
#
# Multiboot specification, "Machine state": EAX holds the magic number, EBX the address of the information
# structure, paging is off, A20 is on, there is no stack. Intel SDM volume 3, "Initializing IA-32e Mode":
# CR4.PAE, CR3, EFER.LME, then CR0.PG.

        .set MB_MAGIC, 0x1BADB002
        .set MB_FLAGS, 0x3                      # page-aligned modules, memory information
        .set KERNEL_BASE, 0xFFFFFFFF80000000

        .set CR4_PAE, 1 << 5
        .set CR0_PG, 1 << 31
        .set CR0_WP, 1 << 16
        .set MSR_EFER, 0xC0000080
        .set EFER_LME, 1 << 8
        .set PRESENT_WRITE, 0x3
        .set PAGE_2M, 0x83                      # present, writable, page size

        .section .multiboot, "a"
        .balign 4
        .long   MB_MAGIC, MB_FLAGS, -(MB_MAGIC + MB_FLAGS)

        .section .boot, "ax"
        .code32
        .globl start
start:
        cli
        cld
        mov     $(boot_stack_top - KERNEL_BASE), %esp
        mov     %eax, %ebp                      # the loader's two values, past the CPUIDs below
        mov     %ebx, %edi

        mov     $0x80000000, %eax               # is there a processor with long mode?
        cpuid
        cmp     $0x80000001, %eax
        jb      no_long_mode
        mov     $0x80000001, %eax
        cpuid
        test    $(1 << 29), %edx
        jz      no_long_mode

        # One page directory maps the first GiB with 2 MiB pages. It is seen at three places: at 0 (this code),
        # at 0xFFFF800000000000 (all physical memory), and at KERNEL_BASE.
        mov     $(boot_pd - KERNEL_BASE), %esi
        mov     $PAGE_2M, %eax
        mov     $512, %ecx
1:      mov     %eax, (%esi)
        add     $0x200000, %eax
        add     $8, %esi
        loop    1b
        movl    $(boot_pd - KERNEL_BASE + PRESENT_WRITE), boot_pdpt_low - KERNEL_BASE
        movl    $(boot_pd - KERNEL_BASE + PRESENT_WRITE), boot_pdpt_high - KERNEL_BASE + 510 * 8
        movl    $(boot_pdpt_low - KERNEL_BASE + PRESENT_WRITE), boot_pml4 - KERNEL_BASE
        movl    $(boot_pdpt_low - KERNEL_BASE + PRESENT_WRITE), boot_pml4 - KERNEL_BASE + 256 * 8
        movl    $(boot_pdpt_high - KERNEL_BASE + PRESENT_WRITE), boot_pml4 - KERNEL_BASE + 511 * 8

        mov     %cr4, %eax
        or      $CR4_PAE, %eax
        mov     %eax, %cr4
        mov     $(boot_pml4 - KERNEL_BASE), %eax
        mov     %eax, %cr3
        mov     $MSR_EFER, %ecx
        rdmsr
        or      $EFER_LME, %eax
        wrmsr
        mov     %cr0, %eax
        or      $(CR0_PG | CR0_WP), %eax
        mov     %eax, %cr0                      # compatibility mode from here on

        lgdt    boot_gdt_pointer
        ljmp    $0x08, $long_mode

no_long_mode:
        mov     $no_long_mode_text, %esi
        mov     $0x3F8, %dx
1:      lodsb
        out     %al, %dx
        test    %al, %al
        jnz     1b
2:      hlt
        jmp     2b
no_long_mode_text:
        .asciz  "teach: this processor has no long mode (CPUID 80000001H:EDX bit 29 is 0)\r\n"

        .balign 8
boot_gdt:
        .quad   0
        .quad   0x00209A0000000000              # 64-bit code, ring 0
boot_gdt_pointer:
        .word   boot_gdt_pointer - boot_gdt - 1
        .long   boot_gdt

        .code64
long_mode:
        xor     %eax, %eax                      # null data segments: 64-bit mode does not use them
        mov     %eax, %ds
        mov     %eax, %es
        mov     %eax, %ss
        mov     %eax, %fs
        mov     %eax, %gs
        movabs  $higher_half, %rax
        jmp     *%rax

        .text
higher_half:
        mov     $boot_stack_top, %rsp
        mov     %edi, %esi                      # kernel_main(magic, physical address of the information)
        mov     %ebp, %edi
        xor     %ebp, %ebp                      # a zero frame pointer ends a stack trace
        call    kernel_main
1:      hlt
        jmp     1b

        .bss
        .balign 4096
boot_pml4:
        .skip   4096
boot_pdpt_low:
        .skip   4096
boot_pdpt_high:
        .skip   4096
boot_pd:
        .skip   4096
boot_stack:
        .skip   8192
boot_stack_top:

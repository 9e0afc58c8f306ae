# One port write per three instructions: what a VM exit to the Python hypervisor costs.

        .section .start, "ax"
        .globl start
start:
        mov     $200000, %ecx
1:      out     %al, $0x80
        dec     %ecx
        jnz     1b
        mov     $0xF4, %edx
        out     %al, %dx
        cli
2:      hlt
        jmp     2b
        .section .note.GNU-stack, "", @progbits

# Entered in 64-bit mode with 4 GiB mapped one to one. Calls the loop, leaves its result in RAX, and ends the
# machine through isa-debug-exit.

        .section .start, "ax"
        .globl start
start:
        mov     $0x1F0000, %esp
        call    loop
        mov     $0xF4, %edx
        out     %al, %dx
        cli
1:      hlt
        jmp     1b
        .section .note.GNU-stack, "", @progbits

# The first instructions of a user program: RDI points to its argument string, RSP is at the top of its stack.
        .section .text.start, "ax"
        .globl  start
start:
        xor     %ebp, %ebp
        call    main
        mov     %eax, %edi
        mov     $1, %eax                        # SYS_EXIT
        syscall

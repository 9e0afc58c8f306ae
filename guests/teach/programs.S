# teach: the user programs, whole ELF files, and the table that process.c looks names up in.

        .macro  program name
        .section .rodata
        .balign 16
1:      .incbin "user/\name"
2:
3:      .asciz  "\name"
        .section .rodata.table, "a"
        .quad   3b, 1b, 2b                      # struct program
        .endm

        .section .rodata.table, "a"
        .balign 8
        .globl  programs
programs:
        program sh
        program hello
        program primes
        program counter
        program fault
        program pagetest
        program cpuid
        program exits
        .section .rodata.table, "a"
        .globl  programs_end
programs_end:

# teach: the ways into and out of the kernel. Interrupt and exception stubs, SYSCALL, context switch.

        .text

# --- Exceptions and interrupts: Intel SDM volume 3, "64-Bit Mode Stack Frame".
# The processor has pushed SS, RSP, RFLAGS, CS, RIP and, for some vectors, an error code. Each stub makes
# the frame alike (a zero where there is no error code), then adds its vector. See struct trap_frame.

        .macro  stub vector
        .balign 16
        .if     (\vector == 8) || ((\vector >= 10) && (\vector <= 14)) || (\vector == 17) || (\vector == 21)
        .else
        push    $0
        .endif
        push    $\vector
        jmp     trap_entry
        .endm

        .balign 16
        .globl  trap_stubs                      # 48 stubs, 16 bytes each
trap_stubs:
        .altmacro
        .set    i, 0
        .rept   48
        stub    %i
        .set    i, i + 1
        .endr
        .noaltmacro

trap_entry:
        push    %rax
        push    %rcx
        push    %rdx
        push    %rbx
        push    %rbp
        push    %rsi
        push    %rdi
        push    %r8
        push    %r9
        push    %r10
        push    %r11
        push    %r12
        push    %r13
        push    %r14
        push    %r15
        mov     %rsp, %rdi
        cld
        call    trap
        .globl  trap_return                     # a new process starts here, on a frame that process.c made
trap_return:
        pop     %r15
        pop     %r14
        pop     %r13
        pop     %r12
        pop     %r11
        pop     %r10
        pop     %r9
        pop     %r8
        pop     %rdi
        pop     %rsi
        pop     %rbp
        pop     %rbx
        pop     %rdx
        pop     %rcx
        pop     %rax
        add     $16, %rsp                       # vector and error code
        iretq

# --- System calls: number in RAX, arguments in RDI, RSI, RDX, result in RAX.
# SYSCALL leaves the user's RIP in RCX and RFLAGS in R11 and does not touch RSP. IF is 0 (IA32_FMASK), so
# with one processor a plain variable can hold the user's RSP, and no SWAPGS is needed.
        .globl  syscall_entry
syscall_entry:
        mov     %rsp, user_rsp(%rip)
        mov     tss + 4(%rip), %rsp             # TSS.RSP0: this process's kernel stack
        push    user_rsp(%rip)
        push    %r11
        push    %rcx
        push    %rbp                            # keeps RSP on 16 bytes at the call
        mov     %rax, %rcx
        cld
        call    system_call                     # (RDI, RSI, RDX, number); keeps RBX, RBP, R12-R15
        pop     %rbp
        pop     %rcx
        pop     %r11
        xor     %edi, %edi                      # no kernel values for the user
        xor     %esi, %esi
        xor     %edx, %edx
        xor     %r8d, %r8d
        xor     %r9d, %r9d
        xor     %r10d, %r10d
        pop     %rsp
        sysretq

# --- void switch_context(u64 *save_rsp, u64 load_rsp)
# Saves what the C calling convention says a function keeps, and continues on the other kernel stack.
        .globl  switch_context
switch_context:
        push    %rbx
        push    %rbp
        push    %r12
        push    %r13
        push    %r14
        push    %r15
        mov     %rsp, (%rdi)
        mov     %rsi, %rsp
        pop     %r15
        pop     %r14
        pop     %r13
        pop     %r12
        pop     %rbp
        pop     %rbx
        ret

        .bss
        .balign 8
user_rsp:
        .skip   8

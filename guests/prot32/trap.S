# prot32: the ways into and out of ring 0. See struct trap_frame for the order on the stack.

        .set KERNEL_DS, 0x10
        .set TSS_ESP0, 4

        .macro  stub vector
        .balign 16
        .if     (\vector == 8) || ((\vector >= 10) && (\vector <= 14)) || (\vector == 17)
        .else
        push    $0                              # stands for the error code that other vectors have
        .endif
        push    $\vector
        jmp     trap_entry
        .endm

        .text
        .balign 16
        .globl  trap_stubs, system_call_stub
trap_stubs:                                     # 48 stubs, 16 bytes each
        .altmacro
        .set    i, 0
        .rept   48
        stub    %i
        .set    i, i + 1
        .endr
        .noaltmacro
        .balign 16
system_call_stub:
        push    $0
        push    $0x80

trap_entry:
        pusha
        push    %ds
        push    %es
        mov     $KERNEL_DS, %eax
        mov     %eax, %ds
        mov     %eax, %es
        cld
        push    %esp
        call    trap
        add     $4, %esp
trap_return:
        pop     %es
        pop     %ds
        popa
        add     $8, %esp                        # vector and error code
        iret

# void enter_user(const struct trap_frame *frame): to ring 3, as the frame says. What the processor pushes when
# it comes back goes right below the registers saved here, because TSS.ESP0 is set to this place.
# void leave_user(void): makes enter_user return to its caller.
        .globl  enter_user, leave_user
enter_user:
        mov     4(%esp), %eax
        push    %ebx
        push    %esi
        push    %edi
        push    %ebp
        mov     %esp, tss + TSS_ESP0
        mov     %eax, %esp
        jmp     trap_return
leave_user:
        mov     tss + TSS_ESP0, %esp
        pop     %ebp
        pop     %edi
        pop     %esi
        pop     %ebx
        ret

# The target of the call gate: doubles its one parameter, which the processor copied from ring 3's stack
# (after the return address: EIP and CS, 8 bytes). The RET takes it off both stacks.
        .globl  call_gate_entry
call_gate_entry:
        mov     8(%esp), %eax
        add     %eax, %eax
        lret    $4

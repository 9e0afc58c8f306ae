# A hypervisor in machine code: one 64-bit guest, EPT, exits handled at HOST_RIP. Started in 64-bit mode with
# identity page tables at 0x10000, on a bare machine whose CPUID reports VMX. `make` assembles it.
#
# The guest makes ROUNDS rounds of CPUID, HLT and VMCALL, then a last VMCALL. The hypervisor leaves through
# isa-debug-exit with the number of exits, or with 0x60 and above when something is not as it should be.
# It counts exits by reason at COUNTS (doublewords).

        .set ROUNDS, 3
        .set VMXON_REGION, 0x20000
        .set VMCS_REGION, 0x21000
        .set EPT_PML4, 0x22000
        .set EPT_PDPT, 0x23000
        .set COUNTS, 0x24000
        .set HOST_STACK, 0x26000
        .set GUEST_STACK, 0x28000
        .set TSS, 0x1800
        .set LAST_CALL, 0xDEAD
        .set CPUID_MAGIC, 0x5A5A5A5A

        .macro expect_success code
        mov     $\code, %r15b
        jbe     failed
        .endm

        .macro field encoding, value
        mov     $\encoding, %eax
        mov     $\value, %rbx
        vmwrite %rbx, %rax
        expect_success 0x65
        .endm

        .macro field_from encoding, register
        mov     $\encoding, %eax
        vmwrite \register, %rax
        expect_success 0x66
        .endm

        # a control word: what is wanted, and what the capability MSR demands
        .macro control encoding, msr, wanted
        mov     $\msr, %ecx
        rdmsr
        or      $\wanted, %eax
        and     %edx, %eax
        mov     %eax, %ebx
        mov     $\encoding, %eax
        vmwrite %rbx, %rax
        expect_success 0x67
        .endm

        .code64
        .globl  _start
_start:
        mov     $1, %eax
        cpuid
        bt      $5, %ecx
        cmc
        expect_success 0x60             # CPUID reports VMX
        mov     $0x3A, %ecx             # IA32_FEATURE_CONTROL: locked, VMX outside SMX
        rdmsr
        and     $5, %eax
        cmp     $5, %eax
        mov     $0x61, %r15b
        jne     failed

        mov     %cr0, %rbx              # the bits that VMX fixes
        mov     $0x486, %ecx
        rdmsr
        or      %rax, %rbx
        mov     %rbx, %cr0
        mov     %cr4, %rbx
        mov     $0x488, %ecx
        rdmsr
        or      %rax, %rbx
        mov     %rbx, %cr4

        mov     $0x480, %ecx            # the revision identifier
        rdmsr
        and     $0x7FFFFFFF, %eax
        mov     %eax, VMXON_REGION
        mov     %eax, VMCS_REGION
        vmxon   vmxon_pointer(%rip)
        expect_success 0x62
        vmclear vmcs_pointer(%rip)
        expect_success 0x63
        vmptrld vmcs_pointer(%rip)
        expect_success 0x64

        # EPT: the first four GiB to themselves, in pages of 1 GiB, write-back
        movq    $EPT_PDPT + 7, EPT_PML4
        mov     $EPT_PDPT, %edi
        mov     $0xB7, %eax
        mov     $4, %ecx
1:      mov     %rax, (%rdi)
        add     $8, %rdi
        add     $0x40000000, %rax
        loop    1b

        control 0x4000, 0x48D, 0                        # pin-based
        control 0x4002, 0x48E, 0x80000080               # HLT exiting, secondary controls
        control 0x401E, 0x48B, 0x00000002               # EPT
        control 0x400C, 0x48F, 0x00000200               # host address-space size
        control 0x4012, 0x490, 0x00000200               # IA-32e mode guest
        field   0x201A, EPT_PML4 + 0x1E                 # EPTP: write-back, four levels
        field   0x4004, 0                               # exception bitmap
        field   0x2800, -1                              # VMCS link pointer

        mov     %cr0, %rdx
        field_from 0x6800, %rdx
        field_from 0x6C00, %rdx
        mov     %cr3, %rdx
        field_from 0x6802, %rdx
        field_from 0x6C02, %rdx
        mov     %cr4, %rdx
        field_from 0x6804, %rdx
        field_from 0x6C04, %rdx
        sgdt    table(%rip)
        mov     table+2(%rip), %rdx
        field_from 0x6816, %rdx
        field_from 0x6C0C, %rdx

        lea     selectors(%rip), %rsi                   # the same selectors for host and guest
        xor     %edi, %edi
1:      movzwl  (%rsi, %rdi), %edx
        lea     0x800(%rdi), %eax
        vmwrite %rdx, %rax
        expect_success 0x68
        cmp     $12, %edi
        je      2f                                      # the host has no LDTR
        lea     0xC00(%rdi), %eax
        cmp     $14, %edi
        jne     3f
        mov     $0xC0C, %eax                            # TR comes in its place
3:      vmwrite %rdx, %rax
        expect_success 0x69
2:      movzwl  rights(%rdi), %edx
        cmp     $0, %edx
        jne     4f
        mov     $0x10000, %edx                          # unusable
4:      lea     0x4814(%rdi), %eax
        vmwrite %rdx, %rax
        expect_success 0x6A
        lea     0x4800(%rdi), %eax
        mov     $0xFFFFFFFF, %edx
        vmwrite %rdx, %rax
        expect_success 0x6B
        add     $2, %edi
        cmp     $16, %edi
        jne     1b
        field   0x480E, 0x67                            # limit of TR
        field   0x480C, 0                               # and LDTR
        field   0x6814, TSS
        field   0x6C0A, TSS
        field   0x4810, 0x2F                            # limits of GDTR and IDTR
        field   0x4812, 0
        field   0x681A, 0x400                           # DR7
        field   0x681C, GUEST_STACK
        field   0x6820, 2                               # RFLAGS
        lea     guest(%rip), %rdx
        field_from 0x681E, %rdx
        field   0x6C14, HOST_STACK
        lea     vm_exit(%rip), %rdx
        field_from 0x6C16, %rdx
        vmlaunch
        mov     $0x70, %r15b                            # VM entry failed
        mov     $0x4400, %eax
        vmread  %rax, VMCS_REGION + 0x800               # the error number, for whoever looks
        jmp     failed

# --- HOST_RIP: the guest's general registers are still in the processor

vm_exit:
        push    %rdx
        push    %rcx
        push    %rbx
        push    %rax
        mov     $0x4402, %eax
        vmread  %rax, %rbx                              # the exit reason
        cmp     $64, %rbx
        mov     $0x71, %r15b
        jae     failed
        incl    COUNTS(, %rbx, 4)
        incl    total(%rip)
        cmp     $10, %ebx
        je      on_cpuid
        cmp     $12, %ebx
        je      advance                                 # HLT: as if it had been woken
        cmp     $18, %ebx
        je      on_vmcall
        mov     $0x72, %r15b
        jmp     failed

on_cpuid:                                               # EAX: the leaf, changed
        xorl    $CPUID_MAGIC, (%rsp)
        jmp     advance

on_vmcall:
        cmpq    $LAST_CALL, (%rsp)
        je      finish
        addq    $1, (%rsp)                              # RAX is one more

advance:
        mov     $0x440C, %eax
        vmread  %rax, %rcx                              # the instruction's length
        mov     $0x681E, %eax
        vmread  %rax, %rbx
        add     %rcx, %rbx
        vmwrite %rbx, %rax
        expect_success 0x73
        pop     %rax
        pop     %rbx
        pop     %rcx
        pop     %rdx
        vmresume
        mov     $0x74, %r15b
        jmp     failed

finish:
        vmxoff
        expect_success 0x75
        mov     %cr4, %rax                              # VMXE can be cleared again
        btr     $13, %rax
        mov     %rax, %cr4
        mov     total(%rip), %al
        out     %al, $0xF4
failed:
        mov     %r15b, %al
        out     %al, $0xF4
        hlt

# --- the guest

guest:
        mov     $ROUNDS, %ebp
1:      mov     %ebp, %eax
        cpuid
        xor     $CPUID_MAGIC, %eax
        cmp     %eax, %ebp
        jne     wrong
        hlt
        mov     %rbp, %rax
        vmcall
        dec     %rax
        cmp     %rax, %rbp
        jne     wrong
        push    %rbp
        pop     %rbp
        dec     %ebp
        jnz     1b
        mov     $LAST_CALL, %eax
        vmcall
wrong:  ud2                                             # no IDT: a triple fault

        .balign 8
vmxon_pointer:  .quad VMXON_REGION
vmcs_pointer:   .quad VMCS_REGION
total:          .long 0
table:          .word 0
                .quad 0
selectors:      .word 0x18, 0x10, 0x18, 0x18, 0x18, 0x18, 0, 0x20      # ES CS SS DS FS GS LDTR TR
rights:         .word 0xC093, 0xA09B, 0xC093, 0xC093, 0xC093, 0xC093, 0, 0x8B

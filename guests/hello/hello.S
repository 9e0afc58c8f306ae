# hello: the smallest guest. A flat binary for 32-bit protected mode, loaded and entered at 0x100000.
#
# It uses no stack, no memory but its own text, and expects only flat CS and DS. It writes one line to the
# serial port and leaves by the isa-debug-exit device, so its host process ends with status (0 << 1) | 1 = 1.
# A multiboot header with load addresses follows the code, so that QEMU's -kernel takes the same file.

        .set COM1, 0x3F8
        .set LSR, COM1 + 5                      # line status register
        .set THRE, 0x20                         # transmitter holding register empty
        .set DEBUG_EXIT, 0xF4

        .set MB_MAGIC, 0x1BADB002
        .set MB_FLAGS, 0x00010000               # bit 16: the load addresses below are valid

        .code32
        .text
        .globl start
start:
        cld
        mov     $message, %esi
next:
        lodsb
        test    %al, %al
        jz      done
        mov     %al, %bl
wait:
        mov     $LSR, %dx
        in      %dx, %al
        test    $THRE, %al
        jz      wait
        mov     $COM1, %dx
        mov     %bl, %al
        out     %al, %dx
        jmp     next
done:
        xor     %eax, %eax
        mov     $DEBUG_EXIT, %dx
        out     %eax, %dx
stop:                                           # only reached where there is no such device
        cli
        hlt
        jmp     stop

message:
        .asciz  "hello from ring 0\r\n"

        .balign 4
header:
        .long   MB_MAGIC, MB_FLAGS, -(MB_MAGIC + MB_FLAGS)
        .long   header                          # physical address of this header
        .long   start, end, end                 # load address, end of the file, end of bss
        .long   start                           # entry point
        .balign 16
end:

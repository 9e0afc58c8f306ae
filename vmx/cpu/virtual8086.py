"""Virtual-8086 mode, and the virtual interrupt flag of CR4.VME and CR4.PVI.

Manual: chapter "8086 Emulation": "Entering Virtual-8086 Mode", "Leaving Virtual-8086 Mode", "Class 3 - Software
Interrupt Handling in Virtual-8086 Mode", "Protected-Mode Virtual Interrupts"; the operation sections of CLI,
STI, PUSHF, POPF, INT n and IRET. An 8086 program runs at privilege level 3 with IOPL deciding whether it may
touch IF: with IOPL 3 it may, with VME it gets VIF instead, otherwise the monitor gets #GP(0).
"""

from vmx.cpu.operands import drop, peek, push, raise_fault
from vmx.mmu.access import load_system
from vmx.mmu.mode import update_mode
from vmx.state.bits import shr
from vmx.state.flags import get_rflags, set_rflags
from vmx.state.jit import compiled
from vmx.state.processor import (
    CR0_PE,
    CR4_PVI,
    CR4_VME,
    CS,
    DS,
    ES,
    FLAG_IF,
    FLAG_IOPL,
    FLAG_RF,
    FLAG_TF,
    FLAG_VIF,
    FLAG_VIP,
    FLAG_VM,
    FS,
    GP,
    GS,
    JUMP,
    OK,
    PROCESSOR,
    RSP,
    SS,
    TR,
)
from vmx.state.unit import unit

SEGMENT_ACCESS, SEGMENT_LIMIT = 0xF3, 0xFFFF  # of all six segments
# flags that IRET takes from its image when it enters the mode or returns inside it with IOPL 3
MONITOR_FLAGS = 0x3F_7FD5  # IRETD at privilege level 0: everything that exists
PROGRAM_FLAGS = MONITOR_FLAGS & ~(FLAG_IOPL | FLAG_VM | FLAG_VIF | FLAG_VIP)
BITMAP_BYTES = 32  # the interrupt redirection bitmap ends where the I/O map begins
MAP_BASE_OFFSET = 102  # of the I/O map base in the TSS

TO_PROTECTED, TO_PROGRAM = 0, 1  # where a software interrupt goes


@compiled
def iopl_is_3(cpu):
    return 1 if cpu.rflags & FLAG_IOPL == FLAG_IOPL else 0


@compiled
def has_virtual_flag(cpu):
    """1 where CLI and STI change VIF: VME in this mode, PVI in protected mode at level 3, IOPL below 3 in both."""
    if cpu.cr0 & CR0_PE == 0 or cpu.cpl != 3 or iopl_is_3(cpu):
        return 0
    return 1 if cpu.cr4 & (CR4_VME if cpu.rflags & FLAG_VM else CR4_PVI) else 0


@compiled
def put_virtual_segment(cpu, register, selector):
    """A segment register as the mode has it: base 16 times the selector."""
    segment = cpu.segments[register]
    segment.selector = selector
    segment.base = selector << 4
    segment.limit = SEGMENT_LIMIT
    segment.access = SEGMENT_ACCESS


# --- flags --------------------------------------------------------------------------------------------------


@compiled
def _virtual_image(cpu):
    """FLAGS as an 8086 program with VME sees them: VIF in the place of IF, IOPL 3."""
    flags = get_rflags(cpu) & 0xFFFF & ~FLAG_IF | FLAG_IOPL
    return flags | FLAG_IF if cpu.rflags & FLAG_VIF else flags


@compiled
def _virtual_flags(cpu, image):
    """RFLAGS after the program with VME has loaded FLAGS from `image`; #GP(0) where the monitor must act."""
    if image & FLAG_TF or image & FLAG_IF and cpu.rflags & FLAG_VIP:
        raise_fault(cpu, GP, 0)
        return 0
    kept = 0xFFFF_0000 & ~(FLAG_VIF | FLAG_RF) | FLAG_IF | FLAG_IOPL
    flags = get_rflags(cpu) & kept | image & 0x4DD5
    return flags | FLAG_VIF if image & FLAG_IF else flags


@compiled
def _program_may(cpu, size):
    """For PUSHF, POPF and IRET with IOPL below 3: only VME's 16-bit forms go on."""
    if size == 2 and cpu.cr4 & CR4_VME:
        return OK
    return raise_fault(cpu, GP, 0)


@compiled
def push_virtual_flags(cpu, size):
    """PUSHF in virtual-8086 mode with IOPL below 3."""
    if _program_may(cpu, size):
        return cpu.fault
    return push(cpu, 2, _virtual_image(cpu))


@compiled
def pop_virtual_flags(cpu, size):
    """POPF in virtual-8086 mode with IOPL below 3."""
    if _program_may(cpu, size):
        return cpu.fault
    image = peek(cpu, 2, 0)
    if cpu.fault:
        return cpu.fault
    flags = _virtual_flags(cpu, image)
    if cpu.fault:
        return cpu.fault
    drop(cpu, 2)
    set_rflags(cpu, flags)
    return OK


# --- in and out ---------------------------------------------------------------------------------------------


@unit(PROCESSOR, "i64")
def enter_by_iret(cpu, image):
    """IRETD at privilege level 0 to an image with VM set: nine doublewords come from the stack."""
    offset = peek(cpu, 4, 0)
    if cpu.fault:
        return cpu.fault
    for i in range(1, 9):
        peek(cpu, 4, 4 * i)
        if cpu.fault:
            return cpu.fault
    if shr(offset, 16):
        return raise_fault(cpu, GP, 0)
    code = peek(cpu, 4, 4) & 0xFFFF
    pointer = peek(cpu, 4, 12)
    stack = peek(cpu, 4, 16) & 0xFFFF
    extra = peek(cpu, 4, 20) & 0xFFFF
    data = peek(cpu, 4, 24) & 0xFFFF
    f = peek(cpu, 4, 28) & 0xFFFF
    g = peek(cpu, 4, 32) & 0xFFFF
    set_rflags(cpu, image & MONITOR_FLAGS)
    put_virtual_segment(cpu, CS, code)
    put_virtual_segment(cpu, SS, stack)
    put_virtual_segment(cpu, ES, extra)
    put_virtual_segment(cpu, DS, data)
    put_virtual_segment(cpu, FS, f)
    put_virtual_segment(cpu, GS, g)
    cpu.gpr[RSP] = pointer
    cpu.next_rip = offset
    update_mode(cpu)
    return JUMP


@unit(PROCESSOR, "i64")
def return_inside(cpu, size):
    """IRET executed in virtual-8086 mode: back to the 8086 program."""
    if not iopl_is_3(cpu) and _program_may(cpu, size):
        return cpu.fault
    offset = peek(cpu, size, 0)
    if cpu.fault:
        return cpu.fault
    code = peek(cpu, size, size) & 0xFFFF
    if cpu.fault:
        return cpu.fault
    image = peek(cpu, size, 2 * size)
    if cpu.fault:
        return cpu.fault
    if shr(offset, 16):
        return raise_fault(cpu, GP, 0)
    if iopl_is_3(cpu):
        loaded = PROGRAM_FLAGS if size == 4 else PROGRAM_FLAGS & 0xFFFF
        flags = get_rflags(cpu) & ~loaded & ~FLAG_RF | image & loaded
    else:
        flags = _virtual_flags(cpu, image)
        if cpu.fault:
            return cpu.fault
    drop(cpu, 3 * size)
    put_virtual_segment(cpu, CS, code)
    set_rflags(cpu, flags)
    cpu.next_rip = offset
    return JUMP


# --- software interrupts ------------------------------------------------------------------------------------


@compiled
def _redirected(cpu, vector):
    """1 when the redirection bitmap gives the vector to the 8086 program's own handler."""
    tr = cpu.segments[TR]
    if tr.access & 0xD != 9 or tr.limit < MAP_BASE_OFFSET + 1:
        raise_fault(cpu, GP, 0)
        return 0
    base = load_system(cpu, tr.base + MAP_BASE_OFFSET, 2)
    if cpu.fault:
        return 0
    at = base - BITMAP_BYTES + (vector >> 3)
    if at < 0 or at > tr.limit:
        raise_fault(cpu, GP, 0)
        return 0
    byte = load_system(cpu, tr.base + at, 1)
    return 0 if byte >> (vector & 7) & 1 else 1


@compiled
def software_interrupt_target(cpu, vector):
    """INT n in virtual-8086 mode: TO_PROTECTED or TO_PROGRAM, or cpu.fault is set (#GP(0) for the monitor)."""
    if cpu.cr4 & CR4_VME:
        redirected = _redirected(cpu, vector)
        if cpu.fault or redirected:
            return TO_PROGRAM
    if not iopl_is_3(cpu):
        raise_fault(cpu, GP, 0)
    return TO_PROTECTED


@unit(PROCESSOR, "i64")
def interrupt_program(cpu, vector):
    """INT n through the 8086 program's interrupt table at linear address 0. Returns JUMP or a status."""
    pointer = load_system(cpu, vector << 2, 4)
    if cpu.fault:
        return cpu.fault
    program_owns_if = iopl_is_3(cpu)
    flags = get_rflags(cpu) & 0xFFFF if program_owns_if else _virtual_image(cpu)
    before = cpu.gpr[RSP]
    if push(cpu, 2, flags) == 0 and push(cpu, 2, cpu.segments[CS].selector) == 0:
        push(cpu, 2, cpu.next_rip)
    if cpu.fault:
        cpu.gpr[RSP] = before
        return cpu.fault
    put_virtual_segment(cpu, CS, shr(pointer, 16))
    cpu.rflags &= ~(FLAG_TF | FLAG_RF | (FLAG_IF if program_owns_if else FLAG_VIF))
    cpu.next_rip = pointer & 0xFFFF
    return JUMP

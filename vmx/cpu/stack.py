"""Stack instructions: PUSH POP PUSHA POPA PUSHF POPF ENTER LEAVE."""

from vmx.cpu.operands import (
    drop,
    effective_address,
    gpr_read,
    gpr_write,
    peek,
    push,
    read_operand,
    segmented_address,
    set_stack_pointer,
    stack_fault,
    stack_linear,
    stack_mask,
)
from vmx.cpu.virtual8086 import pop_virtual_flags, push_virtual_flags
from vmx.mmu.access import check_write, load, store
from vmx.mmu.mode import update_privilege
from vmx.state.flags import get_rflags, set_rflags
from vmx.state.jit import compiled
from vmx.state.processor import (
    CR0_PE,
    DECODED,
    FLAG_AC,
    FLAG_DF,
    FLAG_ID,
    FLAG_IF,
    FLAG_IOPL,
    FLAG_NT,
    FLAG_RF,
    FLAG_TF,
    FLAG_VIF,
    FLAG_VIP,
    FLAG_VM,
    FLAT,
    JUMP,
    OK,
    OPERAND_MEMORY,
    PROCESSOR,
    RBP,
    RSP,
)
from vmx.state.unit import unit

ALWAYS_CHANGED = (
    0x8D5 | FLAG_TF | FLAG_DF | FLAG_NT | FLAG_AC | FLAG_ID
)  # by POPF at any privilege; 0x8D5: status flags


@compiled
def _push(cpu, d):
    value = read_operand(cpu, d, d.dst)
    if cpu.fault:
        return cpu.fault
    return push(cpu, d.size, value)


@compiled
def _pop(cpu, d):
    size = d.size
    value = peek(cpu, size, 0)
    if cpu.fault:
        return cpu.fault
    if d.dst != OPERAND_MEMORY:
        drop(cpu, size)
        gpr_write(cpu, d.dst, size, value)
        return OK
    # the address of a memory destination is computed with RSP after the pop
    before = cpu.gpr[RSP]
    drop(cpu, size)
    offset = effective_address(cpu, d)
    linear = offset
    if d.segment != FLAT:
        linear = segmented_address(cpu, d.segment, offset, size, 1)
    if cpu.fault == 0:
        store(cpu, linear, size, value)
    if cpu.fault:
        cpu.gpr[RSP] = before
    return cpu.fault


@compiled
def _push_all(cpu, d):
    size = d.size
    before = cpu.gpr[RSP]
    for number in range(8):
        value = before if number == RSP else cpu.gpr[number]
        if push(cpu, size, value & (0xFFFF if size == 2 else 0xFFFF_FFFF)):
            cpu.gpr[RSP] = before
            return cpu.fault
    return OK


@compiled
def _pop_all(cpu, d):
    size = d.size
    peek(cpu, size, 7 * size)  # nothing is changed when a later one would fault
    for i in range(8):
        if cpu.fault == 0:
            peek(cpu, size, i * size)
    if cpu.fault:
        return cpu.fault
    for i in range(8):
        if 7 - i != RSP:
            gpr_write(cpu, 7 - i, size, peek(cpu, size, i * size))
    drop(cpu, 8 * size)
    return OK


@compiled
def _program_without_iopl(cpu):
    """Virtual-8086 mode with IOPL below 3: PUSHF and POPF have their own rules."""
    return cpu.rflags & FLAG_VM != 0 and cpu.rflags & FLAG_IOPL != FLAG_IOPL


@compiled
def _pushf(cpu, d):
    if _program_without_iopl(cpu):
        return push_virtual_flags(cpu, d.size)
    return push(cpu, d.size, get_rflags(cpu) & ~(FLAG_VM | FLAG_RF))


@compiled
def _popf(cpu, d):
    if _program_without_iopl(cpu):
        return pop_virtual_flags(cpu, d.size)
    value = peek(cpu, d.size, 0)
    if cpu.fault:
        return cpu.fault
    changed = ALWAYS_CHANGED
    iopl = (cpu.rflags & FLAG_IOPL) >> 12
    if cpu.rflags & FLAG_VM:
        changed |= FLAG_IF
    elif cpu.cpl == 0:
        changed |= FLAG_IF | FLAG_IOPL
    elif cpu.cpl <= iopl:
        changed |= FLAG_IF
    if d.size == 2:
        changed &= 0xFFFF
    old = get_rflags(cpu) & ~FLAG_RF
    if cpu.rflags & FLAG_VM == 0 and d.size != 2:
        old &= ~(FLAG_VIP | FLAG_VIF) if cpu.cpl == 0 and cpu.cr0 & CR0_PE else -1
    drop(cpu, d.size)
    set_rflags(cpu, old & ~changed | value & changed)
    if (old ^ value) & changed & (FLAG_IF | FLAG_TF | FLAG_AC) == 0:
        return OK
    update_privilege(cpu)
    cpu.attention = 1
    return JUMP


@compiled
def _enter(cpu, d):
    size = d.size
    allocated = d.immediate & 0xFFFF
    level = (d.immediate >> 32) & 31
    pointer_mask = stack_mask(cpu)
    before = cpu.gpr[RSP]
    frame_pointer = cpu.gpr[RBP]
    if push(cpu, size, gpr_read(cpu, RBP, size)):
        return cpu.fault
    frame = cpu.gpr[RSP] & pointer_mask
    for _ in range(1, level):
        frame_pointer = frame_pointer & ~pointer_mask | (frame_pointer - size) & pointer_mask
        linear = stack_linear(cpu, frame_pointer & pointer_mask, size, 0)
        value = 0
        if cpu.fault == 0:
            value = load(cpu, linear, size)
        if cpu.fault == 0:
            push(cpu, size, value)
        if cpu.fault:
            cpu.gpr[RSP] = before
            return cpu.fault
    if level > 0 and push(cpu, size, frame):
        cpu.gpr[RSP] = before
        return cpu.fault
    set_stack_pointer(cpu, cpu.gpr[RSP] - allocated)
    # the manual: a write to the new top of the stack must be possible
    linear = stack_linear(cpu, cpu.gpr[RSP] & pointer_mask, size, 1)
    if cpu.fault == 0:
        check_write(cpu, linear, size)
    if cpu.fault:
        stack_fault(cpu)
        cpu.gpr[RSP] = before
        return cpu.fault
    gpr_write(cpu, RBP, size, frame)
    return OK


@compiled
def _leave(cpu, d):
    before = cpu.gpr[RSP]
    set_stack_pointer(cpu, cpu.gpr[RBP])
    value = peek(cpu, d.size, 0)
    if cpu.fault:
        cpu.gpr[RSP] = before
        return cpu.fault
    drop(cpu, d.size)
    gpr_write(cpu, RBP, d.size, value)
    return OK


@unit(PROCESSOR, DECODED)
def group_stack(cpu, d):
    """Operations 0..7 of the STACK group."""
    op = d.op & 31
    if op == 0:
        return _push(cpu, d)
    if op == 1:
        return _pop(cpu, d)
    if op == 2:
        return _push_all(cpu, d)
    if op == 3:
        return _pop_all(cpu, d)
    if op == 4:
        return _pushf(cpu, d)
    if op == 5:
        return _popf(cpu, d)
    if op == 6:
        return _enter(cpu, d)
    return _leave(cpu, d)

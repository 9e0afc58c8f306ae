"""Near control transfers: JMP CALL RET Jcc LOOP JCXZ ("Control Transfer Instructions").

A target that is not canonical (64-bit mode) or beyond the CS limit is #GP(0) before anything changes.
"""

from vmx.cpu.alu import condition
from vmx.cpu.operands import drop, gpr_read, gpr_write, mask, peek, push, raise_fault, read_operand
from vmx.state.bits import ult
from vmx.state.flags import zero
from vmx.state.jit import compiled
from vmx.state.processor import CS, DECODED, GP, JUMP, PROCESSOR, RCX
from vmx.state.unit import unit


@compiled
def canonical(address):
    """1 when bits 63:47 are equal."""
    return 1 if (address << 16) >> 16 == address else 0


@compiled
def target_allowed(cpu, target):
    """1 when a near branch may go there; else #GP(0) is recorded."""
    if cpu.code_mode == 2:
        if canonical(target):
            return 1
    elif not ult(cpu.segments[CS].limit, target):
        return 1
    raise_fault(cpu, GP, 0)
    return 0


@compiled
def _relative(cpu, d):
    """The target of a relative branch, at the operand size."""
    return (cpu.next_rip + d.immediate) & mask(d.size)


@compiled
def jump(cpu, target):
    """Go to a checked near target."""
    if not target_allowed(cpu, target):
        return cpu.fault
    cpu.next_rip = target
    return JUMP


@compiled
def _call(cpu, d, target):
    if not target_allowed(cpu, target):
        return cpu.fault
    if push(cpu, d.size, cpu.next_rip):
        return cpu.fault
    cpu.next_rip = target
    return JUMP


@compiled
def _ret(cpu, d):
    target = peek(cpu, d.size, 0)
    if cpu.fault:
        return cpu.fault
    if not target_allowed(cpu, target):
        return cpu.fault
    drop(cpu, d.size + (d.immediate & 0xFFFF))  # without an immediate it is 0
    cpu.next_rip = target
    return JUMP


@compiled
def _loop(cpu, d, op):
    """LOOP LOOPE LOOPNE (4..6), JCXZ (7)."""
    count = gpr_read(cpu, RCX, d.address_size)
    if op == 7:
        taken = count == 0
    else:
        count = (count - 1) & mask(d.address_size)
        taken = count != 0
        if op == 5:
            taken = taken and zero(cpu) == 1
        elif op == 6:
            taken = taken and zero(cpu) == 0
    if taken and not target_allowed(cpu, _relative(cpu, d)):
        return cpu.fault
    if op != 7:
        gpr_write(cpu, RCX, d.address_size, count)
    if taken:
        cpu.next_rip = _relative(cpu, d)
    return JUMP


@unit(PROCESSOR, DECODED)
def group_control(cpu, d):
    """Operations 0..9 of the CONTROL group."""
    op = d.op & 31
    if op == 0:
        return jump(cpu, _relative(cpu, d))
    if op == 1:
        return _call(cpu, d, _relative(cpu, d))
    if op == 2:
        return jump(cpu, _relative(cpu, d)) if condition(cpu, d.reg) else JUMP
    if op == 3:
        return _ret(cpu, d)
    if op <= 7:
        return _loop(cpu, d, op)
    target = read_operand(cpu, d, d.dst)
    if cpu.fault:
        return cpu.fault
    if op == 8:
        return jump(cpu, target)
    return _call(cpu, d, target)

"""Shifts and rotates: ROL ROR RCL RCR SHL SHR SAL SAR SHLD SHRD.

A count of zero (after masking to 5 or 6 bits) changes no flag. OF for counts above 1 is undefined by the
manual; here it is what the formula for a count of 1 gives, as on Intel's processors.
"""

from vmx.cpu.alu import set_logic_flags
from vmx.cpu.operands import gpr_read, mask, read_for_update, sign_extend, write_operand
from vmx.state.bits import MIN64, shr, urem
from vmx.state.flags import BIT62, carry
from vmx.state.jit import compiled
from vmx.state.processor import DECODED, OK, OPERAND_IMMEDIATE, PROCESSOR, RCX
from vmx.state.unit import unit


@compiled(inline=True)
def _set_cf_of(cpu, cf, of):
    """CF and OF alone; the other flags keep their value (rotates)."""
    cpu.flag_carries = cpu.flag_carries & ~(MIN64 | BIT62) | cf << 63 | (cf ^ of) << 62


@compiled
def _rotate(cpu, op, a, count, size):
    """ROL ROR RCL RCR: the result; `count` is masked and not zero."""
    bits = size << 3
    top = bits - 1
    if op <= 1:
        n = count & top
        if op == 1:
            n = (bits - n) & top
        result = a if n == 0 else (a << n | shr(a, bits - n)) & mask(size)
        if op == 0:
            cf = result & 1
            _set_cf_of(cpu, cf, cf ^ (shr(result, top) & 1))
        else:
            cf = shr(result, top) & 1
            _set_cf_of(cpu, cf, cf ^ (shr(result, top - 1) & 1))
        return result
    n = urem(count, bits + 1)
    cf = carry(cpu)
    if n == 0:
        if op == 2:
            _set_cf_of(cpu, cf, cf ^ (shr(a, top) & 1))
        else:
            _set_cf_of(cpu, cf, (shr(a, top) ^ shr(a, top - 1)) & 1)
        return a
    if op == 2:
        result = a << n if n < 64 else 0
        result |= cf << (n - 1)
        if n > 1:
            result |= shr(a, bits + 1 - n)
        cf = shr(a, bits - n) & 1
        result &= mask(size)
        _set_cf_of(cpu, cf, cf ^ (shr(result, top) & 1))
        return result
    result = shr(a, n) if n < 64 else 0
    result |= cf << (bits - n)
    if n > 1:
        result |= a << (bits + 1 - n)
    cf = shr(a, n - 1) & 1
    result &= mask(size)
    _set_cf_of(cpu, cf, (shr(result, top) ^ shr(result, top - 1)) & 1)
    return result


@compiled
def shift(cpu, op, a, count, size):
    """SHL SHR SAL SAR (4..7): the result; `count` is masked and not zero, `a` zero-extended."""
    bits = size << 3
    top = bits - 1
    if op == 5:
        result = shr(a, count)
        cf = shr(a, count - 1) & 1
        of = shr(a, top) & 1
    elif op == 7:
        value = sign_extend(a, size)
        result = (value >> count) & mask(size)
        cf = (value >> (count - 1)) & 1
        of = 0
    else:
        result = (a << count) & mask(size)
        cf = shr(a, bits - count) & 1 if count <= bits else 0
        of = cf ^ (shr(result, top) & 1)
    cpu.flag_result = sign_extend(result, size)
    cpu.flag_carries = cf << 63 | (cf ^ of) << 62
    return result


@compiled
def _shift(cpu, d, op):
    a = read_for_update(cpu, d, d.dst)
    if cpu.fault:
        return cpu.fault
    size = d.size
    count = d.immediate if d.src == OPERAND_IMMEDIATE else cpu.gpr[RCX]
    count &= 63 if size == 8 else 31
    if count == 0:
        write_operand(cpu, d, d.dst, a)
        return cpu.fault
    saved_result, saved_carries = cpu.flag_result, cpu.flag_carries
    result = _rotate(cpu, op, a, count, size) if op < 4 else shift(cpu, op, a, count, size)
    write_operand(cpu, d, d.dst, result)
    if cpu.fault:
        cpu.flag_result, cpu.flag_carries = saved_result, saved_carries
    return cpu.fault


@compiled
def _double_shift(cpu, d, op):
    """SHLD and SHRD. 16-bit counts above 16 are undefined by the manual; here, as on Intel's processors, the
    shift goes on through the concatenation destination:source:destination."""
    a = read_for_update(cpu, d, d.dst)
    if cpu.fault:
        return cpu.fault
    size = d.size
    bits = size << 3
    b = gpr_read(cpu, d.src, size)
    by_immediate = d.opcode & 1 == 0
    count = (d.immediate if by_immediate else cpu.gpr[RCX]) & (63 if size == 8 else 31)
    if count == 0:
        write_operand(cpu, d, d.dst, a)
        return cpu.fault
    if size == 2 and count > 16:
        if op == 8:
            wide = a << 32 | b << 16 | a
            result = shr(wide << count, 32) & 0xFFFF
            cf = shr(wide, 48 - count) & 1
        else:
            wide = a << 32 | b << 16 | a
            result = shr(wide, count) & 0xFFFF
            cf = shr(wide, count - 1) & 1
    elif op == 8:
        result = (a << count | shr(b, bits - count)) & mask(size)
        cf = shr(a, bits - count) & 1
    else:
        result = (shr(a, count) | b << (bits - count)) & mask(size)
        cf = shr(a, count - 1) & 1
    write_operand(cpu, d, d.dst, result)
    if cpu.fault:
        return cpu.fault
    of = shr(a ^ result, bits - 1) & 1
    set_logic_flags(cpu, result, size)
    cpu.flag_carries = cf << 63 | (cf ^ of) << 62
    return OK


@unit(PROCESSOR, DECODED)
def group_shift(cpu, d):
    """Operations 0..9 of the SHIFT group."""
    op = d.op & 31
    return _shift(cpu, d, op) if op < 8 else _double_shift(cpu, d, op)

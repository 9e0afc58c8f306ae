"""Bit tests and scans, multiplication and division, decimal adjustment, flag instructions.

Flags that the manual leaves undefined keep a value that a real processor shows: BSF and BSR with source zero
leave the destination as it was.
"""

from vmx.cpu.alu import set_logic_flags
from vmx.cpu.operands import (
    effective_address,
    gpr_read,
    gpr_write,
    mask,
    raise_fault,
    read_for_update,
    read_operand,
    segmented_address,
    sign_extend,
    write_operand,
)
from vmx.mmu.access import load, load_for_update, store
from vmx.state.bits import MIN64, leading_zeros, popcount, shr, smulh, trailing_zeros, udiv, ult, umulh, urem
from vmx.state.flags import BIT62, adjust, carry, get_rflags, set_status_flags, status_flags
from vmx.state.jit import compiled
from vmx.state.processor import (
    DE,
    DECODED,
    FLAG_AF,
    FLAG_CF,
    FLAG_DF,
    FLAG_OF,
    FLAT,
    OK,
    OPERAND_IMMEDIATE,
    OPERAND_MEMORY,
    PROCESSOR,
    RAX,
    RDX,
)
from vmx.state.unit import unit


@compiled
def set_carry(cpu, value):
    """CF alone; OF keeps its value."""
    of = (shr(cpu.flag_carries, 63) ^ shr(cpu.flag_carries, 62)) & 1
    carries = cpu.flag_carries & ~(MIN64 | BIT62)
    if value:
        carries |= MIN64
    if value != of:
        carries |= BIT62
    cpu.flag_carries = carries


# --- bit tests ----------------------------------------------------------------------------------------------


@compiled
def _changed(op, value, bit):
    """BT BTS BTR BTC (0..3)."""
    if op == 1:
        return value | bit
    if op == 2:
        return value & ~bit
    if op == 3:
        return value ^ bit
    return value


@compiled
def _bit_string(cpu, d, op):
    """A register bit offset into memory is signed and reaches beyond the operand."""
    size = d.size
    offset = sign_extend(cpu.gpr[d.src], size)
    displaced = effective_address(cpu, d) + (offset >> 3 & -size)
    displaced &= mask(d.address_size)
    linear = displaced
    if d.segment != FLAT:
        linear = segmented_address(cpu, d.segment, displaced, size, op != 0)
    if cpu.fault:
        return cpu.fault
    value = load(cpu, linear, size) if op == 0 else load_for_update(cpu, linear, size)
    if cpu.fault:
        return cpu.fault
    number = offset & ((size << 3) - 1)
    if op != 0:
        store(cpu, linear, size, _changed(op, value, 1 << number))
        if cpu.fault:
            return cpu.fault
    set_carry(cpu, shr(value, number) & 1)
    return OK


@compiled
def _bit_test(cpu, d, op):
    if d.dst == OPERAND_MEMORY and d.src != OPERAND_IMMEDIATE:
        return _bit_string(cpu, d, op)
    value = read_operand(cpu, d, d.dst) if op == 0 else read_for_update(cpu, d, d.dst)
    if cpu.fault:
        return cpu.fault
    number = (d.immediate if d.src == OPERAND_IMMEDIATE else cpu.gpr[d.src]) & ((d.size << 3) - 1)
    if op != 0:
        write_operand(cpu, d, d.dst, _changed(op, value, 1 << number))
        if cpu.fault:
            return cpu.fault
    set_carry(cpu, shr(value, number) & 1)
    return OK


@compiled
def _scan(cpu, d, op):
    """BSF and BSR."""
    value = read_operand(cpu, d, d.src)
    if cpu.fault:
        return cpu.fault
    if value == 0:
        set_logic_flags(cpu, 0, d.size)
        return OK
    index = trailing_zeros(value) if op == 4 else 63 - leading_zeros(value)
    gpr_write(cpu, d.dst, d.size, index)
    set_logic_flags(cpu, value, d.size)
    return OK


@compiled
def _popcnt(cpu, d):
    value = read_operand(cpu, d, d.src)
    if cpu.fault:
        return cpu.fault
    gpr_write(cpu, d.dst, d.size, popcount(value))
    # only ZF can be set: a non-zero source leaves SF = PF = 0
    cpu.flag_result = 0 if value == 0 else 1
    cpu.flag_carries = 1 if value == 0 else 0
    return OK


# --- multiplication -----------------------------------------------------------------------------------------


@compiled
def _set_product_flags(cpu, low, size, overflowed):
    set_logic_flags(cpu, low, size)
    if overflowed:
        cpu.flag_carries = MIN64  # CF = 1, carry into the top bit 0: OF = 1


@compiled
def _write_wide(cpu, size, low, high):
    """A double-width result: AX, DX:AX, EDX:EAX or RDX:RAX."""
    if size == 1:
        gpr_write(cpu, RAX, 2, low & 0xFF | (high & 0xFF) << 8)
    else:
        gpr_write(cpu, RAX, size, low)
        gpr_write(cpu, RDX, size, high)


@compiled
def _mul(cpu, d):
    b = read_operand(cpu, d, d.dst)
    if cpu.fault:
        return cpu.fault
    size = d.size
    a = gpr_read(cpu, RAX, size)
    low = a * b
    high = umulh(a, b) if size == 8 else shr(low, size << 3)
    _write_wide(cpu, size, low, high)
    _set_product_flags(cpu, low, size, high != 0)
    return OK


@compiled
def _imul(cpu, d):
    b = read_operand(cpu, d, d.dst)
    if cpu.fault:
        return cpu.fault
    size = d.size
    a = sign_extend(cpu.gpr[RAX], size)
    b = sign_extend(b, size)
    low = a * b
    high = smulh(a, b) if size == 8 else low >> (size << 3)
    _write_wide(cpu, size, low, high)
    _set_product_flags(cpu, low, size, high != sign_extend(low, size) >> 63)
    return OK


@compiled
def _imul_register(cpu, d, op):
    """IMUL with two and three operands."""
    b = read_operand(cpu, d, d.src)
    if cpu.fault:
        return cpu.fault
    size = d.size
    a = sign_extend(d.immediate if op == 12 else cpu.gpr[d.dst], size)
    b = sign_extend(b, size)
    low = a * b
    if size == 8:
        overflowed = smulh(a, b) != low >> 63
    else:
        overflowed = low != sign_extend(low, size)
    gpr_write(cpu, d.dst, size, low)
    _set_product_flags(cpu, low, size, overflowed)
    return OK


# --- division -----------------------------------------------------------------------------------------------


@compiled
def _divide_wide(high, low, divisor):
    """Unsigned 128 by 64 bits; high < divisor. Returns the quotient; the remainder is low - quotient * divisor."""
    quotient = high & 0  # an int64 in the plain-Python twin, too: it must wrap
    remainder = high
    for i in range(64):
        top = shr(remainder, 63)
        remainder = remainder << 1 | shr(low, 63 - i) & 1
        quotient = quotient << 1
        if top or not ult(remainder, divisor):
            remainder = remainder - divisor
            quotient |= 1
    return quotient


@compiled
def _div(cpu, d):
    divisor = read_operand(cpu, d, d.dst)
    if cpu.fault:
        return cpu.fault
    size = d.size
    if size == 8:
        low, high = cpu.gpr[RAX], cpu.gpr[RDX]
        if not ult(high, divisor):
            return raise_fault(cpu, DE, 0)
        quotient = udiv(low, divisor) if high == 0 else _divide_wide(high, low, divisor)
        _write_wide(cpu, 8, quotient, low - quotient * divisor)
        return OK
    if divisor == 0:
        return raise_fault(cpu, DE, 0)
    if size == 1:
        dividend = cpu.gpr[RAX] & 0xFFFF
    else:
        dividend = gpr_read(cpu, RDX, size) << (size << 3) | gpr_read(cpu, RAX, size)
    quotient = udiv(dividend, divisor)
    if ult(mask(size), quotient):
        return raise_fault(cpu, DE, 0)
    _write_wide(cpu, size, quotient, urem(dividend, divisor))
    return OK


@compiled
def _idiv(cpu, d):
    divisor = sign_extend(read_operand(cpu, d, d.dst), d.size)
    if cpu.fault:
        return cpu.fault
    size = d.size
    if divisor == 0:
        return raise_fault(cpu, DE, 0)
    if size == 8:
        low, high = cpu.gpr[RAX], cpu.gpr[RDX]
    elif size == 1:
        low = sign_extend(cpu.gpr[RAX], 2)
        high = low >> 63
    elif size == 2:
        low = sign_extend((cpu.gpr[RDX] & 0xFFFF) << 16 | cpu.gpr[RAX] & 0xFFFF, 4)
        high = low >> 63
    else:
        low = (cpu.gpr[RDX] << 32) | cpu.gpr[RAX] & 0xFFFF_FFFF
        high = low >> 63
    negative = high < 0
    if negative:  # magnitude of the 128-bit dividend
        high = ~high + (1 if low == 0 else 0)
        low = -low
    magnitude = -divisor if divisor < 0 else divisor
    if not ult(high, magnitude):
        return raise_fault(cpu, DE, 0)
    quotient = udiv(low, magnitude) if high == 0 else _divide_wide(high, low, magnitude)
    remainder = low - quotient * magnitude
    limit = shr(mask(size), 1)  # the largest positive quotient; a negative one may be one larger
    if negative != (divisor < 0):
        if ult(limit + 1, quotient):
            return raise_fault(cpu, DE, 0)
        quotient = -quotient
    elif ult(limit, quotient):
        return raise_fault(cpu, DE, 0)
    _write_wide(cpu, size, quotient, -remainder if negative else remainder)
    return OK


# --- decimal adjustment -------------------------------------------------------------------------------------


@compiled
def _ascii_adjust(cpu, direction):
    """AAA (+1) and AAS (-1)."""
    ax = cpu.gpr[RAX] & 0xFFFF
    if (ax & 0xF) > 9 or adjust(cpu):
        ax = ax + direction * 0x106
        flags = FLAG_AF | FLAG_CF
    else:
        flags = 0
    gpr_write(cpu, RAX, 2, ax & 0xFF0F)
    set_status_flags(cpu, status_flags(cpu) & ~(FLAG_AF | FLAG_CF) | flags)
    return OK


@compiled
def _decimal_adjust(cpu, direction):
    """DAA (+1) and DAS (-1)."""
    al = cpu.gpr[RAX] & 0xFF
    old, old_carry = al, carry(cpu)
    flags = 0
    if (al & 0xF) > 9 or adjust(cpu):
        flags = FLAG_AF
        moved = al + direction * 6
        if old_carry or moved & ~0xFF:
            flags |= FLAG_CF
        al = moved & 0xFF
    if old > 0x99 or old_carry:
        al = (al + direction * 0x60) & 0xFF
        flags |= FLAG_CF
    gpr_write(cpu, RAX, 1, al)
    set_logic_flags(cpu, al, 1)
    set_status_flags(cpu, status_flags(cpu) | flags)
    return OK


@compiled
def _aam(cpu, d):
    base = d.immediate & 0xFF
    if base == 0:
        return raise_fault(cpu, DE, 0)
    al = cpu.gpr[RAX] & 0xFF
    gpr_write(cpu, RAX, 2, udiv(al, base) << 8 | urem(al, base))
    set_logic_flags(cpu, urem(al, base), 1)
    return OK


@compiled
def _aad(cpu, d):
    al = (cpu.gpr[RAX] + shr(cpu.gpr[RAX], 8) * (d.immediate & 0xFF)) & 0xFF
    gpr_write(cpu, RAX, 2, al)
    set_logic_flags(cpu, al, 1)
    return OK


# --- flag instructions --------------------------------------------------------------------------------------


@compiled
def _flag_instruction(cpu, op):
    """CLC STC CMC CLD STD SAHF LAHF SALC (19..26)."""
    if op == 19:
        set_carry(cpu, 0)
    elif op == 20:
        set_carry(cpu, 1)
    elif op == 21:
        set_carry(cpu, carry(cpu) ^ 1)
    elif op == 22:
        cpu.rflags = cpu.rflags & ~FLAG_DF
    elif op == 23:
        cpu.rflags = cpu.rflags | FLAG_DF
    elif op == 24:
        set_status_flags(cpu, shr(cpu.gpr[RAX], 8) & 0xD5 | status_flags(cpu) & FLAG_OF)
    elif op == 25:
        cpu.gpr[RAX] = cpu.gpr[RAX] & ~0xFF00 | (get_rflags(cpu) & 0xFF) << 8
    else:
        gpr_write(cpu, RAX, 1, -carry(cpu))
    return OK


@unit(PROCESSOR, DECODED)
def group_bit(cpu, d):
    """Operations 0..26 of the BIT group."""
    op = d.op & 31
    if op <= 3:
        return _bit_test(cpu, d, op)
    if op <= 5:
        return _scan(cpu, d, op)
    if op == 6:
        return _popcnt(cpu, d)
    if op == 7:
        return _mul(cpu, d)
    if op == 8:
        return _imul(cpu, d)
    if op == 9:
        return _div(cpu, d)
    if op == 10:
        return _idiv(cpu, d)
    if op <= 12:
        return _imul_register(cpu, d, op)
    if op == 13:
        return _ascii_adjust(cpu, 1)
    if op == 14:
        return _ascii_adjust(cpu, -1)
    if op == 15:
        return _aam(cpu, d)
    if op == 16:
        return _aad(cpu, d)
    if op == 17:
        return _decimal_adjust(cpu, 1)
    if op == 18:
        return _decimal_adjust(cpu, -1)
    return _flag_instruction(cpu, op)

"""Integer instructions beyond x86-64-v1: BMI1, BMI2, LZCNT, ADX, CRC32, RDRAND, RDSEED, RDPID.

SDM volume 2, the instructions' own pages. VEX.vvvv is in `d.immediate`. The decoder has looked at the features.

RDRAND and RDSEED are deterministic: one generator per virtual CPU, SplitMix64 (Steele, Lea, Flood, "Fast
Splittable Pseudorandom Number Generators"), a counter with a fixed increment whose value is mixed. It always
delivers: CF = 1.
"""

import numpy as np

from vmx.cpu.alu import set_logic_flags
from vmx.cpu.bit import set_carry
from vmx.cpu.operands import gpr_read, gpr_write, mask, raise_fault, read_operand, sign_extend
from vmx.isa.operations import position
from vmx.state.bits import MIN64, leading_zeros, shr, signed, trailing_zeros, ult, umulh
from vmx.state.flags import BIT62, carry, overflow, set_status_flags
from vmx.state.jit import compiled
from vmx.state.processor import DECODED, FLAG_CF, OK, PROCESSOR, RDX, UD
from vmx.state.unit import unit
from vmx.virt.conditions import rdtscp_enabled

ANDN, BEXTR, BZHI, BLSR, BLSMSK, BLSI = (position(n) for n in "ANDN BEXTR BZHI BLSR BLSMSK BLSI".split())
PDEP, PEXT, MULX, RORX, SHLX, SHRX, SARX = (position(n) for n in "PDEP PEXT MULX RORX SHLX SHRX SARX".split())
TZCNT, LZCNT, CRC32, ADCX, ADOX = (position(n) for n in "TZCNT LZCNT CRC32 ADCX ADOX".split())
RDRAND, RDSEED = position("RDRAND"), position("RDSEED")

CRC32C_POLYNOMIAL = 0x82F6_3B78  # 11EDC6F41H, bit-reflected
INCREMENT = signed(0x9E37_79B9_7F4A_7C15)
MIX_1, MIX_2 = signed(0xBF58_476D_1CE4_E5B9), signed(0x94D0_49BB_1331_11EB)


def _crc_table():
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (CRC32C_POLYNOMIAL if value & 1 else 0)
        table.append(value)
    return np.array(table, np.int64)


CRC_TABLE = _crc_table()


# --- counting -----------------------------------------------------------------------------------------------


@compiled
def _count_zeros(cpu, d, leading):
    """TZCNT and LZCNT: the operand's width for zero, which CF tells."""
    value = read_operand(cpu, d, d.src)
    if cpu.fault:
        return cpu.fault
    bits = d.size << 3
    count = bits
    if value != 0:
        count = leading_zeros(value) - (64 - bits) if leading else trailing_zeros(value)
    gpr_write(cpu, d.dst, d.size, count)
    set_logic_flags(cpu, count, d.size)
    set_carry(cpu, 1 if value == 0 else 0)
    return OK


# --- BMI1 and BMI2 ------------------------------------------------------------------------------------------


@compiled
def _lowest_bit(cpu, d, op):
    """BLSR, BLSMSK and BLSI: the destination is VEX.vvvv."""
    value = read_operand(cpu, d, d.dst)
    if cpu.fault:
        return cpu.fault
    if op == BLSR:
        result = (value - 1) & value
    elif op == BLSMSK:
        result = (value - 1) ^ value
    else:
        result = -value & value
    result &= mask(d.size)
    gpr_write(cpu, d.immediate, d.size, result)
    set_logic_flags(cpu, result, d.size)
    set_carry(cpu, 1 if (value == 0) == (op != BLSI) else 0)
    return OK


@compiled
def _deposit(value, selector):
    """PDEP: the low bits of the value to where the selector has ones."""
    result = value & 0
    while selector != 0:
        lowest = -selector & selector
        if value & 1:
            result |= lowest
        value = shr(value, 1)
        selector &= ~lowest
    return result


@compiled
def _extract(value, selector):
    """PEXT: the bits of the value where the selector has ones, to the low end."""
    result = value & 0
    target = 0
    while selector != 0:
        result |= (shr(value, trailing_zeros(selector)) & 1) << target
        target += 1
        selector &= selector - 1
    return result


@compiled
def _bit_field(value, control, bits):
    """BEXTR: start in bits 7:0 of the control operand, length in bits 15:8."""
    start = control & 0xFF
    length = shr(control, 8) & 0xFF
    if start >= bits:
        return value & 0
    value = shr(value, start)
    return value if length >= 64 else value & ((1 << length) - 1)


@compiled
def _without_flags(op, value, second, size):
    """PDEP, PEXT, RORX, SHLX, SHRX and SARX; `second` is their register or immediate operand."""
    bits = size << 3
    if op == PDEP:
        return _deposit(second, value)
    if op == PEXT:
        return _extract(second, value)
    count = second & (bits - 1)
    if op == RORX:
        return value if count == 0 else shr(value, count) | value << (bits - count)
    if op == SHLX:
        return value << count
    if op == SHRX:
        return shr(value, count)
    return sign_extend(value, size) >> count


@compiled
def _with_vvvv(cpu, d, op):
    """Instructions with a destination in ModRM.reg and sources in ModRM.rm and VEX.vvvv."""
    value = read_operand(cpu, d, d.src)
    if cpu.fault:
        return cpu.fault
    size = d.size
    if op == MULX:
        factor = gpr_read(cpu, RDX, size)
        low = value * factor
        high = umulh(value, factor) if size == 8 else shr(low, 32)
        gpr_write(cpu, d.immediate, size, low)  # first: when both are one register it holds the high half
        gpr_write(cpu, d.dst, size, high)
        return OK
    if op >= PDEP:
        second = d.immediate if op == RORX else gpr_read(cpu, d.immediate, size)
        gpr_write(cpu, d.dst, size, _without_flags(op, value, second, size))
        return OK
    second = gpr_read(cpu, d.immediate, size)
    carry_out = 0
    if op == ANDN:
        result = ~second & value
    elif op == BEXTR:
        result = _bit_field(value, second, size << 3)
    else:  # BZHI
        count = second & 0xFF
        carry_out = 1 if count >= size << 3 else 0
        result = value if carry_out else value & ((1 << count) - 1)
    result &= mask(size)
    gpr_write(cpu, d.dst, size, result)
    set_logic_flags(cpu, result, size)
    set_carry(cpu, carry_out)
    return OK


# --- ADX, CRC32 ---------------------------------------------------------------------------------------------


@compiled
def _add_with_one_flag(cpu, d, op):
    """ADCX adds with CF, ADOX with OF; each leaves all other flags alone."""
    b = read_operand(cpu, d, d.src)
    if cpu.fault:
        return cpu.fault
    size = d.size
    a = gpr_read(cpu, d.dst, size)
    cf = carry(cpu)
    of = overflow(cpu)
    add = cf if op == ADCX else of
    result = a + b + add
    if size == 8:
        out = 1 if ult(result, a) or (add and result == a) else 0
    else:
        out = shr(result, 32)
    gpr_write(cpu, d.dst, size, result)
    if op == ADCX:
        cf = out
    else:
        of = out
    carries = cpu.flag_carries & ~(MIN64 | BIT62)
    if cf:
        carries |= MIN64
    if cf != of:
        carries |= BIT62
    cpu.flag_carries = carries
    return OK


@compiled
def _crc32(cpu, d):
    """CRC32: the Castagnoli polynomial over 1 to 8 bytes; bits 63:32 of the destination become zero."""
    value = read_operand(cpu, d, d.src)
    if cpu.fault:
        return cpu.fault
    crc = cpu.gpr[d.dst] & 0xFFFF_FFFF
    for _ in range(d.size):
        crc = CRC_TABLE[(crc ^ value) & 0xFF] ^ shr(crc, 8)
        value = shr(value, 8)
    cpu.gpr[d.dst] = crc
    return OK


# --- random numbers, processor ID ---------------------------------------------------------------------------


@compiled
def _random(cpu, d):
    """RDRAND and RDSEED."""
    state = cpu.random_state + INCREMENT
    cpu.random_state = state
    mixed = (state ^ shr(state, 30)) * MIX_1
    mixed = (mixed ^ shr(mixed, 27)) * MIX_2
    gpr_write(cpu, d.dst, d.size, mixed ^ shr(mixed, 31))
    set_status_flags(cpu, FLAG_CF)
    return OK


@compiled
def _processor_id(cpu, d):
    """RDPID: IA32_TSC_AUX."""
    if not rdtscp_enabled(cpu):
        return raise_fault(cpu, UD, 0)
    gpr_write(cpu, d.dst, d.size, cpu.tsc_aux & 0xFFFF_FFFF)
    return OK


@unit(PROCESSOR, DECODED)
def group_extension(cpu, d):
    """The operations of the EXTENSION group."""
    op = d.op & 31
    if op == TZCNT or op == LZCNT:
        return _count_zeros(cpu, d, op == LZCNT)
    if op == BLSR or op == BLSMSK or op == BLSI:
        return _lowest_bit(cpu, d, op)
    if op <= SARX:
        return _with_vvvv(cpu, d, op)
    if op == CRC32:
        return _crc32(cpu, d)
    if op == ADCX or op == ADOX:
        return _add_with_one_flag(cpu, d, op)
    if op == RDRAND or op == RDSEED:
        return _random(cpu, d)
    return _processor_id(cpu, d)

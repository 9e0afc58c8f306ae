"""Arithmetic, logic and data movement: the integer instructions that compute in one step.

Sections of the manual: "Instruction Set Reference", one entry per operation. Flags are lazy (vmx.state.flags).
"""

from vmx.cpu.operands import (
    gpr_read,
    gpr_write,
    linear_address,
    mask,
    raise_fault,
    read_for_update,
    read_memory,
    read_operand,
    segmented_address,
    sign_extend,
    write_operand,
)
from vmx.mmu.access import load, load_for_update, store
from vmx.state.bits import MIN64, byte_swap, sext8, sext16, sext32, shr
from vmx.state.flags import BIT62, CARRY_BITS, carry, overflow, parity, sign, zero
from vmx.state.jit import compiled
from vmx.state.processor import (
    DECODED,
    FLAT,
    GP,
    OK,
    OPERAND_MEMORY,
    PROCESSOR,
    RAX,
    RBX,
    RCX,
    RDX,
)
from vmx.state.unit import unit


@compiled(inline=True)
def set_flags(cpu, result, carries, size):
    """Record the flags of an operation: its result and the vector of carries (or borrows) out of each bit."""
    shift = 64 - (size << 3)
    cpu.flag_result = (result << shift) >> shift
    cpu.flag_carries = (carries << shift) & (MIN64 | BIT62) | carries & 8


@compiled(inline=True)
def set_logic_flags(cpu, result, size):
    """Flags of a logical operation: CF = OF = AF = 0 (AF is undefined by the manual)."""
    cpu.flag_result = sign_extend(result, size)
    cpu.flag_carries = 0


@compiled(inline=True)
def add_flags(cpu, a, b, result, size):
    set_flags(cpu, result, (a & b) | ((a | b) & ~result), size)


@compiled(inline=True)
def sub_flags(cpu, a, b, result, size):
    set_flags(cpu, result, (~a & b) | ((~a | b) & result), size)


@compiled
def binary(cpu, op, a, b, size):
    """ADD OR ADC SBB AND SUB XOR CMP (0..7): the result; operands are zero-extended."""
    if op == 0:
        result = (a + b) & mask(size)
        add_flags(cpu, a, b, result, size)
    elif op == 1:
        result = a | b
        set_logic_flags(cpu, result, size)
    elif op == 2:
        result = (a + b + carry(cpu)) & mask(size)
        add_flags(cpu, a, b, result, size)
    elif op == 3:
        result = (a - b - carry(cpu)) & mask(size)
        sub_flags(cpu, a, b, result, size)
    elif op == 4:
        result = a & b
        set_logic_flags(cpu, result, size)
    elif op == 6:
        result = a ^ b
        set_logic_flags(cpu, result, size)
    else:
        result = (a - b) & mask(size)
        sub_flags(cpu, a, b, result, size)
    return result


@compiled(inline=True)
def step(cpu, a, delta, size):
    """INC (delta 1) and DEC (delta -1): CF stays."""
    cf = carry(cpu)
    result = (a + delta) & mask(size)
    if delta > 0:
        add_flags(cpu, a, 1, result, size)
    else:
        sub_flags(cpu, a, 1, result, size)
    of = overflow(cpu)
    cpu.flag_carries = cpu.flag_carries & 8 | cf << 63 | (cf ^ of) << 62
    return result


@compiled
def condition(cpu, code):
    """The condition codes of "Jcc" (0..15): 1 when true."""
    kind = code >> 1
    if kind == 0:
        value = overflow(cpu)
    elif kind == 1:
        value = carry(cpu)
    elif kind == 2:
        value = zero(cpu)
    elif kind == 3:
        value = carry(cpu) | zero(cpu)
    elif kind == 4:
        value = sign(cpu)
    elif kind == 5:
        value = parity(cpu)
    elif kind == 6:
        value = sign(cpu) ^ overflow(cpu)
    else:
        value = (sign(cpu) ^ overflow(cpu)) | zero(cpu)
    return value ^ (code & 1)


@compiled
def extend(op, value):
    """MOVZX_B MOVZX_W MOVSX_B MOVSX_W MOVSX_D (16..20)."""
    if op == 16 or op == 17:
        return value
    if op == 18:
        return sext8(value)
    if op == 19:
        return sext16(value)
    return sext32(value)


@compiled
def source_size(op):
    """Bytes of the source of MOVZX and MOVSX."""
    if op == 16 or op == 18:
        return 1
    return 4 if op == 20 else 2


# --- the group, for forms that are not hot ------------------------------------------------------------------


@compiled
def _binary(cpu, d, op):
    if op == 7:
        a = read_operand(cpu, d, d.dst)
    else:
        a = read_for_update(cpu, d, d.dst)
    if cpu.fault:
        return cpu.fault
    b = read_operand(cpu, d, d.src)
    if cpu.fault:
        return cpu.fault
    saved_result, saved_carries = cpu.flag_result, cpu.flag_carries
    result = binary(cpu, op, a, b, d.size)
    if op != 7:
        write_operand(cpu, d, d.dst, result)
        if cpu.fault:
            cpu.flag_result, cpu.flag_carries = saved_result, saved_carries
    return cpu.fault


@compiled
def _test(cpu, d):
    a = read_operand(cpu, d, d.dst)
    if cpu.fault:
        return cpu.fault
    set_logic_flags(cpu, a & read_operand(cpu, d, d.src), d.size)
    return OK


@compiled
def _mov_offset(cpu, d):
    """MOV between the accumulator and a memory offset, which may have 64 bits."""
    writes = d.dst == OPERAND_MEMORY
    linear = d.immediate & mask(d.address_size)
    if d.segment != FLAT:
        linear = segmented_address(cpu, d.segment, linear, d.size, writes)
    if cpu.fault:
        return cpu.fault
    if writes:
        store(cpu, linear, d.size, gpr_read(cpu, RAX, d.size))
        return cpu.fault
    value = load(cpu, linear, d.size)
    if cpu.fault == 0:
        gpr_write(cpu, RAX, d.size, value)
    return cpu.fault


@compiled
def _mov(cpu, d):
    if d.opcode & ~3 == 0xA0:
        return _mov_offset(cpu, d)
    value = read_operand(cpu, d, d.src)
    if cpu.fault == 0:
        write_operand(cpu, d, d.dst, value)
    return cpu.fault


@compiled
def _xchg(cpu, d):
    a = read_for_update(cpu, d, d.dst)
    if cpu.fault:
        return cpu.fault
    b = gpr_read(cpu, d.src, d.size)
    write_operand(cpu, d, d.dst, b)
    if cpu.fault == 0:
        gpr_write(cpu, d.src, d.size, a)
    return cpu.fault


@compiled
def _unary(cpu, d, op):
    """INC DEC NOT NEG (11..14)."""
    a = read_for_update(cpu, d, d.dst)
    if cpu.fault:
        return cpu.fault
    saved_result, saved_carries = cpu.flag_result, cpu.flag_carries
    if op == 11:
        result = step(cpu, a, 1, d.size)
    elif op == 12:
        result = step(cpu, a, -1, d.size)
    elif op == 13:
        result = ~a
    else:
        result = (-a) & mask(d.size)
        sub_flags(cpu, 0, a, result, d.size)
    write_operand(cpu, d, d.dst, result)
    if cpu.fault:
        cpu.flag_result, cpu.flag_carries = saved_result, saved_carries
    return cpu.fault


@compiled
def _extend(cpu, d, op):
    size = min(source_size(op), d.size)  # MOVSXD with a 16-bit operand size reads 16 bits
    value = read_memory(cpu, d, size) if d.src == OPERAND_MEMORY else gpr_read(cpu, d.src, size)
    if cpu.fault == 0:
        gpr_write(cpu, d.dst, d.size, extend(op, value))
    return cpu.fault


@compiled
def _lea(cpu, d):
    offset = cpu.gpr[d.base] + (cpu.gpr[d.index] << d.scale) + d.displacement
    gpr_write(cpu, d.dst, d.size, offset & mask(d.address_size))
    return OK


@compiled
def _cmov(cpu, d):
    value = read_operand(cpu, d, d.src)
    if cpu.fault:
        return cpu.fault
    if condition(cpu, d.reg) == 0:
        value = gpr_read(
            cpu, d.dst, d.size
        )  # a 32-bit CMOV clears bits 63:32 even when the condition is false
    gpr_write(cpu, d.dst, d.size, value)
    return OK


@compiled
def _xadd(cpu, d):
    a = read_for_update(cpu, d, d.dst)
    if cpu.fault:
        return cpu.fault
    b = gpr_read(cpu, d.src, d.size)
    result = (a + b) & mask(d.size)
    if d.dst == OPERAND_MEMORY:
        write_operand(cpu, d, d.dst, result)
        if cpu.fault:
            return cpu.fault
        gpr_write(cpu, d.src, d.size, a)
    else:
        gpr_write(cpu, d.src, d.size, a)
        gpr_write(cpu, d.dst, d.size, result)
    add_flags(cpu, a, b, result, d.size)
    return OK


@compiled
def _cmpxchg(cpu, d):
    old = read_for_update(cpu, d, d.dst)
    if cpu.fault:
        return cpu.fault
    accumulator = gpr_read(cpu, RAX, d.size)
    equal = accumulator == old
    # memory is written in both cases, a register (and bits 63:32 of it) only when equal
    if equal or d.dst == OPERAND_MEMORY:
        write_operand(cpu, d, d.dst, gpr_read(cpu, d.src, d.size) if equal else old)
        if cpu.fault:
            return cpu.fault
    if not equal:
        gpr_write(cpu, RAX, d.size, old)
    sub_flags(cpu, accumulator, old, (accumulator - old) & mask(d.size), d.size)
    return OK


@compiled
def _set_zero_flag(cpu, value):
    """ZF alone, the other flags kept."""
    carries = cpu.flag_carries
    negative = sign(cpu)
    even = parity(cpu)
    if value:
        cpu.flag_result = 0
        cpu.flag_carries = carries & CARRY_BITS | (even ^ 1) | negative << 1
    else:
        cpu.flag_result = 1
        cpu.flag_carries = carries & CARRY_BITS | even | negative << 1


@compiled
def _cmpxchg_pair(cpu, d):
    """CMPXCHG8B and, with REX.W, CMPXCHG16B."""
    half = 8 if d.rex & 8 else 4
    linear = linear_address(cpu, d, 2 * half, 1)
    if cpu.fault:
        return cpu.fault
    if half == 8 and linear & 15:
        return raise_fault(cpu, GP, 0)
    low = load_for_update(cpu, linear, half)
    if cpu.fault:
        return cpu.fault
    high = load_for_update(cpu, linear + half, half)
    if cpu.fault:
        return cpu.fault
    equal = gpr_read(cpu, RAX, half) == low and gpr_read(cpu, RDX, half) == high
    store(cpu, linear, half, gpr_read(cpu, RBX, half) if equal else low)
    if cpu.fault == 0:
        store(cpu, linear + half, half, gpr_read(cpu, RCX, half) if equal else high)
    if cpu.fault:
        return cpu.fault
    if not equal:
        gpr_write(cpu, RAX, half, low)
        gpr_write(cpu, RDX, half, high)
    _set_zero_flag(cpu, equal)
    return OK


@compiled
def _movbe(cpu, d):
    value = read_operand(cpu, d, d.src)
    if cpu.fault == 0:
        write_operand(cpu, d, d.dst, shr(byte_swap(value), 64 - (d.size << 3)))
    return cpu.fault


@compiled
def _convert(cpu, d, op):
    """CBW CWDE CDQE (into the accumulator) and CWD CDQ CQO (into rDX)."""
    size = d.size
    if op == 29:
        gpr_write(cpu, RAX, size, sign_extend(cpu.gpr[RAX], size >> 1))
    else:
        gpr_write(cpu, RDX, size, sign_extend(cpu.gpr[RAX], size) >> 63)
    return OK


@compiled
def _xlat(cpu, d):
    offset = (cpu.gpr[RBX] + (cpu.gpr[RAX] & 0xFF)) & mask(d.address_size)
    segment = d.segment
    linear = offset
    if segment != FLAT:
        linear = segmented_address(cpu, segment, offset, 1, 0)
    if cpu.fault:
        return cpu.fault
    value = load(cpu, linear, 1)
    if cpu.fault == 0:
        gpr_write(cpu, RAX, 1, value)
    return cpu.fault


@unit(PROCESSOR, DECODED)
def group_alu(cpu, d):
    """Operations 0..31 of the ALU group."""
    op = d.op & 31
    if op <= 7:
        return _binary(cpu, d, op)
    if op == 8:
        return _test(cpu, d)
    if op == 9:
        return _mov(cpu, d)
    if op == 10:
        return _xchg(cpu, d)
    if op <= 14:
        return _unary(cpu, d, op)
    if op == 15:
        return _lea(cpu, d)
    if op <= 20:
        return _extend(cpu, d, op)
    if op == 21:
        return _cmov(cpu, d)
    if op == 22:
        write_operand(cpu, d, d.dst, condition(cpu, d.reg))
        return cpu.fault
    if op == 23:
        return _xadd(cpu, d)
    if op == 24:
        return _cmpxchg(cpu, d)
    if op == 25:
        return _cmpxchg_pair(cpu, d)
    if op == 26:
        value = byte_swap(cpu.gpr[d.dst])
        gpr_write(cpu, d.dst, d.size, shr(value, 32) if d.size == 4 else value if d.size == 8 else 0)
        return OK
    if op == 27:
        return _movbe(cpu, d)
    if op == 28:
        return OK  # NOP; prefetches into the second level are vector rows
    if op <= 30:
        return _convert(cpu, d, op)
    return _xlat(cpu, d)

"""Operands: general registers of every width, effective and linear addresses, memory operands."""

from vmx.mmu.access import load, load_for_update, store
from vmx.state.bits import shr
from vmx.state.jit import compiled
from vmx.state.processor import (
    ACCESS_DB,
    ACCESS_UNUSABLE,
    CR0_PE,
    FAULT,
    FLAG_VM,
    FLAT,
    GP,
    OPERAND_HIGH,
    OPERAND_IMMEDIATE,
    OPERAND_MEMORY,
    PROCESSOR,
    SS,
    SS_FAULT,
)
from vmx.state.unit import unit

MASK32 = 0xFFFF_FFFF


@compiled(inline=True)
def mask(size):
    """All ones in `size` bytes (1..8)."""
    return shr(-1, 64 - (size << 3))


@compiled(inline=True)
def sign_extend(value, size):
    """The low `size` bytes, sign-extended to 64 bits."""
    shift = 64 - (size << 3)
    return (value << shift) >> shift


@compiled
def raise_fault(cpu, vector, error):
    """Record an exception; the instruction returns the result."""
    cpu.fault_vector = vector
    cpu.fault_error = error
    cpu.fault = FAULT
    return FAULT


# --- registers ----------------------------------------------------------------------------------------------


@compiled(inline=True)
def gpr_read(cpu, code, size):
    """A general register by operand code, zero-extended."""
    if code < OPERAND_HIGH:
        return cpu.gpr[code] & mask(size)
    return shr(cpu.gpr[code - OPERAND_HIGH], 8) & 0xFF


@compiled(inline=True)
def gpr_write(cpu, code, size, value):
    """Write a general register: 32-bit results clear bits 63:32, narrower ones leave the rest."""
    if size >= 4:
        cpu.gpr[code] = value & mask(size)
    elif size == 2:
        cpu.gpr[code] = cpu.gpr[code] & ~0xFFFF | value & 0xFFFF
    elif code < OPERAND_HIGH:
        cpu.gpr[code] = cpu.gpr[code] & ~0xFF | value & 0xFF
    else:
        cpu.gpr[code - OPERAND_HIGH] = cpu.gpr[code - OPERAND_HIGH] & ~0xFF00 | (value & 0xFF) << 8


# --- addresses ----------------------------------------------------------------------------------------------


@compiled(inline=True)
def effective_address(cpu, d):
    """The offset of a memory operand, at the address size ("Specifying an Offset")."""
    address = cpu.gpr[d.base] + (cpu.gpr[d.index] << d.scale) + d.displacement
    if d.address_size == 8:
        return address
    return address & mask(d.address_size)


@unit(PROCESSOR, "i64", "i64", "i64", "i64")
def segmented_address(cpu, number, offset, size, write):
    """Offset in a segment to linear address, with the checks of "Segment-Level Protection".

    Sets #GP(0), or #SS(0) for the stack segment. 64-bit mode has only the bases of FS and GS.
    """
    segment = cpu.segments[number]
    if cpu.code_mode == 2:
        return offset if number < 4 or number == FLAT else segment.base + offset
    access = segment.access
    vector = SS_FAULT if number == SS else GP
    protected = cpu.cr0 & CR0_PE != 0 and cpu.rflags & FLAG_VM == 0
    if protected:
        if access & ACCESS_UNUSABLE:
            raise_fault(cpu, GP if number != SS else SS_FAULT, 0)
            return 0
        if access & 8:  # code segment
            if write or access & 2 == 0:
                raise_fault(cpu, GP, 0)
                return 0
        elif write and access & 2 == 0:
            raise_fault(cpu, GP, 0)
            return 0
    last = offset + size - 1
    if protected and access & 0xC == 4:  # expand-down data
        top = MASK32 if access & ACCESS_DB else 0xFFFF
        bad = offset <= segment.limit or last > top
    else:
        bad = last > segment.limit
    if bad:
        raise_fault(cpu, vector, 0)
        return 0
    return (segment.base + offset) & MASK32


@compiled(inline=True)
def linear_address(cpu, d, size, write):
    """The linear address of a memory operand of `size` bytes; sets `cpu.fault` where the segment forbids it."""
    offset = effective_address(cpu, d)
    if d.segment == FLAT:
        return offset
    return segmented_address(cpu, d.segment, offset, size, write)


@compiled(inline=True)
def plus(cpu, linear, count):
    """A linear address further on; it wraps at 4 GiB outside 64-bit mode."""
    return linear + count if cpu.code_mode == 2 else (linear + count) & MASK32


# --- memory operands ----------------------------------------------------------------------------------------


@compiled
def read_memory(cpu, d, size):
    """Load the memory operand."""
    linear = linear_address(cpu, d, size, 0)
    if cpu.fault:
        return 0
    return load(cpu, linear, size)


@compiled
def write_memory(cpu, d, size, value):
    """Store to the memory operand."""
    linear = linear_address(cpu, d, size, 1)
    if cpu.fault == 0:
        store(cpu, linear, size, value)


@compiled
def read_operand(cpu, d, code):
    """An operand by its code at d.size, zero-extended."""
    if code == OPERAND_MEMORY:
        return read_memory(cpu, d, d.size)
    if code == OPERAND_IMMEDIATE:
        return d.immediate & mask(d.size)
    return gpr_read(cpu, code, d.size)


@compiled
def read_for_update(cpu, d, code):
    """Like read_operand, of an operand that will be written: faults as a write."""
    if code == OPERAND_MEMORY:
        linear = linear_address(cpu, d, d.size, 1)
        if cpu.fault:
            return 0
        return load_for_update(cpu, linear, d.size)
    return gpr_read(cpu, code, d.size)


@compiled
def write_operand(cpu, d, code, value):
    """Write an operand by its code at d.size; nothing is written when `cpu.fault` results."""
    if code == OPERAND_MEMORY:
        write_memory(cpu, d, d.size, value)
    else:
        gpr_write(cpu, code, d.size, value)


# --- the stack ----------------------------------------------------------------------------------------------


@compiled
def stack_mask(cpu):
    """The bits of RSP that address the stack: 64-bit mode, else by SS.B."""
    if cpu.code_mode == 2:
        return -1
    return MASK32 if cpu.segments[SS].access & ACCESS_DB else 0xFFFF


@compiled
def stack_linear(cpu, pointer, size, write):
    """The linear address of a stack slot."""
    if cpu.code_mode == 2:
        return pointer
    return segmented_address(cpu, SS, pointer, size, write)


@compiled
def set_stack_pointer(cpu, value):
    """Write RSP, ESP or SP by the stack's address size."""
    m = stack_mask(cpu)
    if m == 0xFFFF:
        cpu.gpr[4] = cpu.gpr[4] & ~0xFFFF | value & 0xFFFF
    else:
        cpu.gpr[4] = value & m


@compiled
def stack_fault(cpu):
    """A #GP(0) from a stack access is #SS(0): the address was not canonical."""
    if cpu.fault == FAULT and cpu.fault_vector == GP:
        cpu.fault_vector = SS_FAULT
    return cpu.fault


@compiled
def push(cpu, size, value):
    """Push `size` bytes. Returns 0 or the status of the fault; RSP changes only on success."""
    pointer = (cpu.gpr[4] - size) & stack_mask(cpu)
    linear = stack_linear(cpu, pointer, size, 1)
    if cpu.fault == 0:
        store(cpu, linear, size, value)
    if cpu.fault:
        return stack_fault(cpu)
    set_stack_pointer(cpu, pointer)
    return 0


@compiled
def peek(cpu, size, depth):
    """Load `size` bytes at `depth` bytes above the top of the stack."""
    pointer = (cpu.gpr[4] + depth) & stack_mask(cpu)
    linear = stack_linear(cpu, pointer, size, 0)
    if cpu.fault == 0:
        value = load(cpu, linear, size)
        if cpu.fault == 0:
            return value
    stack_fault(cpu)
    return 0


@compiled
def drop(cpu, count):
    """Remove `count` bytes from the stack."""
    set_stack_pointer(cpu, cpu.gpr[4] + count)

"""Lazy status flags: two words from which CF, PF, AF, ZF, SF and OF follow.

`flag_result` is the result sign-extended to 64 bits. `flag_carries` holds the carry out of the top bit in
bit 63 (CF) and the carry into it in bit 62 (OF is their exclusive or), the carry out of bit 3 in bit 3 (AF).
Bit 0 inverts PF and bit 1 inverts SF: only a load of RFLAGS sets them, for combinations that no result has.
"""

from vmx.state.bits import MIN64, popcount, shr
from vmx.state.jit import compiled
from vmx.state.processor import (
    ARITHMETIC_FLAGS,
    FLAG_AF,
    FLAG_CF,
    FLAG_OF,
    FLAG_PF,
    FLAG_SF,
    FLAG_ZF,
)

BIT62 = 1 << 62
CARRY_BITS = MIN64 | BIT62 | 8


@compiled(inline=True)
def carry(cpu):
    """CF as 0 or 1."""
    return shr(cpu.flag_carries, 63)


@compiled(inline=True)
def overflow(cpu):
    """OF as 0 or 1."""
    return (shr(cpu.flag_carries, 63) ^ shr(cpu.flag_carries, 62)) & 1


@compiled(inline=True)
def zero(cpu):
    """ZF as 0 or 1."""
    return 1 if cpu.flag_result == 0 else 0


@compiled(inline=True)
def sign(cpu):
    """SF as 0 or 1."""
    return shr(cpu.flag_result, 63) ^ ((cpu.flag_carries & 2) >> 1)


@compiled(inline=True)
def parity(cpu):
    """PF as 0 or 1."""
    return (popcount(cpu.flag_result & 0xFF) ^ 1 ^ cpu.flag_carries) & 1


@compiled(inline=True)
def adjust(cpu):
    """AF as 0 or 1."""
    return (cpu.flag_carries & 8) >> 3


@compiled
def status_flags(cpu):
    """The six arithmetic flags at their RFLAGS positions."""
    return (
        carry(cpu)
        | parity(cpu) << 2
        | adjust(cpu) << 4
        | zero(cpu) << 6
        | sign(cpu) << 7
        | overflow(cpu) << 11
    )


@compiled
def set_status_flags(cpu, value):
    """Load the six arithmetic flags from their RFLAGS positions."""
    is_zero = (value & FLAG_ZF) != 0
    result = 0 if is_zero else 1
    carries = 0
    if value & FLAG_CF:
        carries |= MIN64
    if ((value & FLAG_OF) != 0) != ((value & FLAG_CF) != 0):
        carries |= BIT62
    if value & FLAG_AF:
        carries |= 8
    wanted_parity = 1 if value & FLAG_PF else 0
    natural_parity = 1 if is_zero else 0
    carries |= wanted_parity ^ natural_parity
    if value & FLAG_SF:
        carries |= 2
    cpu.flag_result = result
    cpu.flag_carries = carries


@compiled
def get_rflags(cpu):
    """The whole of RFLAGS; bit 1 reads as one."""
    return cpu.rflags | status_flags(cpu) | 2


@compiled
def set_rflags(cpu, value):
    """Load RFLAGS; the caller has decided which bits may change."""
    set_status_flags(cpu, value)
    cpu.rflags = value & ~ARITHMETIC_FLAGS & ~2

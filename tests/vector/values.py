"""Operand values that matter: integers of all widths beyond the sign bit, every class of float."""

import random
import struct

DOUBLES = (
    0, 1 << 63, 0x3FF0000000000000, 0xBFF0000000000000, 0x7FF0000000000000, 0xFFF0000000000000,
    0x7FF8000000000001, 0x7FF0000000000001, 0xFFF8DEADBEEF0001, 1, 0x000FFFFFFFFFFFFF,
    0x0010000000000000, 0x7FEFFFFFFFFFFFFF, 0x3FB999999999999A, 0x41DFFFFFFFE00000, 0x43E0000000000000,
    0xC1E0000000000000, 0x36A0000000000001, 0x47EFFFFFF0000000, 0x3810000000000000, 0x380FFFFFFFFFFFFF,
)  # fmt: skip
SINGLES = (
    0, 1 << 31, 0x3F800000, 0xBF800000, 0x7F800000, 0xFF800000, 0x7FC00001, 0x7F800001, 0xFFC0BEEF, 1,
    0x007FFFFF, 0x00800000, 0x7F7FFFFF, 0x3DCCCCCD, 0x4EFFFFFF, 0x4F000000, 0xCF000000, 0x5F000000,
    0x00FFFFFF, 0x20000000,
)  # fmt: skip
EXTENDED = (
    (0, 0), (0, 0x8000), (1 << 63, 0x3FFF), (1 << 63, 0xBFFF), (1 << 63, 0x7FFF), (1 << 63, 0xFFFF),
    (0xC000000000000001, 0x7FFF), (0x8000000000000001, 0x7FFF), (1, 0), ((1 << 63) - 1, 0), (1 << 63, 1),
    ((1 << 64) - 1, 0x7FFE), (0xCCCCCCCCCCCCCCCD, 0x3FFB), (0xC90FDAA22168C235, 0x4000), (1 << 62, 0x3FFF),
    (0xFFFFFFFE00000000, 0x401D), (1 << 63, 0x403E), (0, 0x7FFF), (1 << 63, 0x3C00), (1 << 63, 0x3F6A),
)  # fmt: skip


def quadword(rng: random.Random) -> int:
    """A 64-bit operand, half of the time a special number of some width."""
    kind = rng.randrange(6)
    if kind == 0:
        return rng.choice(DOUBLES)
    if kind == 1:
        return rng.choice(SINGLES) | rng.choice(SINGLES) << 32
    if kind == 2:
        return struct.unpack("<Q", struct.pack("<d", rng.uniform(-1000, 1000)))[0]
    if kind == 3:
        return struct.unpack("<Q", struct.pack("<ff", rng.uniform(-99, 99), rng.uniform(-1e9, 1e9)))[0]
    if kind == 4:
        return rng.randrange(40)  # shift counts
    return rng.getrandbits(64)


def extended(rng: random.Random) -> bytes:
    """An 80-bit operand."""
    if rng.randrange(3) == 0:
        significand, exponent = rng.choice(EXTENDED)
    else:
        significand, exponent = (
            rng.getrandbits(64) | 1 << 63,
            rng.randrange(0x3FF0, 0x400F) | rng.getrandbits(1) << 15,
        )
    return significand.to_bytes(8, "little") + exponent.to_bytes(2, "little")

"""Random guests: bytes, and instructions from the table in surroundings in which they come far."""

import random
import struct

from tests.cpu.generate import encoding
from vmx.isa.table import TABLE

BASE, CODE_BYTES = 0x1_0000, 0x4000
GDT, GDT_POINTER, IDT, IDT_POINTER, TABLES_END = 0x2_0000, 0x2_1000, 0x2_2000, 0x2_3000, 0x2_4000
STACK = 0x6_0000
MODES = ("real", "protected32", "long64")
KINDS = ("bytes", "rows", "mixed")
MODE_NUMBER = {"real": 0, "protected32": 1, "long64": 2}
# what the loader's GDT holds (vmx.boot.states), so that selectors go on meaning what they meant
CODE = {"protected32": 0x00CF_9B00_0000_FFFF, "long64": 0x00AF_9B00_0000_FFFF}
DATA, TASK = 0x00CF_9300_0000_FFFF, 0x0000_8B00_1800_0067
VALUES = (0, 1, 8, 0x10, 0x7F, 0x80, 0xFFF, 0x1000, BASE, BASE + 0x1FFE, STACK, 0xA_0000, 0xF_FFFF, 0x10_0000,
          0x1F_FFF8, 0x20_0000, 0x7FFF_FFFF, 0x8000_0000, 0xC000_0000, 0xFEC0_0000, 0xFEE0_0000, 0xFFFF_FFF0,
          0xFFFF_FFFF)  # fmt: skip
WIDE = (0x1_0000_0000, 0x1_0000_2000, 0x7FFF_FFFF_FFFF, 0x7FFF_FFFF_FFF8, 0x8000_0000_0000,
        0xFFFF_8000_0000_0000, 0xFF_FFFF_F000, 1 << 63, (1 << 64) - 1, (1 << 64) - 8)  # fmt: skip
MSRS = (0x10, 0x1B, 0x3A, 0x8B, 0xFE, 0x174, 0x175, 0x176, 0x1A0, 0x200, 0x250, 0x277, 0x2FF, 0x480, 0x48B, 0x6E0,
        0x802, 0x830, 0x838, 0xC000_0080, 0xC000_0081, 0xC000_0082, 0xC000_0084, 0xC000_0100, 0xC000_0101,
        0xC000_0102, 0xC000_0103)  # fmt: skip


def program(kind: str, mode: str, seed: int) -> bytes:
    """The flat binary, for BASE; `kind` is one of KINDS. The same arguments give the same bytes."""
    rng = random.Random(f"{kind} {mode} {seed}")
    if kind == "bytes":
        return rng.randbytes(rng.choice((64, 512, CODE_BYTES)))
    code = _surroundings(rng, mode)
    while len(code) < CODE_BYTES:
        code += rng.randbytes(rng.randrange(4)) if kind == "mixed" and rng.random() < 0.1 else b""
        code += _instruction(rng, mode)
    image = bytearray(code[:CODE_BYTES].ljust(TABLES_END - BASE, b"\0"))
    for address, data in _tables(rng, mode):
        image[address - BASE : address - BASE + len(data)] = data
    return bytes(image)


def _surroundings(rng, mode) -> bytes:
    """Code that loads the tables, a stack, and registers with values worth having."""
    if mode == "real":
        code = b"".join(b"\xb8" + struct.pack("<H", rng.getrandbits(16)) + b"\x8e" + bytes([0xC0 | s << 3])
                        for s in (0, 3, 4, 5) if rng.random() < 0.5)  # fmt: skip
        # vectors 0 to 31 lead into the code: DS = 0; MOV [4 * n], offset; MOV [4 * n + 2], 0x1000
        code += b"\x31\xc0\x8e\xd8"
        for vector in range(32):
            code += b"\xc7\x06" + struct.pack("<HH", 4 * vector, rng.randrange(0x400, CODE_BYTES))
            code += b"\xc7\x06" + struct.pack("<HH", 4 * vector + 2, 0x1000)
    else:
        absolute = b"\x25" if mode == "long64" else b""
        form = 4 if mode == "long64" else 5
        code = b"\x0f\x01" + bytes([0x10 | form]) + absolute + struct.pack("<I", GDT_POINTER)  # LGDT
        code += b"\x0f\x01" + bytes([0x18 | form]) + absolute + struct.pack("<I", IDT_POINTER)  # LIDT
        code += b"\xbc" + struct.pack("<I", STACK)
        if (
            rng.random() < 0.3
        ):  # MOV EAX, CR4; OR EAX, bits; MOV CR4, EAX: SSE, PAE, PSE, PGE, OSXSAVE, FSGSBASE, SMEP, UMIP
            bits = rng.choice((0x600, 0x40600, 0x10680, 0x100600, 0xA0, 0x800))
            code += b"\x0f\x20\xe0\x0d" + struct.pack("<I", bits) + b"\x0f\x22\xe0"
    for register in (0, 1, 2, 3, 5, 6, 7):
        code += _load_register(rng, mode, register)
    return code


def _load_register(rng, mode, register) -> bytes:
    if mode == "long64" and rng.random() < 0.3:
        return b"\x48" + bytes([0xB8 + register]) + struct.pack("<Q", rng.choice(WIDE))
    prefix = b"\x66" if mode == "real" else b""
    value = rng.choice(VALUES) if rng.random() < 0.8 else rng.getrandbits(32)
    return prefix + bytes([0xB8 + register]) + struct.pack("<I", value)


def _instruction(rng, mode) -> bytes:
    pick = rng.random()
    if pick < 0.1:
        return _load_register(rng, mode, rng.choice((0, 1, 2, 3, 5, 6, 7)))
    if pick < 0.13:  # an MSR that exists
        prefix = b"\x66" if mode == "real" else b""
        select = prefix + b"\xb9" + struct.pack("<I", rng.choice(MSRS))
        return select + rng.choice((b"\x0f\x32", b"\x0f\x30"))
    if pick < 0.15:  # a segment register from the GDT
        return (
            b"\x66\xb8"[mode == "real" :]
            + struct.pack("<H", rng.randrange(64) * 8 | rng.randrange(4))
            + (b"\x8e" + bytes([0xC0 | rng.choice((0, 2, 3, 4, 5)) << 3]))
        )
    if pick < 0.16:
        return rng.choice(
            (b"\xfb", b"\x9d", b"\xcf", b"\xcb", b"\xca\x00\x00", b"\x48\xcf", b"\x0f\x05", b"\x0f\x07")
        )
    row = rng.choice(TABLE.rows[1:])
    full = encoding(row, rng, MODE_NUMBER[mode])
    return full[: _length(full, mode)]


def _length(full: bytes, mode: str) -> int:
    """The length of the instruction, so that the next one starts where it ends."""
    from iced_x86 import Decoder

    instruction = Decoder((16, 32, 64)[MODE_NUMBER[mode]], full).decode()
    return max(1, min(instruction.len, len(full)))


def _tables(rng, mode):
    if mode == "real":
        return []
    entries = [0, 0, CODE[mode], DATA, TASK, 0]
    while len(entries) < 64:
        access = rng.choice(
            (
                0x9B,
                0x93,
                0xFB,
                0xF3,
                0xFF,
                0x97,
                0xF7,
                0x89,
                0x82,
                0xE9,
                0xEC,
                0x8C,
                0x13,
                0x9E,
                rng.getrandbits(8),
            )
        )
        flags = rng.choice((0xC, 0xA, 0x4, 0x0, rng.getrandbits(4)))
        base = rng.choice((0, BASE, rng.getrandbits(32)))
        limit = rng.choice((0xFFFFF, 0xFFF, 0, rng.getrandbits(20)))
        if access & 0x1F in (0xC, 0x4):  # call gates
            target = BASE + rng.randrange(CODE_BYTES)
            entries.append(
                target & 0xFFFF | 0x10 << 16 | rng.randrange(4) << 32 | access << 40 | target >> 16 << 48
            )
            continue
        entries.append(
            limit & 0xFFFF
            | (base & 0xFF_FFFF) << 16
            | access << 40
            | limit >> 16 << 48
            | flags << 52
            | base >> 24 << 56
        )
    gates = b""
    for _ in range(256):
        target = BASE + rng.randrange(0x100, CODE_BYTES)
        kind = rng.choice((0x8E, 0x8E, 0x8F, 0xEE, 0xEF, 0x8E, 0x85, 0x86, rng.getrandbits(8)))
        stack = rng.choice((0, 0, 0, 1, 7)) if mode == "long64" else 0
        selector = rng.choice((0x10, 0x10, 0x10, 0x10, rng.randrange(64) * 8 | rng.randrange(4)))
        gates += struct.pack("<HHBBH", target & 0xFFFF, selector, stack, kind, target >> 16)
        if mode == "long64":
            gates += bytes(8)
    return [
        (GDT, struct.pack("<64Q", *entries)),
        (GDT_POINTER, struct.pack("<HQ", 64 * 8 - 1, GDT)),
        (IDT, gates),
        (IDT_POINTER, struct.pack("<HQ", len(gates) - 1, IDT)),
    ]

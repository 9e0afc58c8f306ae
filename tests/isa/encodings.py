"""Encodings of a table row: all its ModRM forms, and the prefixes that change what it means."""

import random

from vmx.isa.table import F_MODRM, VEX_MAP

MANDATORY = {"": b"", "NP": b"", "66": b"\x66", "F3": b"\xf3", "F2": b"\xf2"}
VEX_PP = {"NP": 0, "66": 1, "F3": 2, "F2": 3}
ESCAPE = {0: b"", 1: b"\x0f", 2: b"\x0f\x38", 3: b"\x0f\x3a"}
LEGACY = (
    b"", b"\x66", b"\x67", b"\x66\x67", b"\xf0", b"\xf2", b"\xf3", b"\x2e", b"\x26", b"\x36", b"\x3e", b"\x64", b"\x65",
    b"\x64\x3e", b"\x66\xf3", b"\xf0\x66",
)  # fmt: skip
REX = (b"", b"\x40", b"\x41", b"\x42", b"\x44", b"\x48", b"\x4f")
SIBS = (0x00, 0x24, 0x25, 0x65, 0xE0, 0x8D, 0x05, 0x5C)
IMMEDIATES = (bytes.fromhex("80ff7f80818283fe"), bytes.fromhex("0102030405060708"), b"\xff" * 8, b"\x00" * 8)


def modrm_tails(row, rng, count):
    """ModRM bytes with SIB and displacement that the row accepts: `count` of them."""
    if not row.flags & F_MODRM:
        return [b""]
    tails = []
    for mod in range(4):
        if (mod == 3 and row.form == "mem") or (mod != 3 and row.form == "reg"):
            continue
        for rm in range(8) if row.rm is None else (row.rm,):
            reg = rng.randrange(8) if row.digit is None else row.digit
            byte = bytes((mod << 6 | reg << 3 | rm,))
            for sib in SIBS if rm == 4 and mod != 3 else (0,):
                # the bytes after ModRM serve as SIB and displacement, whichever there are
                tails.append(
                    byte + bytes((sib,)) + bytes((rng.choice((0x7F, 0x80, 1, 0xFE)), 0x43, 0x92, 0xA1))
                )
    rng.shuffle(tails)
    return tails[:count]


def vex(row, mode, rng):
    """A VEX prefix of three bytes and the opcode; in 32-bit mode it must not look like LES."""
    rxb = rng.randrange(8) if mode == 2 else 7
    vvvv = 15 if "Ib" in row.operands else rng.randrange(16)
    if mode != 2:
        vvvv |= 8
    third = rng.getrandbits(1) << 7 | vvvv << 3 | VEX_PP[row.prefix]
    return bytes((0xC4, rxb << 5 | row.map - VEX_MAP, third, row.opcode))


def vex_encodings(row, mode, rng):
    """Byte strings of a row with a VEX prefix, which 16-bit code does not have here."""
    for legacy in (b"", b"\x67", b"\x2e", b"\x64") if mode else ():
        for tail in modrm_tails(row, rng, 40):
            body = tail[:1] if tail[0] & 0xC0 == 0xC0 else tail
            yield (legacy + vex(row, mode, rng) + body + rng.choice(IMMEDIATES) + b"\x11" * 8)[:16]


def encodings(row, mode, rng: random.Random):
    """Byte strings of a row (longer than the instruction: what follows is to be ignored)."""
    if row.map > VEX_MAP:
        yield from vex_encodings(row, mode, rng)
        return
    opcodes = [row.opcode]
    if row.register:
        opcodes = [row.opcode + i for i in range(8)]
    if row.condition:
        opcodes = [row.opcode + i for i in range(16)]
    for legacy in LEGACY:
        for rex in REX if mode == 2 else (b"",):
            plain = not legacy and not rex
            for tail in modrm_tails(row, rng, 40 if plain else 1 if mode == 2 else 3):
                for opcode in opcodes if plain else (rng.choice(opcodes),):
                    head = legacy + MANDATORY[row.prefix] + rex + ESCAPE[row.map] + bytes((opcode,))
                    body = tail
                    if tail and tail[0] & 0xC0 == 0xC0:
                        body = tail[:1]
                    yield (head + body + rng.choice(IMMEDIATES) + b"\x11" * 8)[:16]

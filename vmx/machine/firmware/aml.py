"""ACPI machine language, as much as the DSDT needs (ACPI: "ACPI Machine Language (AML) Specification").

Each function returns the bytes of one AML object; they nest as the terms of ASL do.
"""

from __future__ import annotations

import struct


def name_string(path: str) -> bytes:
    r"""A name such as `_HID` or `\_SB_`, of one segment with four characters."""
    root, segment = (b"\\", path[1:]) if path.startswith("\\") else (b"", path)
    return root + segment.ljust(4, "_").encode("ascii")


def package_length(content: bytes) -> bytes:
    """PkgLength, which counts itself."""
    for size, limit in ((1, 0x3F), (2, 0xFFF), (3, 0xF_FFFF)):
        total = len(content) + size
        if total <= limit:
            break
    else:
        raise ValueError(f"AML package of {len(content)} bytes is too long")
    if size == 1:
        return bytes([total])
    return bytes([(size - 1) << 6 | total & 0xF]) + (total >> 4).to_bytes(size - 1, "little")


def integer(value: int) -> bytes:
    """The shortest encoding of a constant."""
    if value in (0, 1):
        return bytes([value])  # ZeroOp, OneOp
    for prefix, size in ((0x0A, 1), (0x0B, 2), (0x0C, 4), (0x0E, 8)):
        if value < 1 << 8 * size:
            return bytes([prefix]) + value.to_bytes(size, "little")
    raise ValueError(f"AML integer {value:#x} is too large")


def eisa_id(identifier: str) -> bytes:
    """A compressed EISA identifier such as `PNP0501`, as an integer constant."""
    letters = [ord(c) - 0x40 for c in identifier[:3]]
    vendor = letters[0] << 10 | letters[1] << 5 | letters[2]
    # The identifier is big-endian, the constant that holds it little-endian.
    return b"\x0c" + struct.pack(">HH", vendor, int(identifier[3:], 16))


def buffer(content: bytes) -> bytes:
    body = integer(len(content)) + content
    return b"\x11" + package_length(body) + body


def package(*elements: bytes) -> bytes:
    body = bytes([len(elements)]) + b"".join(elements)
    return b"\x12" + package_length(body) + body


def name(path: str, value: bytes) -> bytes:
    return b"\x08" + name_string(path) + value


def scope(path: str, *terms: bytes) -> bytes:
    body = name_string(path) + b"".join(terms)
    return b"\x10" + package_length(body) + body


def device(path: str, *terms: bytes) -> bytes:
    body = name_string(path) + b"".join(terms)
    return b"\x5b\x82" + package_length(body) + body


def io(first: int, count: int) -> bytes:
    """Resource: fixed I/O ports, all 16 address bits decoded."""
    return struct.pack("<BBHHBB", 0x47, 1, first, first, 1, count)


def irq(line: int) -> bytes:
    """Resource: one ISA interrupt, edge triggered, active high."""
    return struct.pack("<BH", 0x22, 1 << line)


def resources(*descriptors: bytes) -> bytes:
    """A resource template; a checksum of 0 in the end tag means "not checked"."""
    return buffer(b"".join(descriptors) + b"\x79\x00")

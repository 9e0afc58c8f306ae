"""The BIOS data area: the few words that kernels read from 0x400-0x4FF (IBM PC AT Technical Reference)."""

from __future__ import annotations

import struct

from vmx.boot import layout
from vmx.boot.image import Placement

BIOS_DATA_AREA = 0x400
COM1 = 0x3F8


def placements() -> list[Placement]:
    data = bytearray(0x100)
    struct.pack_into("<H", data, 0x00, COM1)
    struct.pack_into("<H", data, 0x0E, layout.EBDA >> 4)
    struct.pack_into("<H", data, 0x13, layout.EBDA // layout.KIB)  # base memory in KiB
    data[0x49] = 3  # video mode: 80x25 colour text
    struct.pack_into("<H", data, 0x4A, 80)
    struct.pack_into("<H", data, 0x63, 0x3D4)  # CRT controller
    data[0x84] = 24  # rows less one
    # The first byte of the extended area is its size in KiB.
    return [
        Placement(BIOS_DATA_AREA, bytes(data), "BIOS data area"),
        Placement(layout.EBDA, b"\x01", "extended BIOS data area"),
    ]

"""The memory map as firmware reports it. Loaders need it too, so it is made in `vmx.boot.layout`."""

from __future__ import annotations

import struct

from vmx.boot.layout import memory_map

__all__ = ["e820_file", "memory_map"]


def e820_file(memory_bytes: int) -> bytes:
    """The map as rows of start, length and type, 20 bytes each: the content of fw_cfg's `etc/e820`."""
    return b"".join(struct.pack("<QQI", *entry) for entry in memory_map(memory_bytes))

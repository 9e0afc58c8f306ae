"""Flat binaries: bytes for one address, entered at their first byte."""

from __future__ import annotations

from vmx.boot import layout, states
from vmx.boot.image import BootError, BootImage, Placement

BOOT_SECTOR = 0x7C00
MODES = ("real", "protected32", "long64")


def default_mode(load_address: int) -> str:
    """A boot sector starts in real mode, as under a BIOS; everything else in flat 32-bit protected mode."""
    return "real" if load_address == BOOT_SECTOR else "protected32"


def load(
    data: bytes, path: str, *, memory_bytes: int, load_address: int, mode: str | None = None
) -> BootImage:
    e820 = layout.memory_map(memory_bytes)
    mode = mode or default_mode(load_address)
    if mode not in MODES:
        raise BootError(f"a flat binary cannot start in mode {mode!r}; it can in: {', '.join(MODES)}")
    if mode == "real":
        if load_address > 0xF_FFFF:
            raise BootError(f"{path!r}: real mode reaches 0xFFFFF, the load address is {load_address:#x}")
        # DL: the drive that a BIOS would have started from.
        registers, tables = states.real(load_address, rdx=0x80)
    elif mode == "protected32":
        registers, tables = states.protected32(load_address)
    else:
        registers, tables = states.long64(load_address)
    placements = [Placement(load_address, data, "flat binary"), *tables]
    layout.check_placements(placements, memory_bytes)
    notes = [f"flat binary at {load_address:#x}, {mode}"]
    return BootImage("flat", placements, registers, e820, notes=notes)

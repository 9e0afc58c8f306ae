"""PVH: an ELF kernel whose Xen note names a 32-bit entry point (Xen: "x86/HVM direct boot ABI").

The kernel starts in 32-bit protected mode with flat segments, paging off, and EBX at a start information
structure that leads to the command line, the modules, the memory map and the RSDP. Linux takes module 0 as
its initrd.
"""

from __future__ import annotations

import struct

from vmx.boot import elf, files, layout, states
from vmx.boot.image import BootError, BootImage, Placement

XEN_ELFNOTE_PHYS32_ENTRY = 18
START_MAGIC = 0x336E_C578
VERSION = 1  # with a memory map
START_INFO_SIZE = 56
MODULE_SIZE = 32
MEMORY_MAP_ENTRY = struct.Struct("<QQII")


def entry_point(kernel: elf.Elf, path: str) -> int | None:
    """The physical address of the PVH entry, or None where the kernel has no such note."""
    for note in kernel.notes:
        if note.name == b"Xen" and note.type == XEN_ELFNOTE_PHYS32_ENTRY:
            if len(note.description) not in (4, 8):
                raise BootError(
                    f"{path!r}: the note PHYS32_ENTRY has {len(note.description)} bytes; 4 or 8 are expected"
                )
            return int.from_bytes(note.description, "little")
    return None


def load(
    data: bytes,
    path: str,
    *,
    memory_bytes: int,
    modules: list[tuple[bytes, str, str]],
    command_line: str = "",
) -> BootImage:
    """`modules` are content, path and string of each; an initrd is the first of them."""
    e820 = layout.memory_map(memory_bytes)
    kernel = elf.parse(data, path)
    entry = entry_point(kernel, path)
    if entry is None:
        raise BootError(f"{path!r} has no PVH entry: an ELF note of Xen with type 18 is needed")
    placements = elf.placements(kernel, path, memory_bytes)

    top = layout.low_memory_end(memory_bytes)
    strings = [files.encode_command_line(text, layout.PAGE) for _, _, text in modules]
    module_list = b""
    tail = bytearray(files.encode_command_line(command_line, layout.COMMAND_LINE_LIMIT // 2))
    for (content, name, _), string in zip(modules, strings, strict=True):
        placement = layout.place_on_top(
            content, "module", above=kernel.end(), limit=top, memory_bytes=memory_bytes, path=name
        )
        top = placement.address
        placements.append(placement)
        module_list += struct.pack(
            "<QQQQ", placement.address, len(content), layout.COMMAND_LINE + len(tail), 0
        )
        tail += string
    if len(tail) > layout.COMMAND_LINE_LIMIT:
        raise BootError(f"the strings of {len(modules)} modules take {len(tail)} bytes; 65536 is the most")
    placements.append(Placement(layout.COMMAND_LINE, bytes(tail), "command line and module strings"))

    memory_map = b"".join(MEMORY_MAP_ENTRY.pack(*entry, 0) for entry in e820)
    modules_at = layout.BOOT_PARAMETERS + START_INFO_SIZE
    map_at = modules_at + len(module_list)
    start_info = struct.pack(
        "<IIIIQQQQII",
        START_MAGIC,
        VERSION,
        0,  # flags: not the initial domain of a Xen host
        len(modules),
        modules_at if modules else 0,
        layout.COMMAND_LINE,
        layout.RSDP,
        map_at,
        len(e820),
        0,
    )
    information = start_info + module_list + memory_map
    if layout.BOOT_PARAMETERS + len(information) > layout.PAGE_TABLES:
        raise BootError(f"{len(modules)} modules are too many for the start information")
    placements.append(Placement(layout.BOOT_PARAMETERS, information, "PVH start information"))

    registers, tables = states.protected32(entry, rbx=layout.BOOT_PARAMETERS)
    placements += tables
    layout.check_placements(placements, memory_bytes)
    notes = [f"PVH entry at {entry:#x}, {len(modules)} modules"]
    return BootImage("pvh", placements, registers, e820, notes=notes, symbols=elf.symbols(data, path))

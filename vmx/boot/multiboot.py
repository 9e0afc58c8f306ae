"""Multiboot 1 kernels (Multiboot Specification 0.6.96: "OS image format", "Boot information format").

The header lies in the first 8 KiB. Where to load comes from its address fields, or from the ELF file around
it. The kernel starts in 32-bit protected mode without paging, with a magic number in EAX and the address of
the boot information in EBX.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass

from vmx.boot import elf, files, layout, states
from vmx.boot.image import BootError, BootImage, MemoryRange, Placement

HEADER_MAGIC = 0x1BAD_B002
BOOT_MAGIC = 0x2BAD_B002
SEARCH = 8 * layout.KIB

# Header flags: the low 16 bits are demands, the others are offers.
PAGE_ALIGN = 1 << 0
MEMORY_INFO = 1 << 1
VIDEO_MODE = 1 << 2
ADDRESS_FIELDS = 1 << 16
KNOWN_DEMANDS = PAGE_ALIGN | MEMORY_INFO | VIDEO_MODE

# Flags of the boot information.
HAS_MEMORY = 1 << 0
HAS_COMMAND_LINE = 1 << 2
HAS_MODULES = 1 << 3
HAS_MEMORY_MAP = 1 << 6
HAS_LOADER_NAME = 1 << 9

INFORMATION_SIZE = 116
LOADER_NAME = b"vmx\0"


@dataclass(frozen=True)
class Header:
    offset: int
    flags: int
    header_addr: int = 0
    load_addr: int = 0
    load_end_addr: int = 0
    bss_end_addr: int = 0
    entry_addr: int = 0


def find_header(data: bytes, path: str = "kernel") -> Header | None:
    """The multiboot header, or None: aligned to 4, wholly in the first 8 KiB, its words adding to zero."""
    for offset in range(0, min(len(data), SEARCH) - 11, 4):
        magic, flags, checksum = struct.unpack_from("<III", data, offset)
        if magic != HEADER_MAGIC or magic + flags + checksum & 0xFFFF_FFFF:
            continue
        if not flags & ADDRESS_FIELDS:
            return Header(offset, flags)
        if offset + 32 > len(data):
            raise BootError(
                f"{path!r} is truncated: its multiboot header at {offset:#x} has 32 bytes, "
                f"the file ends after {len(data) - offset}"
            )
        return Header(offset, flags, *struct.unpack_from("<5I", data, offset + 12))
    return None


def load(
    data: bytes,
    path: str,
    *,
    memory_bytes: int,
    modules: list[tuple[bytes, str, str]],
    command_line: str = "",
) -> BootImage:
    """`modules` are content, path and string of each."""
    e820 = layout.memory_map(memory_bytes)
    header = find_header(data, path)
    if header is None:
        raise BootError(f"{path!r} is no multiboot kernel: no valid header in its first 8 KiB")
    demands = header.flags & 0xFFFF
    if demands & ~KNOWN_DEMANDS:
        raise BootError(
            f"{path!r} demands multiboot features {demands & ~KNOWN_DEMANDS:#x}, which no loader knows; "
            f"multiboot 1 has defined {KNOWN_DEMANDS:#x}"
        )
    if demands & VIDEO_MODE:
        raise BootError(
            f"{path!r} demands a video mode from its loader (multiboot flag 2); only text mode exists"
        )

    symbols = None
    if header.flags & ADDRESS_FIELDS:
        kernel, entry = _address_fields(data, header, path, memory_bytes)
        placements, end = [kernel], kernel.end
    else:
        container = elf.parse(data, path) if elf.recognises(data) else None
        if container is None:
            raise BootError(
                f"{path!r}: its multiboot header has no address fields (flag 16), and it is no ELF file"
            )
        placements = elf.placements(container, path, memory_bytes)
        entry, end, symbols = container.entry_physical(), container.end(), elf.symbols(data, path)

    placed = []
    top = layout.low_memory_end(memory_bytes)
    for content, name, string in modules:
        module = layout.place_on_top(
            content, "module", above=end, limit=top, memory_bytes=memory_bytes, path=name
        )
        top = module.address
        placed.append((module, string))
    # Kernels may be anywhere from 1 MiB on and below: what they read must not be in their way.
    information = _boot_information(command_line, path, placed, e820)
    placements += [module for module, _ in placed]
    placements.append(Placement(layout.COMMAND_LINE, information, "multiboot information"))
    registers, tables = states.protected32(entry, rax=BOOT_MAGIC, rbx=layout.COMMAND_LINE)
    placements += tables
    layout.check_placements(placements, memory_bytes)
    notes = [f"multiboot entry at {entry:#x}, {len(modules)} modules"]
    return BootImage("multiboot", placements, registers, e820, notes=notes, symbols=symbols)


def _address_fields(data: bytes, header: Header, path: str, memory_bytes: int) -> tuple[Placement, int]:
    """The kernel as the header's address fields describe it, its BSS as zeros behind it."""
    before = header.header_addr - header.load_addr
    start = header.offset - before
    if before < 0 or start < 0:
        raise BootError(
            f"{path!r}: the multiboot header says it is loaded at {header.header_addr:#x} in a kernel from "
            f"{header.load_addr:#x} on, but lies only {header.offset:#x} into the file"
        )
    size = header.load_end_addr - header.load_addr if header.load_end_addr else len(data) - start
    if size <= 0 or start + size > len(data):
        raise BootError(
            f"{path!r} is truncated or damaged: its multiboot header announces {size} bytes from file offset "
            f"{start:#x} on, the file has {len(data)}"
        )
    end = max(header.bss_end_addr, header.load_addr + size)
    if not layout.is_ram(header.load_addr, end, memory_bytes):
        raise BootError(
            f"{path!r} needs guest-physical {header.load_addr:#x}-{end - 1:#x}, which is not all RAM in a "
            f"machine with {memory_bytes // layout.MIB} MiB of memory"
        )
    content = data[start : start + size] + bytes(end - header.load_addr - size)
    return Placement(header.load_addr, content, "multiboot kernel"), header.entry_addr


def _boot_information(
    command_line: str, path: str, modules: list[tuple[Placement, str]], e820: list[MemoryRange]
) -> bytes:
    """The information structure and, behind it, everything that it points to."""
    base = layout.COMMAND_LINE
    tail = bytearray()

    def append(data: bytes) -> int:
        address = base + INFORMATION_SIZE + len(tail)
        tail.extend(data)
        tail.extend(bytes(-len(tail) % 4))
        return address

    # As GRUB has it: the command line begins with the kernel's name.
    command_line_at = append(
        files.encode_command_line(f"{os.path.basename(path)} {command_line}".rstrip(), layout.PAGE * 8)
    )
    name_at = append(LOADER_NAME)
    # The size word of a row does not count itself.
    map_rows = b"".join(struct.pack("<IQQI", 20, *entry) for entry in e820)
    map_at = append(map_rows)
    rows = b""
    for module, string in modules:
        string_at = append(files.encode_command_line(string, layout.PAGE))
        rows += struct.pack("<IIII", module.address, module.end, string_at, 0)
    modules_at = append(rows)
    upper = next(r for r in e820 if r.start == layout.HIGH_MEMORY)
    flags = HAS_MEMORY | HAS_COMMAND_LINE | HAS_MODULES | HAS_MEMORY_MAP | HAS_LOADER_NAME
    information = bytearray(INFORMATION_SIZE)
    struct.pack_into(
        "<III", information, 0, flags, layout.EBDA // layout.KIB, upper.length // layout.KIB
    )  # mem_lower, mem_upper
    struct.pack_into("<III", information, 16, command_line_at, len(modules), modules_at)
    struct.pack_into("<II", information, 44, len(map_rows), map_at)
    struct.pack_into("<I", information, 64, name_at)
    if len(information) + len(tail) > layout.COMMAND_LINE_LIMIT:
        raise BootError(f"{len(modules)} modules with their strings are too much for the boot information")
    return bytes(information + tail)

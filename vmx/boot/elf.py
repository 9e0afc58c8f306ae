"""ELF kernels: segments for memory, notes, symbols; and the plain ELF kernel that no boot protocol describes.

Formats: System V ABI, "Object Files" and "Program Loading". A kernel needs three tables of it, read here
directly: program headers, notes, and the symbol table where there is one.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from vmx.boot import layout, states
from vmx.boot.image import BootError, BootImage, Placement

MAGIC = b"\x7fELF"
LITTLE_ENDIAN = 1
EXECUTABLE_TYPES = (2, 3)  # ET_EXEC, ET_DYN
MACHINES = (3, 62)  # EM_386, EM_X86_64
PT_LOAD = 1
PT_NOTE = 4
SHT_SYMTAB = 2


class Format(NamedTuple):
    """The structures of one ELF class."""

    bits: int
    header: struct.Struct  # from e_type on: type machine version entry phoff shoff flags ehsize phentsize ...
    program_header: struct.Struct
    section_header: struct.Struct
    symbol: struct.Struct


FORMATS = {
    number: Format(bits, *map(struct.Struct, structures))
    for number, bits, *structures in (
        (1, 32, "<HHIIIIIHHHHHH", "<8I", "<10I", "<IIIBBH"),
        (2, 64, "<HHIQQQIHHHHHH", "<IIQQQQQQ", "<IIQQQQIIQQ", "<IBBHQQ"),
    )
}


@dataclass(frozen=True)
class Segment:
    """A loadable segment at its physical address; memory beyond the data is zero."""

    physical: int
    virtual: int
    data: bytes
    memory_size: int

    @property
    def end(self) -> int:
        return self.physical + self.memory_size


@dataclass(frozen=True)
class Note:
    name: bytes
    type: int
    description: bytes


@dataclass(frozen=True)
class Elf:
    bits: int
    entry: int
    segments: list[Segment]
    notes: list[Note]

    def entry_physical(self) -> int:
        """The entry point as a physical address: 64-bit kernels are linked at a virtual one."""
        for segment in self.segments:
            if segment.virtual <= self.entry < segment.virtual + segment.memory_size:
                return self.entry - segment.virtual + segment.physical
        return self.entry

    def end(self) -> int:
        return max(segment.end for segment in self.segments)


def recognises(data: bytes) -> bool:
    return data[:4] == MAGIC


def _take(layout_of: struct.Struct, data: bytes, offset: int, path: str, what: str) -> tuple:
    if offset + layout_of.size > len(data):
        raise BootError(
            f"{path!r} is truncated: its ELF {what} is at {offset:#x}-{offset + layout_of.size - 1:#x}, "
            f"the file has {len(data)} bytes"
        )
    return layout_of.unpack_from(data, offset)


def _header(data: bytes, path: str) -> tuple[Format, tuple]:
    """The file's format and the fields of its header from e_type on."""
    if len(data) < 16:
        raise BootError(f"{path!r} is truncated: an ELF file begins with 16 bytes of identification")
    if data[4] not in FORMATS or data[5] != LITTLE_ENDIAN:
        raise BootError(
            f"{path!r} is an ELF file of class {data[4]} and byte order {data[5]}; "
            f"class 1 or 2 (32 or 64 bits) and byte order 1 (little-endian) are needed"
        )
    form = FORMATS[data[4]]
    return form, _take(form.header, data, 16, path, "header")


def parse(data: bytes, path: str) -> Elf:
    """An executable ELF file for x86, with its segments and notes."""
    form, (kind, machine, _, entry, offset, _, _, _, size, count, *_) = _header(data, path)
    if machine not in MACHINES:
        raise BootError(f"{path!r} is an ELF file for machine {machine}; 3 (i386) or 62 (x86-64) is needed")
    if kind not in EXECUTABLE_TYPES:
        raise BootError(f"{path!r} is an ELF file of type {kind}; an executable (type 2 or 3) is needed")
    if count and size < form.program_header.size:
        raise BootError(
            f"{path!r} has ELF program headers of {size} bytes; they have {form.program_header.size} or more"
        )
    segments: list[Segment] = []
    notes: list[Note] = []
    for number in range(count):
        fields = _take(form.program_header, data, offset + number * size, path, f"program header {number}")
        if form.bits == 64:
            header_type, _, start, virtual, physical, file_size, memory_size, _ = fields
        else:
            header_type, start, virtual, physical, file_size, memory_size, _, _ = fields
        if header_type not in (PT_LOAD, PT_NOTE):
            continue
        if start + file_size > len(data):
            raise BootError(
                f"{path!r} is truncated: segment {number} needs the file's bytes {start:#x}-"
                f"{start + file_size - 1:#x}, it has {len(data)}"
            )
        content = data[start : start + file_size]
        if header_type == PT_NOTE:
            notes += _notes(content, path)
        elif memory_size < file_size:
            raise BootError(f"{path!r}: segment {number} is larger in the file than in memory")
        elif memory_size:
            segments.append(Segment(physical, virtual, content, memory_size))
    if not segments:
        raise BootError(f"{path!r} is an ELF file without a segment to load; a linked kernel is needed")
    return Elf(form.bits, entry, segments, notes)


def _notes(data: bytes, path: str) -> Iterator[Note]:
    """The notes of a segment: sizes of name and description, type, then both, padded to 4 bytes."""
    offset = 0
    while offset + 12 <= len(data):
        name_size, description_size, kind = struct.unpack_from("<III", data, offset)
        name_start = offset + 12
        start = name_start + (name_size + 3 & ~3)
        end = start + description_size
        if end > len(data):
            raise BootError(f"{path!r} has an ELF note that reaches beyond its segment; the file is damaged")
        yield Note(data[name_start : name_start + name_size].rstrip(b"\0"), kind, data[start:end])
        offset = start + (description_size + 3 & ~3)


def symbols(data: bytes, path: str) -> dict[str, int]:
    """Names and values of the symbol table; empty if it is missing or damaged, as a kernel boots without."""
    form, (_, _, _, _, _, offset, _, _, _, _, size, count, _) = _header(data, path)
    if offset + size * count > len(data) or size < form.section_header.size:
        return {}
    # name type flags addr offset size link ...
    sections = [form.section_header.unpack_from(data, offset + size * i) for i in range(count)]
    for section in sections:
        if section[1] != SHT_SYMTAB or section[6] >= count:
            continue
        strings_at, strings_size = sections[section[6]][4:6]
        strings = data[strings_at : strings_at + strings_size]
        table = data[section[4] : section[4] + section[5]]
        found = {}
        for fields in form.symbol.iter_unpack(table[: len(table) - len(table) % form.symbol.size]):
            value = fields[4] if form.bits == 64 else fields[1]
            name = strings[fields[0] : max(strings.find(b"\0", fields[0]), fields[0])]
            if name:
                found[name.decode("latin-1")] = value
        return found
    return {}


def placements(kernel: Elf, path: str, memory_bytes: int) -> list[Placement]:
    """The segments as placements; all of their memory, the zero-filled parts included, has to be RAM."""
    previous = None
    for segment in sorted(kernel.segments, key=lambda s: s.physical):
        if not layout.is_ram(segment.physical, segment.end, memory_bytes):
            raise BootError(
                f"{path!r} has a segment for guest-physical {segment.physical:#x}-{segment.end - 1:#x}, "
                f"which is not all RAM in a machine with {memory_bytes // layout.MIB} MiB of memory"
            )
        if previous is not None and previous.end > segment.physical:
            raise BootError(f"{path!r} has two segments that overlap at {segment.physical:#x}")
        previous = segment
    return [
        Placement(s.physical, s.data + bytes(s.memory_size - len(s.data)), f"ELF segment {number}")
        for number, s in enumerate(kernel.segments)
    ]


def load(data: bytes, path: str, *, memory_bytes: int) -> BootImage:
    """An ELF file of no known protocol: entered at its entry point, flat.

    ELF64 starts in 64-bit mode on identity page tables, ELF32 in protected mode without paging; no register
    holds anything, since there is no protocol that would say what.
    """
    e820 = layout.memory_map(memory_bytes)
    kernel = parse(data, path)
    entry = kernel.entry_physical()
    registers, tables = states.long64(entry) if kernel.bits == 64 else states.protected32(entry)
    image = [*placements(kernel, path, memory_bytes), *tables]
    layout.check_placements(image, memory_bytes)
    notes = [f"plain ELF: entry at {entry:#x} in {kernel.bits}-bit mode, no boot information"]
    return BootImage("elf", image, registers, e820, notes=notes, symbols=symbols(data, path))

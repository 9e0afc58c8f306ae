"""Where things are in guest-physical memory: the PC memory map, and the places that loaders use in it.

RAM fills the space up to a hole of 1 GiB below 4 GiB (local APIC, I/O APIC, PCI), the rest goes on from
4 GiB. Of the first MiB, 0-0x9FBFF is RAM for the guest; the extended BIOS data area, video memory and the
BIOS area follow. The firmware tables are in the BIOS area, where every scan for them looks.
"""

from __future__ import annotations

from vmx.boot.image import BootError, MemoryRange, Placement

KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30

PAGE = 4 * KIB

# Types of e820 ranges (ACPI: "System Address Map Interfaces").
RAM = 1
RESERVED = 2

EBDA = 0x9_FC00  # extended BIOS data area: the last KiB under 640 KiB
VIDEO = 0xA_0000
BIOS_AREA = 0xE_0000  # ACPI and MP tables
HIGH_MEMORY = 0x10_0000
HOLE = 3 * GIB  # RAM ends here at the latest and goes on at ABOVE_HOLE
ABOVE_HOLE = 4 * GIB

RSDP = 0xE_0000  # scanned on 16-byte boundaries from 0xE0000 (ACPI: "Finding the RSDP on IA-PC Systems")

# Low memory that loaders use; a kernel may take it over once it has read what it needs.
GDT = 0x1000
TSS = 0x1800
STACK_TOP = 0x7000
BOOT_PARAMETERS = 0x7000  # Linux zero page, PVH start info or multiboot information
PAGE_TABLES = 0x9000  # PML4, PDPT and four page directories: 0x9000-0xEFFF
COMMAND_LINE = 0x2_0000
COMMAND_LINE_LIMIT = 64 * KIB

LEAST_MEMORY = 2 * MIB
MOST_MEMORY = 1 << 40


def check_memory(memory_bytes: int) -> None:
    if not LEAST_MEMORY <= memory_bytes <= MOST_MEMORY or memory_bytes % PAGE:
        raise BootError(
            f"guest memory of {memory_bytes} bytes cannot be used: it has to be a multiple of 4 KiB "
            f"from {LEAST_MEMORY // MIB} MiB to {MOST_MEMORY // GIB} GiB"
        )


def low_memory_end(memory_bytes: int) -> int:
    """The first address after the RAM below the hole."""
    return min(memory_bytes, HOLE)


def memory_map(memory_bytes: int) -> list[MemoryRange]:
    """The e820 map of a machine with `memory_bytes` of RAM."""
    check_memory(memory_bytes)
    low = low_memory_end(memory_bytes)
    ranges = [
        MemoryRange(0, EBDA, RAM),
        MemoryRange(EBDA, VIDEO - EBDA, RESERVED),
        MemoryRange(BIOS_AREA, HIGH_MEMORY - BIOS_AREA, RESERVED),
        MemoryRange(HIGH_MEMORY, low - HIGH_MEMORY, RAM),
    ]
    if memory_bytes > low:
        ranges.append(MemoryRange(ABOVE_HOLE, memory_bytes - low, RAM))
    return ranges


def is_ram(start: int, end: int, memory_bytes: int) -> bool:
    """Whether [start, end) lies in one range of RAM."""
    return any(r.type == RAM and r.start <= start and end <= r.end for r in memory_map(memory_bytes))


def check_placements(placements: list[Placement], memory_bytes: int) -> None:
    """Every placement is in RAM, and no two overlap."""
    previous: Placement | None = None
    for placement in sorted(placements, key=lambda p: p.address):
        if not placement.data:
            continue
        if not is_ram(placement.address, placement.end, memory_bytes):
            raise BootError(
                f"{placement.what} does not fit: it needs guest-physical {placement.address:#x}-"
                f"{placement.end - 1:#x}, which is not all RAM in a machine with "
                f"{memory_bytes // MIB} MiB of memory; give the machine more memory or load it elsewhere"
            )
        if previous is not None and previous.end > placement.address:
            raise BootError(
                f"{placement.what} at {placement.address:#x} overlaps {previous.what} at "
                f"{previous.address:#x}-{previous.end - 1:#x}; load it elsewhere"
            )
        previous = placement


def place_on_top(
    data: bytes, what: str, *, above: int, limit: int, memory_bytes: int, path: str = ""
) -> Placement:
    """`data` on a page boundary, as high as it goes below `limit` and the end of low RAM."""
    top = min(limit, low_memory_end(memory_bytes))
    address = (top - len(data)) & ~(PAGE - 1)
    if address < above:
        need = above + len(data) + PAGE
        where = f" ({path})" if path else ""
        raise BootError(
            f"{what}{where} of {len(data)} bytes does not fit between the end of the kernel at {above:#x} "
            f"and {top:#x}; the machine has {memory_bytes // MIB} MiB of memory and needs "
            f"at least {-(-need // MIB)} MiB"
        )
    return Placement(address, data, what)

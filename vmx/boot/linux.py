"""bzImage: the Linux/x86 boot protocol, 64-bit and 32-bit entry.

Documentation/arch/x86/boot.rst and zero-page.rst of the Linux sources: the setup header is read and
checked, copied to the boot parameters ("zero page") and completed; the protected-mode part is loaded;
the 16-bit setup code is skipped. The 64-bit entry, 0x200 after the load address, is used where the kernel
has one (XLF_KERNEL_64), else the 32-bit entry at the load address.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from vmx.boot import files, layout, states
from vmx.boot.image import BootError, BootImage, Placement

SECTOR = 512

# Offsets of setup header fields, the same in the file and in the boot parameters.
HEADER_START = 0x1F1
SETUP_SECTS = 0x1F1
SYSSIZE = 0x1F4
BOOT_FLAG = 0x1FE
JUMP_LENGTH = 0x201
HEADER_MAGIC = 0x202
VERSION = 0x206
KERNEL_VERSION = 0x20E
TYPE_OF_LOADER = 0x210
LOADFLAGS = 0x211
CODE32_START = 0x214
RAMDISK_IMAGE = 0x218
RAMDISK_SIZE = 0x21C
HEAP_END_PTR = 0x224
CMD_LINE_PTR = 0x228
INITRD_ADDR_MAX = 0x22C
KERNEL_ALIGNMENT = 0x230
RELOCATABLE_KERNEL = 0x234
XLOADFLAGS = 0x236
CMDLINE_SIZE = 0x238
PREF_ADDRESS = 0x258
INIT_SIZE = 0x260

# Offsets of boot parameters outside the setup header.
ORIG_VIDEO_MODE = 0x006
ORIG_VIDEO_COLS = 0x007
ORIG_VIDEO_LINES = 0x00E
ORIG_VIDEO_ISVGA = 0x00F
ORIG_VIDEO_POINTS = 0x010
ACPI_RSDP_ADDR = 0x070
ALT_MEM_K = 0x1E0
E820_ENTRIES = 0x1E8
E820_TABLE = 0x2D0
BOOT_PARAMETERS_SIZE = 0x1000

LOADED_HIGH = 1 << 0
CAN_USE_HEAP = 1 << 7
XLF_KERNEL_64 = 1 << 0
LOADER_UNDEFINED = 0xFF
ENTRY_64 = 0x200

OLDEST_VERSION = 0x0202  # the first with a command line pointer
DEFAULT_INITRD_ADDR_MAX = 0x37FF_FFFF
DEFAULT_CMDLINE_SIZE = 255


@dataclass(frozen=True)
class SetupHeader:
    """What the loader needs of the setup header; fields that the kernel's version lacks have defaults."""

    version: int
    setup_bytes: int  # boot sector and setup code: the protected-mode part follows
    protected_mode_bytes: int
    header_end: int
    kernel_version: str
    loadflags: int
    initrd_addr_max: int
    kernel_alignment: int
    relocatable: bool
    xloadflags: int
    cmdline_size: int
    pref_address: int
    init_size: int

    @property
    def has_64bit_entry(self) -> bool:
        return bool(self.xloadflags & XLF_KERNEL_64)


def recognises(data: bytes) -> bool:
    return data[HEADER_MAGIC : HEADER_MAGIC + 4] == b"HdrS"


def parse_header(data: bytes, path: str = "kernel") -> SetupHeader:
    """The setup header of a bzImage, checked."""

    def number(offset: int, size: int) -> int:
        if offset + size > len(data):
            raise BootError(
                f"{path!r} is truncated: the setup header field at {offset:#x} needs {offset + size} bytes, "
                f"the file has {len(data)}"
            )
        return int.from_bytes(data[offset : offset + size], "little")

    if number(BOOT_FLAG, 2) != 0xAA55:
        raise BootError(f"{path!r} is no bzImage: no 0xAA55 at {BOOT_FLAG:#x}, the end of its boot sector")
    if number(HEADER_MAGIC, 4) != int.from_bytes(b"HdrS", "little"):
        raise BootError(f'{path!r} is no bzImage: no "HdrS" at {HEADER_MAGIC:#x}')
    version = number(VERSION, 2)
    if version < OLDEST_VERSION:
        raise BootError(
            f"{path!r} speaks Linux boot protocol {version >> 8}.{version & 0xFF:02}; "
            f"2.02 (Linux 2.4) or later is needed"
        )
    loadflags = number(LOADFLAGS, 1)
    if not loadflags & LOADED_HIGH:
        raise BootError(f"{path!r} is a zImage, which loads below 1 MiB; a bzImage is needed")

    setup_bytes = ((number(SETUP_SECTS, 1) or 4) + 1) * SECTOR
    header_end = HEADER_MAGIC + number(JUMP_LENGTH, 1)
    if header_end > min(setup_bytes, E820_TABLE):
        raise BootError(f"{path!r} has a setup header that ends at {header_end:#x}, beyond its setup code")
    # Before 2.04 the size was 16 bits wide and not reliable: the rest of the file is the kernel.
    if version >= 0x0204:
        protected_mode_bytes = number(SYSSIZE, 4) * 16
    else:
        protected_mode_bytes = len(data) - setup_bytes
    present = len(data) - setup_bytes
    if protected_mode_bytes - present >= 16 or present <= 0:
        raise BootError(
            f"{path!r} is truncated: its header announces {setup_bytes} bytes of setup code and "
            f"{max(protected_mode_bytes, 1)} bytes of kernel, the file has {len(data)}"
        )
    if protected_mode_bytes <= ENTRY_64:
        raise BootError(
            f"{path!r} has a kernel of {protected_mode_bytes} bytes, too small for an entry point"
        )

    alignment = number(KERNEL_ALIGNMENT, 4) if version >= 0x0205 else 0
    relocatable = version >= 0x0205 and number(RELOCATABLE_KERNEL, 1) != 0
    if relocatable and (alignment == 0 or alignment & (alignment - 1)):
        raise BootError(f"{path!r} asks for an alignment of {alignment:#x}, which is no power of two")
    return SetupHeader(
        version=version,
        setup_bytes=setup_bytes,
        protected_mode_bytes=min(protected_mode_bytes, present),
        header_end=header_end,
        kernel_version=_kernel_version(data, number(KERNEL_VERSION, 2), setup_bytes),
        loadflags=loadflags,
        initrd_addr_max=number(INITRD_ADDR_MAX, 4) if version >= 0x0203 else DEFAULT_INITRD_ADDR_MAX,
        kernel_alignment=alignment,
        relocatable=relocatable,
        xloadflags=number(XLOADFLAGS, 2) if version >= 0x020C else 0,
        cmdline_size=number(CMDLINE_SIZE, 4) if version >= 0x0206 else DEFAULT_CMDLINE_SIZE,
        pref_address=number(PREF_ADDRESS, 8) if version >= 0x020A else layout.HIGH_MEMORY,
        init_size=number(INIT_SIZE, 4) if version >= 0x020A else 0,
    )


def load(
    data: bytes,
    path: str,
    *,
    memory_bytes: int,
    initrd: bytes | None = None,
    initrd_path: str = "",
    command_line: str = "",
    load_address: int | None = None,
) -> BootImage:
    """A bzImage, its initrd and its boot parameters as a boot image."""
    e820 = layout.memory_map(memory_bytes)
    header = parse_header(data, path)
    start = _load_address(header, path, load_address)
    kernel = data[header.setup_bytes : header.setup_bytes + header.protected_mode_bytes]
    kernel_end = start + max(header.init_size, len(kernel))
    if kernel_end > layout.low_memory_end(memory_bytes):
        raise BootError(
            f"{path!r} needs memory up to {kernel_end:#x} to unpack itself, so the machine needs "
            f"{-(-kernel_end // layout.MIB)} MiB or more; it has {memory_bytes // layout.MIB} MiB"
        )
    placements = [Placement(start, kernel, "Linux kernel")]

    ramdisk = None
    if initrd is not None:
        ramdisk = layout.place_on_top(
            initrd,
            "initrd",
            above=kernel_end,
            limit=header.initrd_addr_max + 1,
            memory_bytes=memory_bytes,
            path=initrd_path,
        )
        placements.append(ramdisk)

    limit = min(header.cmdline_size or DEFAULT_CMDLINE_SIZE, layout.COMMAND_LINE_LIMIT - 1)
    placements.append(
        Placement(layout.COMMAND_LINE, files.encode_command_line(command_line, limit), "command line")
    )
    parameters = _boot_parameters(data, header, start, ramdisk, e820)
    placements.append(Placement(layout.BOOT_PARAMETERS, parameters, "boot parameters (zero page)"))

    if header.has_64bit_entry:
        registers, tables = states.long64(start + ENTRY_64, rsi=layout.BOOT_PARAMETERS)
    else:
        registers, tables = states.protected32(start, rsi=layout.BOOT_PARAMETERS)
    placements += tables
    layout.check_placements(placements, memory_bytes)

    notes = [
        f"Linux {header.kernel_version or '(no version string)'}, boot protocol "
        f"{header.version >> 8}.{header.version & 0xFF:02}, "
        f"{'64' if header.has_64bit_entry else '32'}-bit entry at {registers.rip:#x}"
    ]
    if ramdisk is not None:
        notes.append(f"initrd at {ramdisk.address:#x}-{ramdisk.end - 1:#x}")
    return BootImage("linux", placements, registers, e820, notes=notes)


def _kernel_version(data: bytes, pointer: int, setup_bytes: int) -> str:
    """The version string, pointed to relative to the end of the boot sector; '' without one."""
    start = pointer + SECTOR
    if pointer == 0 or start >= setup_bytes:
        return ""
    return data[start:setup_bytes].split(b"\0", 1)[0].decode("latin-1")


def _load_address(header: SetupHeader, path: str, wanted: int | None) -> int:
    if not header.relocatable:
        if wanted not in (None, layout.HIGH_MEMORY):
            raise BootError(
                f"{path!r} is not relocatable: it loads at {layout.HIGH_MEMORY:#x}, not at {wanted:#x}"
            )
        return layout.HIGH_MEMORY
    start = header.pref_address if wanted is None else wanted
    if start % header.kernel_alignment:
        raise BootError(
            f"{path!r} cannot be loaded at {start:#x}: "
            f"it needs an address that is a multiple of {header.kernel_alignment:#x}"
        )
    if start < layout.HIGH_MEMORY:
        raise BootError(f"{path!r} cannot be loaded at {start:#x}: a bzImage loads at 0x100000 or above")
    return start


def _boot_parameters(
    data: bytes, header: SetupHeader, start: int, ramdisk: Placement | None, e820: list
) -> bytes:
    page = bytearray(BOOT_PARAMETERS_SIZE)
    page[HEADER_START : header.header_end] = data[HEADER_START : header.header_end]

    # A VGA text screen of 80x25, as a BIOS leaves it.
    page[ORIG_VIDEO_MODE] = 3
    page[ORIG_VIDEO_COLS] = 80
    page[ORIG_VIDEO_LINES] = 25
    page[ORIG_VIDEO_ISVGA] = 1
    page[ORIG_VIDEO_POINTS] = 16

    page[TYPE_OF_LOADER] = LOADER_UNDEFINED
    page[LOADFLAGS] = header.loadflags | CAN_USE_HEAP
    struct.pack_into("<H", page, HEAP_END_PTR, 0xFE00)
    struct.pack_into("<I", page, CODE32_START, start)
    struct.pack_into("<I", page, CMD_LINE_PTR, layout.COMMAND_LINE)
    if ramdisk is not None:
        struct.pack_into("<II", page, RAMDISK_IMAGE, ramdisk.address, len(ramdisk.data))

    struct.pack_into("<Q", page, ACPI_RSDP_ADDR, layout.RSDP)
    # For kernels that do not read the e820 table: KiB of RAM from 1 MiB on.
    high = next(r for r in e820 if r.start == layout.HIGH_MEMORY)
    struct.pack_into("<I", page, ALT_MEM_K, high.length // layout.KIB)
    page[E820_ENTRIES] = len(e820)
    for index, entry in enumerate(e820):
        struct.pack_into("<QQI", page, E820_TABLE + 20 * index, *entry)
    return bytes(page)

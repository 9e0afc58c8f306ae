"""Small kernels in every format, made by hand."""

import struct

from vmx.boot import elf, linux, multiboot, pvh

CODE = bytes([0xF4]) * 64  # HLT


def bzimage(
    *,
    version=0x020F,
    setup_sects=2,
    kernel=bytes(0x1000),
    xloadflags=linux.XLF_KERNEL_64,
    relocatable=1,
    alignment=0x20_0000,
    pref_address=0x100_0000,
    init_size=0x30_0000,
    initrd_addr_max=0x7FFF_FFFF,
    loadflags=linux.LOADED_HIGH,
    cmdline_size=2047,
    name=b"6.1.0-test",
):
    setup = bytearray((setup_sects + 1) * linux.SECTOR)
    setup[linux.SETUP_SECTS] = setup_sects
    struct.pack_into("<I", setup, linux.SYSSIZE, -(-len(kernel) // 16))
    struct.pack_into("<H", setup, linux.BOOT_FLAG, 0xAA55)
    setup[0x200:0x202] = bytes([0xEB, 0x6A])
    setup[linux.HEADER_MAGIC : linux.HEADER_MAGIC + 4] = b"HdrS"
    struct.pack_into("<H", setup, linux.VERSION, version)
    struct.pack_into("<H", setup, linux.KERNEL_VERSION, 0x100)
    setup[0x300 : 0x300 + len(name)] = name
    setup[linux.LOADFLAGS] = loadflags
    struct.pack_into("<I", setup, linux.INITRD_ADDR_MAX, initrd_addr_max)
    struct.pack_into("<IB", setup, linux.KERNEL_ALIGNMENT, alignment, relocatable)
    struct.pack_into("<HI", setup, linux.XLOADFLAGS, xloadflags, cmdline_size)
    struct.pack_into("<QI", setup, linux.PREF_ADDRESS, pref_address, init_size)
    return bytes(setup) + kernel


def note(name=b"Xen\0", kind=pvh.XEN_ELFNOTE_PHYS32_ENTRY, description=bytes([0, 0, 0x20, 0, 0, 0, 0, 0])):
    padded = description + bytes(-len(description) % 4)
    return struct.pack("<III", len(name), len(description), kind) + name + bytes(-len(name) % 4) + padded


def elf_file(
    segments=((0x20_0000, 0x20_0000, CODE, 0x1000),),
    *,
    bits=64,
    machine=62,
    kind=2,
    entry=0x20_0000,
    notes=b"",
    symbols=(),
    prefix=b"",
):
    """ELF header, program headers, contents, and a symbol table with its section headers."""
    form = elf.FORMATS[bits // 32]
    parts = [(elf.PT_LOAD, *segment) for segment in segments]
    if notes:
        parts.append((elf.PT_NOTE, 0, 0, notes, len(notes)))
    offset = 16 + form.header.size + len(parts) * form.program_header.size
    prefix += bytes(-(offset + len(prefix)) % 8)
    body = prefix
    headers = b""
    for header_type, physical, virtual, content, memory_size in parts:
        start = offset + len(body)
        if bits == 64:
            fields = (header_type, 7, start, virtual, physical, len(content), memory_size, 4096)
        else:
            fields = (header_type, start, virtual, physical, len(content), memory_size, 7, 4096)
        headers += form.program_header.pack(*fields)
        body += content
    sections_at = sections = 0
    if symbols:
        strings, table = b"\0", form.symbol.pack(*(0,) * 6)
        for name, value in symbols:
            order = (len(strings), 0, 0, 1, value, 0) if bits == 64 else (len(strings), value, 0, 0, 0, 1)
            table += form.symbol.pack(*order)
            strings += name.encode() + b"\0"
        table_at = offset + len(body)
        body += table + strings
        sections_at, sections = offset + len(body), 3
        body += form.section_header.pack(*(0,) * 10)
        body += form.section_header.pack(
            0, elf.SHT_SYMTAB, 0, 0, table_at, len(table), 2, 0, 8, form.symbol.size
        )
        body += form.section_header.pack(0, 3, 0, 0, table_at + len(table), len(strings), 0, 0, 1, 0)
    identification = elf.MAGIC + bytes([bits // 32, 1, 1]) + bytes(9)
    header = form.header.pack(
        kind,
        machine,
        1,
        entry,
        16 + form.header.size,
        sections_at,
        0,
        16 + form.header.size,
        form.program_header.size,
        len(parts),
        form.section_header.size,
        sections,
        0,
    )
    return identification + header + headers + body


def multiboot_header(flags=multiboot.PAGE_ALIGN | multiboot.MEMORY_INFO, addresses=()):
    words = struct.pack(
        "<III", multiboot.HEADER_MAGIC, flags, -(multiboot.HEADER_MAGIC + flags) & 0xFFFF_FFFF
    )
    return words + struct.pack(f"<{len(addresses)}I", *addresses)


def multiboot_flat(load=0x10_0000, bss=0x100):
    """Code, header with address fields, code."""
    header_at = 16
    size = 16 + 32 + len(CODE)
    addresses = (load + header_at, load, load + size, load + size + bss, load)
    return bytes(16) + multiboot_header(multiboot.ADDRESS_FIELDS, addresses) + CODE


def multiboot_elf(bits=32):
    return elf_file(
        ((0x10_0000, 0x10_0000, CODE, 0x2000),),
        bits=bits,
        machine=3 if bits == 32 else 62,
        entry=0x10_0010,
        prefix=multiboot_header(),
        symbols=(("start", 0x10_0010),),
    )


def pvh_elf(bits=64):
    return elf_file(
        ((0x20_0000, 0xFFFF_FFFF_8020_0000 if bits == 64 else 0x20_0000, CODE, 0x3000),),
        bits=bits,
        machine=62 if bits == 64 else 3,
        notes=note(b"GNU\0", 3, b"abcdef") + note(),
        entry=0x20_0000,
    )

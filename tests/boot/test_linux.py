"""bzImage: setup header, boot parameters, placement and both entries."""

import struct

import pytest

from tests.boot.images import bzimage
from vmx.boot import BootError, fetch, layout, linux, load

MIB = layout.MIB


def placement(image, what):
    return next(p for p in image.placements if p.what.startswith(what))


def number(page, offset, size):
    return int.from_bytes(page[offset : offset + size], "little")


@pytest.fixture
def boot(tmp_path):
    def run(kernel, *, memory=256 * MIB, initrd=None, **options):
        (tmp_path / "kernel").write_bytes(kernel)
        if initrd is not None:
            (tmp_path / "initrd").write_bytes(initrd)
            options["initrd_path"] = tmp_path / "initrd"
        return load(tmp_path / "kernel", memory_bytes=memory, **options)

    return run


def test_64bit_entry(boot):
    image = boot(bzimage(), command_line="console=ttyS0")
    state = image.registers
    assert (image.kind, state.mode, state.rip) == ("linux", "long64", 0x100_0200)
    assert state.registers["rsi"] == layout.BOOT_PARAMETERS
    assert state.efer == 0x500 and state.cr4 == 0x20 and state.cr0 & 0x8000_0001 == 0x8000_0001
    assert state.segments["cs"] == (0x10, 0, 0xFFFF_FFFF, 0xA09B)
    assert state.segments["ds"] == state.segments["ss"] == (0x18, 0, 0xFFFF_FFFF, 0xC093)
    assert placement(image, "command line").data == b"console=ttyS0\0"


def test_identity_page_tables_map_4_gib(boot):
    image = boot(bzimage())
    tables = placement(image, "boot page tables")
    assert tables.address == image.registers.cr3

    def entry(table, index):
        return number(tables.data, table - tables.address + 8 * index, 8)

    for address in (0, 0x20_0000, 0x7FE0_0000, 0xFFE0_0000):
        pdpt = entry(image.registers.cr3, 0) & ~0xFFF
        directory = entry(pdpt, address >> 30) & ~0xFFF
        assert entry(directory, address >> 21 & 0x1FF) == address | 0x83


def test_gdt_agrees_with_the_segment_registers(boot):
    image = boot(bzimage())
    state = image.registers
    gdt = placement(image, "boot GDT")
    assert (gdt.address, len(gdt.data)) == (state.gdt_base, state.gdt_limit + 1)
    for name in ("cs", "ds", "tr"):
        selector, base, limit, rights = state.segments[name]
        low = number(gdt.data, selector, 8)
        assert low >> 40 & 0xFF == rights & 0xFF and low >> 52 & 0xF == rights >> 12 & 0xF
        assert (low >> 16 & 0xFF_FFFF) | (low >> 56) << 24 == base
        raw = (low & 0xFFFF) | (low >> 48 & 0xF) << 16
        assert (raw << 12 | 0xFFF if rights & 0x8000 else raw) == limit


def test_32bit_entry_without_xlf_kernel_64(boot):
    image = boot(bzimage(xloadflags=0, relocatable=0))
    assert image.registers.mode == "protected32"
    assert image.registers.rip == layout.HIGH_MEMORY == placement(image, "Linux kernel").address
    assert image.registers.registers["rsi"] == layout.BOOT_PARAMETERS
    assert image.registers.segments["cs"].access_rights == 0xC09B
    assert not image.registers.cr0 & 0x8000_0000


def test_boot_parameters(boot):
    initrd = bytes(range(256)) * 100
    image = boot(bzimage(), initrd=initrd, memory=512 * MIB)
    page = placement(image, "boot parameters").data
    assert len(page) == 4096
    assert page[linux.HEADER_MAGIC : linux.HEADER_MAGIC + 4] == b"HdrS"
    assert page[linux.TYPE_OF_LOADER] == 0xFF
    assert number(page, linux.CMD_LINE_PTR, 4) == layout.COMMAND_LINE
    assert number(page, linux.ACPI_RSDP_ADDR, 8) == layout.RSDP
    ramdisk = placement(image, "initrd")
    assert number(page, linux.RAMDISK_IMAGE, 4) == ramdisk.address
    assert number(page, linux.RAMDISK_SIZE, 4) == len(initrd) == len(ramdisk.data)
    assert ramdisk.address % 4096 == 0 and ramdisk.end <= 512 * MIB
    count = page[linux.E820_ENTRIES]
    rows = [struct.unpack_from("<QQI", page, linux.E820_TABLE + 20 * i) for i in range(count)]
    assert rows == [tuple(row) for row in image.e820]


def test_initrd_stays_below_its_limit_and_above_the_kernel(boot):
    image = boot(bzimage(initrd_addr_max=0x37FF_FFFF), initrd=bytes(5000), memory=2048 * MIB)
    assert placement(image, "initrd").end <= 0x3800_0000
    with pytest.raises(BootError, match="initrd.*at least"):
        boot(bzimage(), initrd=bytes(8 * MIB), memory=24 * MIB)


def test_load_address(boot):
    assert boot(bzimage(), load_address=0x200_0000).registers.rip == 0x200_0200
    with pytest.raises(BootError, match="multiple"):
        boot(bzimage(), load_address=0x210_0000)
    with pytest.raises(BootError, match="not relocatable"):
        boot(bzimage(relocatable=0), load_address=0x200_0000)


def test_old_protocol_has_defaults(boot):
    header = linux.parse_header(bzimage(version=0x0203))
    assert not header.relocatable and not header.has_64bit_entry and header.cmdline_size == 255


@pytest.mark.parametrize(
    ("kernel", "message"),
    [
        (bzimage(version=0x0201), "2.02"),
        (bzimage(loadflags=0), "zImage"),
        (bzimage(alignment=0x30_0000), "power of two"),
        (bzimage(kernel=bytes(16)), "too small"),
        (bzimage()[:-17], "truncated"),
        (bzimage(init_size=0x4000_0000), "MiB or more"),
        (bzimage(pref_address=1 << 40, alignment=1 << 20), "MiB or more"),
    ],
)
def test_bad_kernels_say_what_is_wrong(boot, kernel, message):
    with pytest.raises(BootError, match=message):
        boot(kernel)


def test_command_line_limit(boot):
    with pytest.raises(BootError, match="at most 10"):
        boot(bzimage(cmdline_size=10), command_line="x" * 11)


@pytest.mark.linux
@pytest.mark.parametrize("name, what", [("debian-cloud", "kernel"), ("memtest86+", "kernel32")])
def test_real_kernel(name, what):
    path = fetch.paths(name).get(what)
    if path is None:
        pytest.skip(f"{name} is not cached; vmx guests pull {name}")
    image = load(path, memory_bytes=256 * MIB, command_line="console=ttyS0")
    assert image.registers.mode == ("long64" if name == "debian-cloud" else "protected32")
    entry = next(p for p in image.placements if p.address <= image.registers.rip < p.end)
    # CLD, CLI: both entries begin so
    assert entry.data[image.registers.rip - entry.address :][:2] == b"\xfc\xfa"

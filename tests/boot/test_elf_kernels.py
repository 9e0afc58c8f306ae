"""PVH, multiboot, plain ELF and flat kernels."""

import struct

import pytest

from tests.boot.images import (
    CODE,
    bzimage,
    elf_file,
    multiboot_elf,
    multiboot_flat,
    multiboot_header,
    note,
    pvh_elf,
)
from vmx.boot import BootError, layout, load, multiboot
from vmx.boot.detect import detect

MIB = layout.MIB


@pytest.fixture
def boot(tmp_path):
    def run(kernel, *, memory=64 * MIB, modules=(), **options):
        (tmp_path / "kernel").write_bytes(kernel)
        pairs = []
        for index, (content, text) in enumerate(modules):
            (tmp_path / f"module{index}").write_bytes(content)
            pairs.append((str(tmp_path / f"module{index}"), text))
        return load(tmp_path / "kernel", memory_bytes=memory, modules=pairs, **options)

    return run


def read(image, address, size):
    for p in image.placements:
        if p.address <= address and address + size <= p.end:
            return p.data[address - p.address : address - p.address + size]
    raise AssertionError(f"nothing at {address:#x}")


def words(image, address, form):
    return struct.unpack(form, read(image, address, struct.calcsize(form)))


def text(image, address):
    p = next(p for p in image.placements if p.address <= address < p.end)
    return p.data[address - p.address :].split(b"\0", 1)[0]


@pytest.mark.parametrize("bits", [32, 64])
def test_pvh(boot, bits):
    image = boot(pvh_elf(bits), command_line="a b", modules=[(b"one", ""), (b"second", "two")])
    state = image.registers
    assert (image.kind, state.mode, state.rip) == ("pvh", "protected32", 0x20_0000)
    magic, version, _, count, modules, command, rsdp, rows, row_count, _ = words(
        image, state.registers["rbx"], "<IIIIQQQQII"
    )
    assert (magic, version, count, rsdp) == (0x336EC578, 1, 2, layout.RSDP)
    assert text(image, command) == b"a b"
    address, size, string, _ = words(image, modules + 32, "<QQQQ")
    assert read(image, address, size) == b"second" and text(image, string) == b"two"
    map_rows = [words(image, rows + 24 * i, "<QQII")[:3] for i in range(row_count)]
    assert map_rows == [tuple(row) for row in image.e820]


def test_pvh_initrd_is_the_first_module(boot, tmp_path):
    (tmp_path / "initrd").write_bytes(b"ramdisk")
    image = boot(pvh_elf(), initrd_path=tmp_path / "initrd", modules=[(b"other", "")])
    modules = words(image, image.registers.registers["rbx"] + 16, "<Q")[0]
    address, size, _, _ = words(image, modules, "<QQQQ")
    assert read(image, address, size) == b"ramdisk"


@pytest.mark.parametrize("kernel", [multiboot_flat(), multiboot_elf(32), multiboot_elf(64)])
def test_multiboot(boot, kernel):
    image = boot(kernel, command_line="x=1", modules=[(b"first", "m one"), (b"other", "")])
    state = image.registers
    assert (image.kind, state.mode, state.registers["rax"]) == ("multiboot", "protected32", 0x2BADB002)
    assert 0x10_0000 <= state.rip < 0x10_0020
    info = state.registers["rbx"]
    flags, lower, upper = words(image, info, "<III")
    assert flags == 0x24D and lower == 639 and upper == 63 * 1024
    command, count, modules = words(image, info + 16, "<III")
    assert text(image, command) == b"kernel x=1" and count == 2
    start, end, string, _ = words(image, modules, "<IIII")
    assert read(image, start, end - start) == b"first" and text(image, string) == b"m one"
    length, rows = words(image, info + 44, "<II")
    found = [words(image, rows + at, "<IQQI")[1:] for at in range(0, length, 24)]
    assert found == [tuple(row) for row in image.e820]
    assert text(image, words(image, info + 64, "<I")[0]) == b"vmx"


def test_multiboot_bss_is_zero_behind_the_code(boot):
    image = boot(multiboot_flat(bss=0x100))
    kernel = next(p for p in image.placements if p.address == 0x10_0000)
    assert kernel.data[48:] == CODE + bytes(0x100)


def test_multiboot_header_rules():
    header = multiboot_header()
    assert multiboot.find_header(bytes(8192 - 12) + header).offset == 8192 - 12
    assert multiboot.find_header(bytes(8192 - 8) + header) is None
    assert multiboot.find_header(bytes(2) + header) is None
    assert multiboot.find_header(header[:8] + bytes(4)) is None


def test_multiboot_demands_are_honoured_or_refused(boot):
    for flag, message in ((multiboot.VIDEO_MODE, "video"), (1 << 9, "0x200")):
        with pytest.raises(BootError, match=message):
            boot(multiboot_header(flag) + CODE)
    with pytest.raises(BootError, match="no address fields"):
        boot(multiboot_header() + CODE)


def test_plain_elf(boot):
    virtual = 0xFFFF_FFFF_8020_0000
    kernel = elf_file(((0x20_0000, virtual, CODE, 0x1000),), entry=virtual + 8, symbols=(("start", virtual),))
    image = boot(kernel)
    assert (image.kind, image.registers.mode, image.registers.rip) == ("elf", "long64", 0x20_0008)
    assert image.symbols == {"start": virtual}
    assert read(image, 0x20_0000, 0x1000) == CODE + bytes(0x1000 - len(CODE))
    assert boot(elf_file(bits=32, machine=3)).registers.mode == "protected32"


def test_flat(boot):
    state = boot(CODE, load_address=0x7C00).registers
    assert (state.mode, state.rip, state.segments["cs"]) == ("real", 0x7C00, (0, 0, 0xFFFF, 0x9B))
    state = boot(CODE, load_address=0x10_0000).registers
    assert (state.mode, state.rip) == ("protected32", 0x10_0000)
    assert boot(CODE, load_address=0x10_0000, mode="long64").registers.mode == "long64"
    state = boot(CODE, load_address=0x2_0004, mode="real").registers
    assert state.segments["cs"].base + state.rip == 0x2_0004


@pytest.mark.parametrize("address", [0x1000, 0x9_FC00, 0xB_8000, 0x10_0000_0000, 64 * MIB - 10])
def test_flat_must_be_in_free_ram(boot, address):
    with pytest.raises(BootError, match="RAM|overlaps"):
        boot(CODE, load_address=address)


def test_detect():
    kernels = {"linux": bzimage(), "pvh": pvh_elf(), "multiboot": multiboot_elf(), "elf": elf_file()}
    assert {kind: detect(data, "k") for kind, data in kernels.items()} == {kind: kind for kind in kernels}
    assert detect(multiboot_flat(), "k") == "multiboot"
    assert detect(multiboot_flat(), "k", flat_wanted=True) == "flat"
    for data, hint in ((b"\x1f\x8b" + CODE, "gzip"), (b"070701" + CODE, "--initrd"), (b"MZ" + CODE, "EFI")):
        with pytest.raises(BootError, match=hint):
            detect(data, "k")


@pytest.mark.parametrize(
    ("kernel", "message"),
    [
        (elf_file(machine=183), "machine 183"),
        (elf_file(kind=1), "type 1"),
        (elf_file(()), "without a segment"),
        (elf_file(((0x20_0000, 0, CODE, 8),)), "larger in the file"),
        (elf_file(((0xA_0000, 0, CODE, 0x1000),)), "not all RAM"),
        (elf_file(((0x20_0000, 0, CODE, 0x1000), (0x20_0800, 0, CODE, 0x1000))), "overlap"),
        (elf_file(notes=note(description=b"abc")), "4 or 8"),
        (elf_file(notes=note()[:14] + b"\xff" * 6), "beyond its segment|no segment|4 or 8"),
    ],
)
def test_bad_elf_says_what_is_wrong(boot, kernel, message):
    with pytest.raises(BootError, match=message):
        boot(kernel)


@pytest.mark.parametrize(
    ("kernel", "options", "message"),
    [
        (elf_file(), {"command_line": "x"}, "command line"),
        (bzimage(), {"modules": [(b"m", "")]}, "no modules"),
        (elf_file(), {"load_address": 0x10_0000}, "leave out"),
        (bzimage(), {"mode": "real"}, "only flat"),
        (CODE, {"kind": "flat"}, "--load-address"),
        (CODE, {"kind": "floppy"}, "unknown kind"),
        (CODE, {"load_address": 0x10_0000, "mode": "vm86"}, "vm86"),
        (bzimage(), {"memory": 1000}, "4 KiB"),
    ],
)
def test_options_that_cannot_work(boot, kernel, options, message):
    with pytest.raises(BootError, match=message):
        boot(kernel, **options)

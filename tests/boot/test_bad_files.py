"""Truncated and damaged kernels give BootError, never another exception."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.boot.images import bzimage, elf_file, multiboot_elf, multiboot_flat, pvh_elf
from vmx.boot import BootError, elf, flat, layout, linux, load, multiboot, pvh
from vmx.boot.detect import detect

MEMORY = 64 * layout.MIB
KERNELS = {
    "bzimage": bzimage(setup_sects=1, kernel=bytes(0x400)),
    "pvh": pvh_elf(),
    "pvh32": pvh_elf(32),
    "multiboot_flat": multiboot_flat(),
    "multiboot_elf": multiboot_elf(),
    "elf": elf_file(symbols=(("a", 1), ("b", 2))),
}


def attempt(data: bytes) -> bool:
    """Whether `data` loads; anything but success and BootError propagates."""
    try:
        kind = detect(data, "kernel")
        if kind == "linux":
            linux.load(data, "kernel", memory_bytes=MEMORY, command_line="x")
        elif kind in ("pvh", "multiboot"):
            protocol = pvh if kind == "pvh" else multiboot
            protocol.load(data, "kernel", memory_bytes=MEMORY, modules=[(b"m", "module", "s")])
        else:
            elf.load(data, "kernel", memory_bytes=MEMORY)
        return True
    except BootError as error:
        assert "kernel" in str(error)
        return False


@pytest.mark.parametrize("name", KERNELS)
def test_whole_files_load(name):
    assert attempt(KERNELS[name])


@pytest.mark.parametrize("name", KERNELS)
def test_truncation_at_every_byte(name):
    data = KERNELS[name]
    loaded = [size for size in range(len(data)) if attempt(data[:size])]
    # Only what comes after the last byte that is needed may be missing: padding, symbols, section headers.
    assert loaded == list(range(len(data) - len(loaded), len(data)))
    if name in ("pvh", "pvh32", "multiboot_flat"):
        assert not loaded


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(sorted(KERNELS)), st.data())
def test_damaged_headers(name, data):
    kernel = bytearray(KERNELS[name])
    for _ in range(data.draw(st.integers(1, 4))):
        # The interesting bytes are at the start, and in the setup header of a bzImage.
        at = data.draw(
            st.one_of(st.integers(0, 160), st.integers(0x1F1, 0x26C), st.integers(0, len(kernel) - 1))
        )
        if at < len(kernel):
            kernel[at] = data.draw(st.sampled_from([0, 1, 0x7F, 0x80, 0xFF]) | st.integers(0, 255))
    attempt(bytes(kernel))


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from([b"", b"\x7fELF\x01\x01\x01", b"\x7fELF\x02\x01\x01", b"\x02\xb0\xad\x1b"]),
    st.binary(max_size=300),
)
def test_random_bytes(prefix, data):
    attempt(prefix + data)
    try:
        flat.load(
            prefix + data or b"x", "kernel", memory_bytes=MEMORY, load_address=int.from_bytes(data[:5], "big")
        )
    except BootError:
        pass


def test_missing_empty_and_directory(tmp_path):
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "good").write_bytes(bzimage())
    for path, message in (("missing", "No such file"), ("empty", "is empty"), (".", "directory")):
        with pytest.raises(BootError, match=message):
            load(tmp_path / path, memory_bytes=MEMORY)
        with pytest.raises(BootError, match=f"initrd.*{message}"):
            load(tmp_path / "good", memory_bytes=MEMORY, initrd_path=tmp_path / path)

"""Which loader a kernel is for, from its contents."""

from __future__ import annotations

from vmx.boot import elf, linux, multiboot, pvh
from vmx.boot.image import BootError

KINDS = ("linux", "pvh", "multiboot", "elf", "flat")


def detect(data: bytes, path: str, *, flat_wanted: bool = False) -> str:
    """One of `KINDS`; with `flat_wanted` (a load address was given) a file without its own format is flat.

    PVH comes before multiboot and both before plain ELF: a kernel with two headers gets the richer protocol.
    """
    if linux.recognises(data):
        return "linux"
    if elf.recognises(data):
        kernel = elf.parse(data, path)
        if pvh.entry_point(kernel, path) is not None:
            return "pvh"
        return "multiboot" if multiboot.find_header(data, path) else "elf"
    if flat_wanted:
        return "flat"
    if multiboot.find_header(data, path):
        return "multiboot"
    raise BootError(
        f"{path!r} ({len(data)} bytes, beginning {data[:4].hex(' ')}) is no kernel that vmx knows: neither a "
        f"Linux bzImage, nor ELF, nor multiboot 1; a flat binary needs --load-address{_hint(data)}"
    )


def _hint(data: bytes) -> str:
    """What the file seems to be instead, where people mix that up."""
    if data[:2] == b"\x1f\x8b":
        return ". It is a gzip file: unpack it first, or is it the initrd?"
    if data[:6] == b"070701":
        return ". It is a cpio archive: give it as --initrd"
    if data[:2] == b"MZ":
        return ". It is an EFI program; EFI firmware is not modelled"
    return ""

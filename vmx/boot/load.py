"""`load`: from files to a boot image, whatever the kernel's format."""

from __future__ import annotations

import os
from collections.abc import Sequence

from vmx.boot import elf, files, flat, layout, linux, multiboot, pvh
from vmx.boot.detect import KINDS, detect
from vmx.boot.image import BootError, BootImage


def load(
    kernel_path: str | os.PathLike[str],
    *,
    memory_bytes: int,
    initrd_path: str | os.PathLike[str] | None = None,
    command_line: str = "",
    modules: Sequence[tuple[str, str]] = (),
    load_address: int | None = None,
    cpus: int = 1,
    kind: str = "auto",
    mode: str | None = None,
) -> BootImage:
    """Read a kernel and what belongs to it, and say what goes where in guest memory and in the registers.

    `modules` are pairs of path and string, for PVH and multiboot; an initrd is the first module there.
    `mode` is the mode that a flat binary starts in: real, protected32 or long64.
    """
    layout.check_memory(memory_bytes)
    path = os.fspath(kernel_path)
    data = files.read(path, "kernel")
    if kind == "auto":
        kind = detect(data, path, flat_wanted=load_address is not None)
    elif kind not in KINDS:
        raise BootError(f"unknown kind of kernel {kind!r}; known are: auto, {', '.join(KINDS)}")
    initrd = files.read(initrd_path, "initrd") if initrd_path is not None else None
    initrd_name = os.fspath(initrd_path) if initrd_path is not None else ""
    _refuse_what_is_useless(kind, path, initrd, modules, load_address, mode, command_line)

    if kind == "linux":
        image = linux.load(
            data,
            path,
            memory_bytes=memory_bytes,
            initrd=initrd,
            initrd_path=initrd_name,
            command_line=command_line,
            load_address=load_address,
        )
    elif kind in ("pvh", "multiboot"):
        contents = [(files.read(name, "module"), name, text) for name, text in modules]
        if initrd is not None:
            contents.insert(0, (initrd, initrd_name, os.path.basename(initrd_name)))
        protocol = pvh if kind == "pvh" else multiboot
        image = protocol.load(
            data, path, memory_bytes=memory_bytes, modules=contents, command_line=command_line
        )
    elif kind == "elf":
        image = elf.load(data, path, memory_bytes=memory_bytes)
    else:
        if load_address is None:
            raise BootError(f"{path!r}: a flat binary needs --load-address")
        image = flat.load(data, path, memory_bytes=memory_bytes, load_address=load_address, mode=mode)
    image.cpus = cpus
    return image


def _refuse_what_is_useless(
    kind: str,
    path: str,
    initrd: bytes | None,
    modules: Sequence[tuple[str, str]],
    load_address: int | None,
    mode: str | None,
    command_line: str,
) -> None:
    """An option that this kind of kernel cannot receive is a mistake worth telling."""
    if modules and kind not in ("pvh", "multiboot"):
        raise BootError(f"{path!r} is loaded as {kind}, which has no modules; PVH and multiboot kernels have")
    if initrd is not None and kind in ("elf", "flat"):
        raise BootError(f"{path!r} is loaded as {kind}, which no protocol can tell about an initrd")
    if load_address is not None and kind not in ("linux", "flat"):
        raise BootError(f"{path!r} is loaded as {kind}: the file says where, so leave out --load-address")
    if mode is not None and kind != "flat":
        raise BootError(
            f"{path!r} is loaded as {kind}, whose protocol fixes the mode; only flat has a choice"
        )
    if command_line and kind in ("elf", "flat"):
        raise BootError(f"{path!r} is loaded as {kind}, which no protocol can tell about a command line")

"""`load`: from files to a boot image, whatever the kernel's format."""

from __future__ import annotations

import os
from collections.abc import Sequence

from vmx.boot import files, layout, linux
from vmx.boot.image import BootError, BootImage

KINDS = ("auto", "linux")


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
) -> BootImage:
    """Read a kernel and what belongs to it, and say what goes where in guest memory and in the registers."""
    layout.check_memory(memory_bytes)
    data = files.read(kernel_path, "kernel")
    path = os.fspath(kernel_path)
    initrd = files.read(initrd_path, "initrd") if initrd_path is not None else None
    if not linux.recognises(data):
        raise BootError(f"{path!r} is no kernel that vmx can load: it is not a bzImage")
    image = linux.load(
        data,
        path,
        memory_bytes=memory_bytes,
        initrd=initrd,
        initrd_path=os.fspath(initrd_path) if initrd_path is not None else "",
        command_line=command_line,
        load_address=load_address,
    )
    image.cpus = cpus
    return image

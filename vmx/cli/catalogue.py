"""What `--guest NAME` stands for: images that the package ships, and kernels pulled from the distribution."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vmx.boot import fetch, initramfs
from vmx.errors import KernelError, UsageError

IMAGES = Path(__file__).parents[1] / "guests" / "images"

# Image and description of each bundled guest.
BUNDLED = {
    "teach": ("teach.elf", "64-bit teaching kernel: paging, ring-3 processes, system calls, a shell"),
    "prot32": ("prot32.elf", "32-bit protected-mode kernel with paging"),
    "hello": ("hello.bin", "flat binary that says hello"),
}

# Command line of each pulled kernel, and the pulled guest whose busybox becomes its userland.
BOOTABLE = {
    "debian-cloud": ("console=ttyS0 quiet", "busybox"),
    "debian": ("console=ttyS0 quiet", "busybox"),
    "memtest86+": ("console=ttyS0", None),
}


@dataclass(frozen=True)
class Row:
    """A line of `vmx guests list`."""

    name: str
    state: str  # "bundled", "not built", "pulled" or "not pulled"
    description: str


def rows() -> list[Row]:
    """All guests, the bundled ones first."""
    bundled = [
        Row(name, "bundled" if (IMAGES / image).is_file() else "not built", description)
        for name, (image, description) in BUNDLED.items()
    ]
    pulled = [
        Row(guest.name, "pulled" if guest.cached else "not pulled", guest.description)
        for guest in fetch.catalogue()
    ]
    return bundled + pulled


def options(name: str) -> dict[str, Any]:
    """The values of a MachineConfig that `--guest name` stands for."""
    if name in BUNDLED:
        return {"guest": name}
    if name not in BOOTABLE:
        raise UsageError(f"unknown guest {name!r}; these boot: {', '.join([*BUNDLED, *BOOTABLE])}")
    append, userland = BOOTABLE[name]
    kernel = fetch.paths(name).get("kernel")
    if kernel is None or (userland and not _initramfs().is_file()):
        raise KernelError(f"guest {name!r} is not here yet; fetch it with: vmx guests pull {name}")
    values = {"kernel": str(kernel), "append": append}
    return values | {"initrd": str(_initramfs())} if userland else values


def pull(name: str, say: Callable[[str], None]) -> Path:
    """Fetch a guest, and the userland that it boots to, into the cache; returns the guest's directory."""
    if name in BUNDLED:
        raise UsageError(f"guest {name!r} is bundled; run it with: vmx run --guest {name}")
    directory = fetch.pull(name, say)
    userland = BOOTABLE.get(name, ("", None))[1]
    if userland:
        fetch.pull(userland, say)
        archive = _initramfs()
        beside = archive.with_suffix(".new")
        beside.write_bytes(initramfs.busybox_initramfs(fetch.paths(userland)["busybox"]))
        beside.replace(archive)
    return directory


def _initramfs() -> Path:
    return fetch.cache_directory() / "busybox.cpio"

"""Which guests there are: images that the package ships, and kernels pulled from the distribution."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vmx.cli import initramfs, packages
from vmx.errors import KernelError, UsageError

IMAGES = Path(__file__).parents[1] / "guests" / "images"


def cache_directory() -> Path:
    """Where pulled guests are kept, per user (`VMX_GUESTS_DIR`, else XDG's cache directory)."""
    chosen = os.environ.get("VMX_GUESTS_DIR")
    return (
        Path(chosen)
        if chosen
        else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vmx" / "guests"
    )


@dataclass(frozen=True)
class Bundled:
    """A guest whose image comes with the package; `MachineConfig(guest=name)` boots it."""

    name: str
    image: str
    description: str
    kind: str = "bundled"

    @property
    def kernel(self) -> Path:
        return IMAGES / self.image

    @property
    def present(self) -> bool:
        return self.kernel.is_file()

    def options(self) -> dict[str, Any]:
        return {"guest": self.name}


@dataclass(frozen=True)
class Pulled:
    """A kernel from the distribution's packages, kept in the cache directory."""

    name: str
    packages: tuple[str, ...]
    kernel_glob: str  # below the unpacked packages
    description: str
    append: str = ""
    busybox: bool = False  # packs busybox from its package into an initramfs
    kind: str = "pulled"

    @property
    def directory(self) -> Path:
        return cache_directory() / self.name

    @property
    def kernel(self) -> Path:
        return self.directory / "kernel"

    @property
    def initrd(self) -> Path | None:
        return self.directory / "initrd" if self.busybox else None

    @property
    def present(self) -> bool:
        return self.kernel.is_file() and (self.initrd is None or self.initrd.is_file())

    def options(self) -> dict[str, Any]:
        """What `--guest` stands for, as values of a MachineConfig."""
        if not self.present:
            raise KernelError(
                f"guest {self.name!r} is not here yet; fetch it with: vmx guests pull {self.name}"
            )
        files = {"kernel": self.kernel, "initrd": self.initrd}
        return {key: str(path) for key, path in files.items() if path} | {"append": self.append}


_GUESTS: tuple[Bundled | Pulled, ...] = (
    Bundled("teach", "teach.elf", "64-bit teaching kernel: paging, ring-3 processes, system calls, a shell"),
    Bundled("prot32", "prot32.elf", "32-bit protected-mode kernel with paging"),
    Bundled("hello", "hello.bin", "flat binary: a boot sector's worth of real mode"),
    Pulled(
        "debian-cloud",
        ("linux-image-cloud-amd64", "busybox-static"),
        "boot/vmlinuz-*",
        "Debian's kernel for clouds with a busybox shell",
        append="console=ttyS0 quiet",
        busybox=True,
    ),
    Pulled(
        "memtest86+",
        ("memtest86+",),
        "boot/m*86+*x64*",
        "memtest86+ (Linux boot protocol)",
        append="console=ttyS0",
    ),
)


def guests() -> tuple[Bundled | Pulled, ...]:
    """All guests, bundled ones first."""
    return _GUESTS


def find(name: str) -> Bundled | Pulled:
    """The guest of that name."""
    for guest in _GUESTS:
        if guest.name == name:
            return guest
    raise UsageError(f"unknown guest {name!r}; there are: {', '.join(guest.name for guest in _GUESTS)}")


def pull(name: str, again: bool = False, say: Callable[[str], None] = print) -> Bundled | Pulled:
    """Fetch a guest into the cache, unless it is there. A bundled guest is always there."""
    guest = find(name)
    if isinstance(guest, Bundled):
        raise UsageError(f"guest {name!r} is bundled; run it with: vmx run --guest {name}")
    if guest.present and not again:
        say(f"{name} is here already")
        return guest
    with packages.unpacked(guest.packages, say) as root:
        kernels = sorted(root.glob(guest.kernel_glob))
        if not kernels:
            raise KernelError(f"no {guest.kernel_glob} in the packages {', '.join(guest.packages)}")
        guest.directory.mkdir(parents=True, exist_ok=True)
        if guest.initrd:
            packages.keep(guest.initrd, initramfs.with_busybox(packages.busybox(root).read_bytes()))
        packages.keep(guest.kernel, kernels[-1].read_bytes())
    say(f"{name} is in {guest.directory}; run it with: vmx run --guest {name}")
    return guest

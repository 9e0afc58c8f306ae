"""Real kernels for guests, from the system's package archive: downloaded and unpacked, never installed.

`pull(name)` asks apt for the packages of a catalogue entry, in a temporary directory, unpacks them there, and
renames the result into the user's cache, so that a cached guest is always a whole one.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from vmx.errors import UsageError, VmxError

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Guest:
    """A catalogue entry. `files` names what it offers: paths in the unpacked package, with wildcards."""

    name: str
    description: str
    package: str
    files: dict[str, str]
    metapackage: str = ""  # regular expression of the dependency that holds the kernel itself


CATALOGUE = {
    guest.name: guest
    for guest in (
        Guest(
            "debian-cloud",
            "Debian's Linux kernel for virtual machines",
            "linux-image-cloud-amd64",
            {"kernel": "boot/vmlinuz-*", "modules_dir": "*/modules/*"},
            r"linux-image-\d\S*-cloud-amd64",
        ),
        Guest(
            "debian",
            "Debian's Linux kernel",
            "linux-image-amd64",
            {"kernel": "boot/vmlinuz-*", "modules_dir": "*/modules/*"},
            r"linux-image-\d\S*-amd64",
        ),
        Guest(
            "memtest86+",
            "memory tester without an operating system (64-bit; kernel32 is the 32-bit image)",
            "memtest86+",
            {"kernel": "boot/memtest86+x64.bin", "kernel32": "boot/memtest86+ia32.bin"},
        ),
        Guest(
            "busybox",
            "static busybox, the userland of an initramfs",
            "busybox-static",
            {"busybox": "bin/busybox"},
        ),
    )
}


@dataclass(frozen=True)
class Listing:
    """A line of `vmx guests list`."""

    name: str
    description: str
    cached: bool
    size: int  # bytes in the cache


class FetchError(VmxError):
    """A guest could not be fetched; the message says why."""


def cache_directory() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(base) / "vmx" / "guests"


def available() -> tuple[bool, str]:
    """Whether guests can be fetched on this machine, and if not, why."""
    missing = [tool for tool in ("apt-get", "apt-cache", "dpkg-deb") if shutil.which(tool) is None]
    if missing:
        return False, (
            f"{', '.join(missing)} not found: guests are fetched with the package tools of Debian and its "
            f"derivatives; elsewhere give the path of a kernel with --kernel"
        )
    return True, ""


def catalogue() -> list[Listing]:
    """All guests, with what the cache holds of them."""
    listings = []
    for guest in CATALOGUE.values():
        directory = cache_directory() / guest.name
        size = sum(f.lstat().st_size for f in directory.rglob("*") if f.is_file() and not f.is_symlink())
        listings.append(Listing(guest.name, guest.description, directory.is_dir(), size))
    return listings


def paths(name: str) -> dict[str, Path]:
    """The files of a cached guest by what they are; empty if it has not been pulled."""
    guest = _guest(name)
    directory = cache_directory() / guest.name
    return _find(guest, directory) if directory.is_dir() else {}


def pull(name: str, progress: Progress | None = None) -> Path:
    """The directory of a guest in the cache, fetched first if it is not there."""
    guest = _guest(name)
    target = cache_directory() / guest.name
    if target.is_dir():
        return target
    works, reason = available()
    if not works:
        raise FetchError(f"guest {name!r} cannot be fetched: {reason}")
    tell = progress or (lambda message: None)

    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=target.parent) as temporary:
        downloads, unpacked = Path(temporary) / "download", Path(temporary) / "unpacked"
        downloads.mkdir()
        unpacked.mkdir()
        package = _kernel_package(guest)
        tell(f"downloading {package}")
        _run(["apt-get", "-q", "-o", "APT::Sandbox::User=", "download", package], name, downloads)
        archives = list(downloads.glob("*.deb"))
        if len(archives) != 1:
            raise FetchError(
                f"guest {name!r}: apt-get download {package} left {len(archives)} files, not one"
            )
        tell(f"unpacking {archives[0].name}")
        _run(["dpkg-deb", "-x", str(archives[0]), str(unpacked)], name, downloads)
        missing = sorted(set(guest.files) - set(_find(guest, unpacked)))
        if missing:
            raise FetchError(
                f"guest {name!r}: package {package} holds no {guest.files[missing[0]]!r} ({missing[0]}); "
                f"this release of the distribution packs it differently"
            )
        try:
            unpacked.rename(target)
        except OSError:
            if not target.is_dir():  # otherwise somebody else was faster, with the same content
                raise
    return target


def _guest(name: str) -> Guest:
    if name not in CATALOGUE:
        raise UsageError(f"unknown guest {name!r}; the catalogue has: {', '.join(CATALOGUE)}")
    return CATALOGUE[name]


def _find(guest: Guest, directory: Path) -> dict[str, Path]:
    found = {}
    for what, pattern in guest.files.items():
        # Packages put files under / or under /usr, as the release has it.
        matches = sorted(directory.glob(pattern)) + sorted((directory / "usr").glob(pattern))
        if matches:
            found[what] = matches[-1]
    return found


def _kernel_package(guest: Guest) -> str:
    """The package that holds the files: the guest's own, or what its metapackage depends on."""
    if not guest.metapackage:
        return guest.package
    output = _run(["apt-cache", "depends", "--no-recommends", guest.package], guest.name)
    found = re.search(rf"Depends:\s*({guest.metapackage})(?:\s|$)", output)
    if not found:
        raise FetchError(
            f"guest {guest.name!r}: apt-cache depends {guest.package} names no kernel package; "
            f"is the distribution's main archive for amd64 configured, and did apt-get update run?"
        )
    return found.group(1)


def _run(command: list[str], name: str, directory: Path | None = None) -> str:
    environment = {**os.environ, "LC_ALL": "C"}
    result = subprocess.run(
        command, cwd=directory, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    if result.returncode:
        lines = [line for line in (result.stderr or result.stdout).splitlines() if line.strip()]
        reason = lines[-1] if lines else f"exit status {result.returncode}"
        raise FetchError(
            f"guest {name!r} cannot be fetched: {' '.join(command[:2])} failed: {reason} "
            f"(offline, or no package lists yet: try apt-get update)"
        )
    return result.stdout

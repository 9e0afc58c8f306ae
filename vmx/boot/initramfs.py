"""Initial RAM file systems: a writer for the newc cpio format, and a userland of one busybox.

The format is described in the Linux sources, early-userspace/buffer-format.rst: per entry the magic and
thirteen 8-digit hexadecimal numbers, the name and the data, each padded to 4 bytes.
"""

from __future__ import annotations

import gzip
import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass

from vmx.boot import files
from vmx.boot.image import BootError


@dataclass(frozen=True)
class Entry:
    """One file, directory, symbolic link or device node of an archive."""

    name: str
    mode: int
    data: bytes = b""
    device: tuple[int, int] = (0, 0)


def directory(name: str) -> Entry:
    return Entry(name, stat.S_IFDIR | 0o755)


def file(name: str, data: bytes, permissions: int = 0o644) -> Entry:
    return Entry(name, stat.S_IFREG | permissions, data)


def link(name: str, target: str) -> Entry:
    return Entry(name, stat.S_IFLNK | 0o777, os.fsencode(target))


def character_device(name: str, major: int, minor: int, permissions: int = 0o600) -> Entry:
    return Entry(name, stat.S_IFCHR | permissions, device=(major, minor))


def pack(entries: Iterable[Entry], *, compress: bool = False) -> bytes:
    """A newc archive of the entries, in their order; the same entries always give the same bytes."""
    archive = bytearray()
    inode = 0
    for inode, entry in enumerate(entries, start=1):
        _append(archive, entry, inode)
    _append(archive, Entry("TRAILER!!!", 0), inode + 1)
    archive += bytes(-len(archive) % 512)
    return gzip.compress(bytes(archive), mtime=0) if compress else bytes(archive)


def _append(archive: bytearray, entry: Entry, inode: int) -> None:
    name = os.fsencode(entry.name) + b"\0"
    fields = (
        inode,
        entry.mode,
        0,  # uid
        0,  # gid
        2 if stat.S_ISDIR(entry.mode) else 1,  # links
        0,  # modification time
        len(entry.data),
        0,  # major and minor of the device that holds the file
        0,
        *entry.device,
        len(name),
        0,  # check sum, which only the crc variant uses
    )
    archive += b"070701" + b"".join(b"%08X" % value for value in fields) + name
    archive += bytes(-len(archive) % 4)
    archive += entry.data
    archive += bytes(-len(archive) % 4)


INIT = """\
#!/bin/busybox sh
/bin/busybox mount -t devtmpfs dev /dev 2>/dev/null
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sys /sys
/bin/busybox --install -s
export PATH=/bin:/sbin:/usr/bin:/usr/sbin HOME=/root TERM=vt100 PS1='~ # '
cd /root
{extra}
echo
echo "Welcome to Linux $(uname -r). 'poweroff' ends the machine."
# poweroff, reboot and halt signal process 1, which is this script; `wait` lets the traps run at once.
trap 'poweroff -f' USR2
trap 'reboot -f' TERM
trap 'halt -f' USR1
while true; do
    setsid cttyhack sh < /dev/console > /dev/console 2>&1 &
    wait $!
done
"""


def busybox_initramfs(
    busybox_path: str | os.PathLike[str],
    extra_init_script: str | None = None,
    *,
    compress: bool = False,
) -> bytes:
    """A userland that boots to a shell on the kernel's console: one static busybox and an `/init` script.

    `extra_init_script` is shell text that runs before the first shell.
    """
    busybox = files.read(busybox_path, "busybox")
    if busybox[:4] != b"\x7fELF":
        raise BootError(
            f"busybox {os.fspath(busybox_path)!r} is no ELF executable; a static busybox is needed"
        )
    entries = [directory(name) for name in "bin sbin usr usr/bin usr/sbin proc sys dev etc root tmp".split()]
    entries += [
        character_device("dev/console", 5, 1),
        character_device("dev/null", 1, 3, 0o666),
        file("bin/busybox", busybox, 0o755),
        link("bin/sh", "busybox"),
        file("init", INIT.format(extra=extra_init_script or "").encode(), 0o755),
    ]
    return pack(entries, compress=compress)

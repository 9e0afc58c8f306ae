"""An initramfs in the kernel's "newc" cpio format (Documentation/driver-api/early-userspace/buffer-format):
busybox and an /init that mounts the usual file systems and gives a shell on the console."""

INIT = b"""#!/bin/sh
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev 2>/dev/null
export PATH=/bin HOME=/ PS1='vmx# '
echo "Type poweroff -f to end."
exec setsid -c sh -c 'exec sh </dev/console >/dev/console 2>&1'
"""

APPLETS = (
    "sh mount umount cat ls echo dmesg ps uname free mkdir rm cp mv ln grep head tail wc sleep date id env "
    "setsid poweroff reboot halt sync true false test vi top df du find sed awk sort hexdump md5sum sha256sum time"
).split()

_DIRECTORY, _FILE, _SYMLINK, _CHARACTER = 0o040755, 0o100755, 0o120777, 0o020600


def archive(entries: list[tuple[str, int, bytes, tuple[int, int]]]) -> bytes:
    """A cpio archive of (path, mode, data, (device major, minor)); times and owners are 0: it is reproducible."""
    out = bytearray()
    for number, (path, mode, data, device) in enumerate([*entries, ("TRAILER!!!", 0, b"", (0, 0))], 1):
        name = path.encode() + b"\0"
        fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, *device, len(name), 0)
        out += b"070701" + b"".join(b"%08X" % field for field in fields) + name
        out += bytes(-len(out) % 4)
        out += data
        out += bytes(-len(out) % 4)
    return bytes(out)


def with_busybox(program: bytes) -> bytes:
    """The archive; `program` is a statically linked busybox."""
    none = (0, 0)
    directories = [(name, _DIRECTORY, b"", none) for name in ("bin", "dev", "proc", "sys", "tmp", "root")]
    links = [(f"bin/{applet}", _SYMLINK, b"busybox", none) for applet in APPLETS]
    return archive(
        [
            *directories,
            ("dev/console", _CHARACTER, b"", (5, 1)),
            ("bin/busybox", _FILE, program, none),
            *links,
            ("init", _FILE, INIT, none),
        ]
    )

"""The cpio writer, and the busybox userland."""

import gzip
import shutil
import stat
import subprocess

import pytest

from vmx.boot import BootError, initramfs


def unpack(archive):
    """Names with mode, device and data, read back field by field."""
    entries, offset = {}, 0
    while True:
        assert offset % 4 == 0 and archive[offset : offset + 6] == b"070701"
        fields = [int(archive[offset + 6 + 8 * i : offset + 14 + 8 * i], 16) for i in range(13)]
        name_at = offset + 110
        name = archive[name_at : name_at + fields[11] - 1].decode()
        data_at = name_at + fields[11] + 3 & ~3
        if name == "TRAILER!!!":
            return entries
        entries[name] = (fields[1], (fields[9], fields[10]), archive[data_at : data_at + fields[6]])
        offset = data_at + fields[6] + 3 & ~3


@pytest.fixture
def busybox(tmp_path):
    path = tmp_path / "busybox"
    path.write_bytes(b"\x7fELF" + bytes(33))
    return path


def test_busybox_initramfs(busybox):
    archive = initramfs.busybox_initramfs(busybox, "echo ready")
    entries = unpack(archive)
    assert entries["bin/busybox"][2] == busybox.read_bytes()
    assert stat.S_ISCHR(entries["dev/console"][0]) and entries["dev/console"][1] == (5, 1)
    assert entries["init"][0] & 0o111 and b"\necho ready\n" in entries["init"][2]
    assert stat.S_ISLNK(entries["bin/sh"][0]) and entries["bin/sh"][2] == b"busybox"
    assert archive == initramfs.busybox_initramfs(busybox, "echo ready")
    packed = initramfs.busybox_initramfs(busybox, "echo ready", compress=True)
    assert gzip.decompress(packed) == archive


@pytest.mark.skipif(shutil.which("cpio") is None, reason="cpio is not installed")
def test_cpio_reads_it(busybox):
    archive = initramfs.busybox_initramfs(busybox)
    listed = subprocess.run(["cpio", "-t", "--quiet"], input=archive, capture_output=True, check=True)
    assert set(listed.stdout.decode().split()) == set(unpack(archive))


def test_not_a_busybox(tmp_path):
    (tmp_path / "text").write_text("hello")
    with pytest.raises(BootError, match="no ELF"):
        initramfs.busybox_initramfs(tmp_path / "text")

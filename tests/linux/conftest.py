"""Real kernels, fetched once into the user's cache; without a package tool or a network the tests are skipped."""

import pytest

from vmx.boot import fetch, initramfs


def fetched(name: str) -> dict:
    """The files of a catalogue guest."""
    works, reason = fetch.available()
    if not works and not fetch.paths(name):
        pytest.skip(reason)
    try:
        fetch.pull(name)
    except fetch.FetchError as error:
        pytest.skip(str(error))
    return fetch.paths(name)


@pytest.fixture(scope="session")
def debian():
    """Path of Debian's cloud kernel."""
    return fetched("debian-cloud")["kernel"]


@pytest.fixture(scope="session")
def initrd(tmp_path_factory):
    """Path of an initramfs with busybox and nothing else."""
    busybox = fetched("busybox")["busybox"]
    path = tmp_path_factory.mktemp("initrd") / "busybox.cpio"
    path.write_bytes(initramfs.busybox_initramfs(busybox))
    return path


@pytest.fixture(scope="session")
def memtest():
    """The images of memtest86+ by the names `kernel` (64-bit) and `kernel32`."""
    return fetched("memtest86+")

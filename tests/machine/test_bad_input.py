"""What cannot be booted is refused with a message that names the thing, before anything runs."""

import pytest

from tests.boot.images import bzimage, elf_file, multiboot_elf
from vmx import BufferConsole, Machine, MachineConfig
from vmx.boot import BootError
from vmx.errors import ConfigurationError, ExitStatus, VmxError


def refused(message, **options):
    """The error of a machine that cannot be made."""
    with pytest.raises(VmxError, match=message) as caught:
        Machine(MachineConfig(**{"memory": "64M", **options}), console=BufferConsole())
    assert "\n" not in str(caught.value).strip()
    return caught.value


def write(directory, data, name="kernel"):
    path = directory / name
    path.write_bytes(data)
    return str(path)


def test_missing_kernel(tmp_path):
    error = refused("kernel '.*nothing' cannot be read: No such file", kernel=str(tmp_path / "nothing"))
    assert isinstance(error, BootError)
    assert error.exit_status == ExitStatus.BAD_KERNEL


def test_directory_and_empty_file(tmp_path):
    refused("is a directory", kernel=str(tmp_path))
    refused("is empty", kernel=write(tmp_path, b""))


def test_missing_initrd_and_module(tmp_path):
    kernel = write(tmp_path, bzimage())
    refused("initrd '.*none' cannot be read", kernel=kernel, initrd=str(tmp_path / "none"))
    multiboot = write(tmp_path, multiboot_elf(), "multiboot")
    refused("module '.*none' cannot be read", kernel=multiboot, modules=(str(tmp_path / "none") + "=x",))


@pytest.mark.parametrize("image", [bzimage(kernel=bytes(0x8000)), elf_file(), multiboot_elf()])
@pytest.mark.parametrize("keep", [0.2, 0.4])
def test_truncated_kernels(tmp_path, image, keep):
    data = image.rstrip(b"\0")
    refused("kernel", kernel=write(tmp_path, data[: int(len(data) * keep)]))


def test_memory_too_small_for_the_kernel(tmp_path):
    message = refused("memory", kernel=write(tmp_path, bzimage(init_size=0x800_0000)), memory="32M")
    assert "MiB" in str(message)
    refused("does not fit", kernel=write(tmp_path, bytes(4 << 20)), load_address=0x10_0000, memory="4M")


def test_memory_that_no_machine_has():
    assert isinstance(refused("memory = ", guest="hello", memory="64K"), ConfigurationError)
    assert isinstance(
        refused("whole number of 4096", guest="hello", memory=(64 << 20) + 1), ConfigurationError
    )
    refused("from 2 MiB", guest="hello", memory="1M")


def test_flat_binaries_need_a_place(tmp_path):
    kernel = write(tmp_path, b"\xf4" * 100)
    refused("--load-address", kernel=kernel)
    refused("real mode reaches", kernel=kernel, load_address=0x20_0000, load_mode="real")
    refused("not all RAM", kernel=kernel, load_address=0xA_0000)
    refused("overlaps", kernel=kernel, load_address=0x1000)


def test_unknown_guest():
    refused("guest 'teech' .*teach", guest="teech")
    refused("kernel and guest are both set", guest="teach", kernel="x")


def test_initrd_for_a_kernel_that_cannot_have_one(tmp_path):
    initrd = write(tmp_path, b"x", "initrd")
    refused("initrd", kernel=write(tmp_path, b"\xf4"), load_address=0x1_0000, initrd=initrd)


def test_a_bare_machine_has_no_exits():
    machine = Machine(MachineConfig(guest="hello", bare=True, memory="4M"), console=BufferConsole())
    with pytest.raises(RuntimeError, match="no VM exits"):
        machine.on_exit(lambda info: None)

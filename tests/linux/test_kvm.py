"""Linux as the hypervisor: Debian's kernel, bare with VMX, loads its own KVM and runs a guest inside.

`kvmtest` is built from kvmtest.c beside it, by the command in its first comment.
"""

import re
from pathlib import Path

import pytest

from vmx import BufferConsole, Machine, MachineConfig
from vmx.boot import fetch, initramfs

pytestmark = [pytest.mark.linux, pytest.mark.slow, pytest.mark.xdist_group("linux")]

PROMPT = b"~ # "
MODULES = ("virt/lib/irqbypass.ko", "arch/x86/kvm/kvm.ko", "arch/x86/kvm/kvm-intel.ko")
COMMANDS = b"""\
mount -t debugfs debugfs /sys/kernel/debug
insmod /irqbypass.ko && insmod /kvm.ko && insmod /kvm-intel.ko && /kvmtest; echo status $?
poweroff -f
"""


class Typist(BufferConsole):
    """Types all commands when the shell's first prompt appears."""

    def __init__(self):
        super().__init__()
        self.typed = False

    def write(self, data):
        super().write(data)
        if not self.typed and self.output.endswith(PROMPT):
            self.typed = True
            self.feed(COMMANDS)


@pytest.fixture(scope="module")
def kvm_initrd(debian, initrd, tmp_path_factory):
    """Busybox, the kernel's KVM modules and kvmtest. An initial RAM disk may be several archives in a row."""
    directory = Path(fetch.paths("debian-cloud")["modules_dir"]) / "kernel"
    if missing := [name for name in MODULES if not (directory / name).is_file()]:
        pytest.skip(f"{directory} has no {', '.join(missing)}")
    entries = [initramfs.file(Path(name).name, (directory / name).read_bytes()) for name in MODULES]
    entries.append(initramfs.file("kvmtest", Path(__file__).with_name("kvmtest").read_bytes(), 0o755))
    path = tmp_path_factory.mktemp("kvm") / "kvm.cpio"
    path.write_bytes(initrd.read_bytes() + initramfs.pack(entries))
    return path


def test_runs_a_guest_with_its_own_kvm(debian, kvm_initrd):
    config = MachineConfig(
        kernel=str(debian),
        initrd=str(kvm_initrd),
        append="console=ttyS0 quiet",
        memory="512M",
        bare=True,
        vmx=True,
    )
    machine = Machine(config, console=Typist())
    result = machine.run(timeout_s=400)
    text = machine.console.text.replace("\r", "")
    assert "\nguest wrote 4\n" in text, text[-3000:]
    assert "\nstatus 0\n" in text
    assert (result.stop, int(result.exit_status)) == ("POWEROFF", 0), result.message
    for problem in ("Kernel panic", "BUG:", "Oops", "WARNING:", "soft lockup"):
        assert problem not in text

    runs = int(re.search(r"^guest halted after (\d+) runs$", text, re.MULTILINE)[1])
    exits = int(machine.processors[0].view.vm_exits)
    assert runs == 3  # two bytes written and the halt
    assert exits >= runs
    linux = int(re.search(r"^Linux counted exits: (\d+)$", text, re.MULTILINE)[1])
    print(f"VM exits: {exits} by the processor, {linux} by Linux, {runs} reached the program")
    assert linux == exits

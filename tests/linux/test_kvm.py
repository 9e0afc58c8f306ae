"""Linux as the hypervisor: Debian's kernel, bare with VMX, loads its own KVM and runs a guest inside, with
and without VPIDs, unrestricted guests and EPT.

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
# Module parameters to switch off, one after the other: guests then run without VPIDs, in virtual-8086 mode where
# they mean real mode, and on shadow page tables.
SETTINGS = ("", "vpid", "unrestricted_guest", "ept")
COMMANDS = """\
mount -t debugfs debugfs /sys/kernel/debug
cd /sys/module; insmod /irqbypass.ko; insmod /kvm.ko
for off in "" {settings}; do
insmod /kvm-intel.ko ${off:+$off=0}
grep . kvm_intel/parameters/vpid kvm_intel/parameters/unrestricted_guest kvm_intel/parameters/ept
/kvmtest; echo status $?; rmmod kvm-intel; done
poweroff -f
""".replace("{settings}", " ".join(SETTINGS[1:])).encode()


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


def test_runs_guests_with_its_own_kvm(debian, kvm_initrd):
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
    assert text.count("\nguest wrote 4\n") == text.count("\nstatus 0\n") == len(SETTINGS), text[-3000:]
    assert (result.stop, int(result.exit_status)) == ("POWEROFF", 0), result.message
    for problem in ("Kernel panic", "BUG:", "Oops", "WARNING:", "soft lockup"):
        assert problem not in text

    for number, off in enumerate(SETTINGS):
        for name in SETTINGS[1:]:
            values = re.findall(rf"^kvm_intel/parameters/{name}:([YN])$", text, re.MULTILINE)
            # Without EPT there is no unrestricted guest either.
            expected = "N" if name == off or (name, off) == ("unrestricted_guest", "ept") else "Y"
            assert values[number] == expected, f"{name} with {off or 'nothing'} off"

    def numbers(pattern):
        return [int(value) for value in re.findall(pattern, text, re.MULTILINE)]

    runs = numbers(r"^guest halted after (\d+) runs$")
    linux = numbers(r"^Linux counted exits: (\d+)$")
    exits = int(machine.processors[0].view.vm_exits)
    print(f"VM exits: {exits} by the processor, {linux} by Linux, {runs} reached the program")
    assert runs == [3] * len(SETTINGS)  # two bytes written and the halt
    assert exits >= sum(runs)
    assert sum(linux) == exits

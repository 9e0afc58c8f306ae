"""Debian's cloud kernel, unmodified, to the shell of its initramfs: as a guest in VMX non-root operation, and bare."""

from functools import cache

import pytest

from vmx import BufferConsole, ExitReason, Machine, MachineConfig

pytestmark = [pytest.mark.linux, pytest.mark.slow, pytest.mark.xdist_group("linux")]

PROMPT = b"~ # "
COMMANDS = b"echo $((6*7)) is the answer; uname -sr; cat /proc/cpuinfo | grep -c hypervisor\npoweroff -f\n"


class Typist(BufferConsole):
    """Types the commands when the shell's prompt appears, so both are at the same virtual time in every run."""

    def __init__(self):
        super().__init__()
        self.typed = False

    def write(self, data):
        super().write(data)
        if not self.typed and self.output.endswith(PROMPT):
            self.typed = True
            self.feed(COMMANDS)


@cache
def boot(kernel, initrd, bare, run):
    """One boot from start to poweroff. `run` tells repeated boots apart."""
    config = MachineConfig(
        kernel=str(kernel), initrd=str(initrd), append="console=ttyS0 quiet", memory="512M", bare=bare
    )
    machine = Machine(config, console=Typist())
    return machine, machine.run(timeout_s=400)


@pytest.mark.parametrize("bare", [False, True], ids=["guest", "bare"])
def test_to_the_shell_and_back(debian, initrd, bare):
    machine, result = boot(debian, initrd, bare, 1)
    text = machine.console.text
    assert PROMPT.decode() in text, text[-2000:]
    answers = text[text.index(PROMPT.decode()) :].replace("\r", "").split("\n")
    assert "42 is the answer" in answers
    assert any(line.startswith("Linux 6.") or line.startswith("Linux 5.") for line in answers)
    assert ("0" if bare else "1") in answers  # the guest, and only the guest, sees the hypervisor bit
    assert (result.stop, int(result.exit_status)) == ("POWEROFF", 0), result.message
    assert result.retired > 100_000_000
    for problem in ("Kernel panic", "BUG:", "Oops", "WARNING:", "soft lockup"):
        assert problem not in text


def test_exits_by_reason(debian, initrd):
    machine, _ = boot(debian, initrd, False, 1)
    counts = {row.reason: row.samples for row in machine.ledger.statistics()}
    for reason in ("CPUID", "IO_INSTRUCTION", "EXTERNAL_INTERRUPT", "HLT", "EPT_VIOLATION"):
        assert counts[ExitReason[reason]] > 0, reason
    assert sum(counts.values()) == len(machine.ledger) == len(machine.ledger.records)
    for reason in ("TRIPLE_FAULT", "RDTSC", "INVLPG", "EPT_MISCONFIGURATION"):
        assert ExitReason[reason] not in counts, reason


def test_every_opcode_is_decoded(debian, initrd):
    """UD2 and what the kernel tries on purpose aside, nothing it executes is unknown."""
    assert boot(debian, initrd, False, 1)[1].undecoded == {}


def test_two_boots_are_the_same(debian, initrd):
    """Same instruction count, same exits, same console."""
    (first, a), (second, b) = (boot(debian, initrd, False, run) for run in (1, 2))
    assert (a.retired, a.virtual_ns) == (b.retired, b.virtual_ns)
    assert first.console.output == second.console.output
    names = [name for name in first.ledger.records.dtype.names if name != "handler_ns"]
    assert (first.ledger.records[names] == second.ledger.records[names]).all()
    boot.cache_clear()

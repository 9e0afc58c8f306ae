"""The bundled guests, bare and as guests of the hypervisor: what they print, how they end, and that they repeat."""

import numpy as np
import pytest

from tests.machine.world import BOTH, run_bundled
from vmx import ExitReason

TEACH_RUN = "run=hello,primes,counter,pagetest,fault,exits,ps,mem,poweroff"
TEACH_SAYS = (
    "primes: 9592 primes up to 100000, the last is 99991",
    "counter: both done",
    "pagetest: heap, 256 pages, 256 faults, 0 wrong",
    "pagetest: stack, 64 pages, 64 faults, right",
    "page fault: write of 0xdeadbeef000 in ring 3, nothing mapped there",
    "sh: fault ended with status 142",
    "wbinvd        100 times",
    "teach> poweroff",
)


@pytest.fixture(scope="module")
def teach_runs():
    """The same work bare and hypervised."""
    return {bare: run_bundled("teach", bare=bare, append=TEACH_RUN) for bare in BOTH}


@pytest.mark.parametrize("bare", BOTH)
def test_teach_does_its_work(teach_runs, bare):
    machine, result = teach_runs[bare]
    assert (result.stop, result.exit_status) == ("POWEROFF", 0)
    for text in TEACH_SAYS:
        assert text in machine.console.text
    assert "panic" not in machine.console.text
    assert result.undecoded == {}


def test_the_hypervisor_does_not_show(teach_runs):
    """Same console byte for byte, times that the guest measures included; one instruction more or less at the end.

    (Bare, the OUT that powers off does not complete; under the hypervisor it has been skipped by then.)
    """
    (bare, bare_result), (guest, guest_result) = teach_runs[True], teach_runs[False]
    assert bare.console.output == guest.console.output
    assert abs(bare_result.retired - guest_result.retired) <= 1
    assert len(bare.ledger) == 0


def test_exits_of_teach(teach_runs):
    """The guest's program `exits` runs each instruction a known number of times."""
    ledger = teach_runs[False][0].ledger
    counts = {row.reason: row.samples for row in ledger.statistics()}
    assert counts[ExitReason.CPUID] >= 100
    assert counts[ExitReason.HLT] >= 3
    assert counts[ExitReason.IO_INSTRUCTION] >= 100
    assert counts[ExitReason.EXTERNAL_INTERRUPT] > 0
    # intercepts that the default configuration does not ask for
    for reason in (ExitReason.RDTSC, ExitReason.INVLPG, ExitReason.CR_ACCESS, ExitReason.WBINVD):
        assert reason not in counts
    assert sum(counts.values()) == len(ledger)


@pytest.mark.parametrize("bare", BOTH)
def test_prot32_passes_its_own_tests(bare):
    machine, result = run_bundled("prot32", bare=bare)
    lines = machine.console.text.splitlines()
    assert [line for line in lines if line.startswith("FAIL")] == []
    assert "prot32: 33 of 33 tests ok" in lines
    assert (result.stop, result.exit_status) == ("POWEROFF", 0)


@pytest.mark.parametrize("bare", BOTH)
def test_hello(bare):
    machine, result = run_bundled("hello", bare=bare)
    assert machine.console.text.strip() == "hello from ring 0"
    assert (result.stop, result.exit_status) == ("DEBUG_EXIT", 1)


@pytest.mark.parametrize("guest, append", [("teach", TEACH_RUN), ("prot32", "")])
def test_two_runs_are_the_same(guest, append):
    """Instruction count, virtual time, console, and every record byte for byte but for host times."""
    (first, a), (second, b) = (run_bundled(guest, append=append) for _ in range(2))
    assert (a.retired, a.virtual_ns) == (b.retired, b.virtual_ns)
    assert first.console.output == second.console.output
    records = [np.array(machine.ledger.records) for machine in (first, second)]
    assert len(records[0]) > 1000
    for each in records:
        each["handler_ns"] = 0
    assert records[0].tobytes() == records[1].tobytes()
    assert first.memory.bytes.tobytes() == second.memory.bytes.tobytes()


def test_counting_only_gives_the_same_table():
    recorded, a = run_bundled("prot32", record=True)
    counted, b = run_bundled("prot32", record=False)
    assert a.retired == b.retired
    tables = [{r.reason: r.samples for r in m.ledger.statistics()} for m in (recorded, counted)]
    assert tables[0] == tables[1]
    assert len(counted.ledger.records) == 0

"""The exit table, and the names in it."""

import io
from pathlib import Path

import pytest

import vmx.virt.reasons as reasons
from vmx.ledger.ledger import Ledger
from vmx.ledger.table import exit_lines, exit_table_json, exit_table_text, print_exit_table
from vmx.virt.reasons import ExitReason, linux_name

ROWS = [
    line.split("\t")
    for line in (Path(reasons.__file__).parent / "exit_reasons.tsv").read_text().splitlines()[1:]
]


@pytest.fixture
def ledger():
    ledger = Ledger()
    for reason, handler_ns in [(30, 1000), (30, 3000), (48, 4000), (12, 2000)]:
        ledger.close(ledger.open(reason, 0x3F80003, guest_rip=0xFFFFFFFF81000000), handler_ns)
    return ledger


def test_reasons_are_those_of_the_facts_table():
    named = {int(number): name for number, name in ROWS if not name.startswith("RESERVED")}
    assert {reason.value: reason.name for reason in ExitReason} == named


@pytest.mark.parametrize(
    "number, name",
    [
        (30, "IO_INSTRUCTION"),
        (48, "EPT_VIOLATION"),
        (52, "PREEMPTION_TIMER"),
        (32, "MSR_WRITE"),
        (71, "REASON_71"),
    ],
)
def test_names_are_spelt_as_linux_spells_them(number, name):
    assert linux_name(number) == name


def test_text_is_laid_out_as_perf_does(ledger):
    lines = exit_table_text(ledger).splitlines()
    assert lines[0].split() == "VM-EXIT No. Samples Samples% Time% Min Time Max Time Avg time".split()
    assert lines[2].split() == "IO_INSTRUCTION 30 2 50.00% 40.00% 1.00us 3.00us 2.00us ( +- 50.00% )".split()
    assert lines[3].split()[0] == "HLT"  # equal counts: the manual's order
    assert lines[-1] == "Total Samples:4, Total events handled time:10.00us."


def test_no_exits():
    assert exit_table_text(Ledger()) == "No VM exits."


def test_plain_text_in_a_pipe(ledger):
    out = io.StringIO()
    print_exit_table(ledger, out)
    assert out.getvalue() == exit_table_text(ledger) + "\n"


def test_nothing_is_cut_off_on_a_narrow_terminal(ledger):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    out = Terminal()
    ledger.close(ledger.open(1), 10**9)
    print_exit_table(ledger, out)
    assert "EXTERNAL_INTERRUPT" in out.getvalue()
    assert "…" not in out.getvalue()
    assert "Total Samples:5" in out.getvalue()


def test_json_rows(ledger):
    first = exit_table_json(ledger)[0]
    assert first["reason"] == 30 and first["name"] == "IO_INSTRUCTION" and first["samples"] == 2
    assert first["total_ns"] == 4000 and first["mean_ns"] == 2000


def test_exit_lines(ledger):
    line = next(exit_lines(ledger.records))
    assert "reason IO_INSTRUCTION rip 0xffffffff81000000 info1 0x0000000003f80003" in line

"""Each exit condition end to end: on, off, exact information, and the same result for the guest either way."""

import shutil

import pytest

from tests.exits import assemble
from tests.exits.guests import code_of, machine, run
from tests.exits.rows import CODE, ROWS

UNDEFINED_IN_64_BIT_MODE = 1 << 11  # of the instruction information of LGDT and its like: operand size


def _run_with(row, tmp_path, on):
    controls = row.on if on else row.off
    built = machine(row.name, tmp_path, controls=controls, exception_bitmap=row.bitmap if on else 0)
    row.prepare(built)
    (row.prepare_on if on else row.prepare_off)(built)
    if on:
        for name, value in row.fields_on.items():
            built.vmcs().write(name, value)
    seen = []
    fields = "vm_exit_instruction_info vm_exit_interruption_error_code vm_exit_instruction_length".split()

    def note(exit):
        if exit.guest_rip != CODE:
            seen.append({name: exit.cpu.read(name) for name in fields})

    built.on_exit(note, row.reason)
    return run(built, row.name), seen


def _expect(row, record, fields):
    code = code_of(row.name)
    assert int(record["qualification"]) == row.qualification
    if row.rip != "any":
        start = CODE + code["exit"]
        assert int(record["guest_rip"]) == (start if row.rip == "at" else start + code["length"])
    if row.length:
        assert fields["vm_exit_instruction_length"] == code["length"]
    if row.info is not None:
        assert fields["vm_exit_instruction_info"] & ~UNDEFINED_IN_64_BIT_MODE == row.info
    if row.linear is not None:
        assert int(record["guest_linear"]) == row.linear
    if row.physical is not None:
        assert int(record["guest_physical"]) == row.physical
    if row.interruption is not None:
        assert int(record["interruption_info"]) == row.interruption
    if row.error is not None:
        assert fields["vm_exit_interruption_error_code"] == row.error
    if row.vectoring is not None:
        assert int(record["idt_vectoring"]) == row.vectoring


def _of_reason(row, outcome):
    """Its exits but for one: every guest begins with LIDT."""
    exits = outcome.exits
    return exits[(exits["reason"] == int(row.reason)) & (exits["guest_rip"] != CODE)]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_condition(row, tmp_path):
    on, fields = _run_with(row, tmp_path, True)
    assert on.stop == "DEBUG_EXIT", on.message
    exits = _of_reason(row, on)
    assert len(exits) == row.count
    at = 1 if row.name == "lgdt" else 0
    _expect(row, exits[at], fields[at])
    if row.off is None:
        return
    off, _ = _run_with(row, tmp_path, False)
    assert off.stop == "DEBUG_EXIT", off.message
    assert len(_of_reason(row, off)) == 0
    for part in ("registers", "dr", "handled", "memory"):
        assert getattr(on, part) == getattr(off, part), part


@pytest.mark.skipif(shutil.which("as") is None, reason="GNU as is not here: code.json is taken as it is")
def test_code_is_what_the_rows_say():
    assert assemble.FILE.read_text() == assemble.json.dumps(assemble.everything(), indent=0) + "\n"

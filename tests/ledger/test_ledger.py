"""Recording exits: records, counts and times agree, however an exit gets into the ledger."""

import statistics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmx.ledger.ledger import Ledger
from vmx.ledger.record import EXIT_RECORD

U64 = st.integers(0, 2**64 - 1)
U32 = st.integers(0, 2**32 - 1)
EXITS = st.lists(
    st.fixed_dictionaries(
        {
            "reason": st.integers(0, 85),
            "qualification": U64,
            "retired": U64,
            "virtual_ns": U64,
            "cpu": st.integers(0, 2**16 - 1),
            "guest_rip": U64,
            "instruction_length": st.integers(0, 15),
            "guest_physical": U64,
            "guest_linear": U64,
            "interruption_info": U32,
            "idt_vectoring": U32,
            "handler_ns": st.integers(0, 2**40),
        }
    ),
    max_size=20,
)


def record(exits, **options) -> Ledger:
    ledger = Ledger(**options)
    for entry in exits:
        values = dict(entry)
        handler_ns = values.pop("handler_ns")
        ledger.close(ledger.open(values.pop("reason"), values.pop("qualification"), **values), handler_ns)
    return ledger


@given(EXITS)
def test_records_hold_what_was_entered(exits):
    records = record(exits, capacity=1).records
    assert records.dtype == EXIT_RECORD
    assert records["sequence"].tolist() == list(range(len(exits)))
    for name in EXIT_RECORD.names:
        if name != "sequence":
            assert records[name].tolist() == [entry[name] for entry in exits]


@given(EXITS)
def test_counts_do_not_need_records(exits):
    with_records, without = record(exits), record(exits, record=False)
    assert without.statistics() == with_records.statistics()
    assert len(without) == len(exits)
    assert len(without.records) == 0


@given(EXITS, EXITS)
def test_extend_continues_the_ledger(first, second):
    whole, continued = record(first + second), record(first, capacity=1)
    continued.extend(record(second).records)
    assert np.array_equal(continued.records, whole.records)
    assert continued.statistics() == whole.statistics()


@given(EXITS)
def test_a_ledger_comes_back_from_its_records(exits):
    ledger = record(exits)
    assert Ledger.from_records(ledger.records).statistics() == ledger.statistics()


def test_entries_may_be_closed_in_any_order():
    ledger = Ledger()
    outer, inner = ledger.open(10), ledger.open(48)
    ledger.close(inner, 7)
    ledger.close(outer, 9)
    assert ledger.records["handler_ns"].tolist() == [9, 7]


def test_relative_error_is_the_standard_error_of_the_mean():
    times = [1000, 1500, 900, 4000]
    ledger = record([{"reason": 12, "qualification": 0, "handler_ns": ns} for ns in times])
    (row,) = ledger.statistics()
    expected = 100 * statistics.stdev(times) / len(times) ** 0.5 / statistics.mean(times)
    assert row.relative_error_percent == pytest.approx(expected)
    assert (row.min_ns, row.max_ns, row.mean_ns) == (900, 4000, statistics.mean(times))


def test_a_copy_is_returned():
    ledger = record([{"reason": 12, "qualification": 1, "handler_ns": 1}])
    ledger.records["reason"] = 0
    assert ledger.records["reason"].tolist() == [12]
    ledger.open(10)  # the buffer can still grow
    assert ledger.counts == {10: 1, 12: 1}


def test_records_have_no_padding():
    """Padding would be copied or not as numpy likes, and two equal runs would differ in their files."""
    assert sum(field[0].itemsize for field in EXIT_RECORD.fields.values()) == EXIT_RECORD.itemsize

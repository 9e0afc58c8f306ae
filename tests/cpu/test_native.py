"""User-level integer instructions on vmx and on the host's own processor: registers, flags, memory, faults."""

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("iced_x86")

from tests.cpu.generate import batch, integer_rows  # noqa: E402
from tests.oracles import native  # noqa: E402
from tests.oracles.compare import report, settle  # noqa: E402

pytestmark = [
    pytest.mark.oracle,
    pytest.mark.skipif(not native.AVAILABLE, reason="needs an x86-64 Linux host"),
]
ROWS = integer_rows()


@pytest.fixture(scope="module")
def model():
    from tests.oracles.model import Model

    yield Model(2)
    native.stop()


def check(model, cases, defined):
    theirs = settle(native.run(cases))
    ours = model.run(cases)
    text = report(cases, ours, theirs, defined)
    assert not text, text


@pytest.mark.parametrize("seed", range(4))
def test_all_rows(model, seed):
    """Every row in random encodings and states: about 20,000 cases a seed."""
    cases, defined, _ = batch(ROWS, 80, seed)
    assert len(cases) > 15_000
    check(model, cases, defined)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(row=st.sampled_from(ROWS), seed=st.integers(0, 2**32))
def test_one_row(model, row, seed):
    cases, defined, _ = batch([row], 30, seed)
    if len(cases):
        check(model, cases, defined)


def test_supervisor_gives_the_same(model):
    """At CPL 0 user-level instructions do the same (POPF apart, which may change more)."""
    from tests.oracles.model import Model

    rows = [r for r in ROWS if r.mnemonic != "POPF"]
    cases, defined, _ = batch(rows, 6, random.Random(9).randrange(100))
    user, supervisor = model.run(cases), Model(2, cpl=0).run(cases)
    fault = user["vector"] == 14
    supervisor["error"][fault] |= 4  # the access was a user's
    text = report(cases, supervisor, user, defined)
    assert not text, text


@pytest.mark.parametrize("mode", range(3), ids=("16-bit", "32-bit", "64-bit"))
def test_run_loop_gives_the_same(mode):
    """Fetching, decoded blocks and dispatch of the run loop add nothing to an instruction."""
    from tests.oracles.model import Model

    cases, _, _ = batch(integer_rows(mode), 8, 5, mode)
    direct = Model(mode, cpl=0)
    expected = direct.run(cases)
    completed = expected["vector"] == -1
    assert completed.mean() > 0.9
    after = Model(mode, cpl=0).run_loop(cases[completed])
    text = report(
        cases[completed], after, expected[completed], np.full(completed.sum(), 0xFF_FFFF, np.uint64), mode
    )
    assert not text, text


@pytest.mark.parametrize(
    "code",
    ("8ec8", "8ef0", "8ef8", "8cf0", "0f20c8", "0f20e8", "0f22c8", "440f20c8", "440f21c0", "440f23c0"),
)
def test_operands_that_do_not_exist(code):
    """MOV to CS, segment registers 6 and 7, control registers 1, 5 and 9, debug register 8: #UD when executed."""
    from tests.oracles.cases import new_cases, set_code
    from tests.oracles.model import Model

    cases = new_cases(1)
    set_code(cases, 0, bytes.fromhex(code))
    assert Model(2, cpl=0).run(cases)["vector"][0] == 6

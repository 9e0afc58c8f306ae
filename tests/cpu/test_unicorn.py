"""Integer instructions in 16- and 32-bit code on vmx and on Unicorn: BCD, PUSHA, BOUND, 16-bit addressing, segments."""

import tomllib
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("iced_x86")
pytest.importorskip("unicorn")

from tests.cpu.generate import batch, integer_rows  # noqa: E402
from tests.oracles.compare import report  # noqa: E402

pytestmark = pytest.mark.oracle
BUGS = tomllib.loads((Path(__file__).parent / "data" / "unicorn_bugs.toml").read_text())["bug"]


def is_known(row, code, mode):
    """Whether a case falls under a listed bug of Unicorn."""
    for bug in BUGS:
        if mode not in bug["modes"] or not row.text.startswith(tuple(bug["rows"])):
            continue
        when = bug["when"]
        if (
            not when
            or (when == "lock" and 0xF0 in code[:4])
            or (when == "register" and code[-1] >= 0xC0)
            or (when == "negative immediate" and code[-1] >= 0x80)
        ):
            return True
    return False


@pytest.mark.parametrize("mode", (0, 1), ids=("16-bit", "32-bit"))
@pytest.mark.parametrize("seed", range(2))
def test_all_rows(mode, seed):
    from tests.oracles.model import Model
    from tests.oracles.unicorn_oracle import UNMAPPED, Oracle

    cases, defined, rows = batch(integer_rows(mode), 40, seed, mode)
    known = np.array(
        [
            is_known(row, bytes(c["code"][: int(c["length"])]), mode)
            for row, c in zip(rows, cases, strict=True)
        ]
    )
    cases, defined = cases[~known], defined[~known]
    theirs = Oracle(mode).run(cases)
    inside = theirs["vector"] != UNMAPPED  # a case that leaves the two pages says nothing
    assert inside.mean() > 0.9
    ours = Model(mode, cpl=0).run(cases)
    text = report(cases[inside], ours[inside], theirs[inside], defined[inside], mode)
    assert not text, text

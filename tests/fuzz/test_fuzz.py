"""No guest crashes the process, raises in it, runs past its limit, or writes outside its own memory;
and the hypervisor changes nothing that a guest can do.

The guests run in a child process, so that a crash is a failed test. `python -m tests.fuzz.campaign --seconds 600`
runs many more of them.
"""

import pytest

from tests.fuzz.campaign import LIMIT, bad, supervise, unequal
from tests.fuzz.programs import KINDS, MODES, program

SEEDS = {"bytes": 10, "rows": 14, "mixed": 10}


@pytest.mark.parametrize("kind", KINDS)
def test_random_guests(kind):
    count = SEEDS[kind]
    finished, trouble = supervise(["--kind", kind, "--count", str(count)], 300)
    assert trouble is None, trouble
    assert [case for case in finished if bad(case)] == []
    assert unequal(finished) == []
    assert len(finished) == count * len(MODES) * 2
    assert all(case["retired"] <= LIMIT for case in finished)


def test_guests_come_far():
    """Random instructions with surroundings are worth their time: many guests reach their limit."""
    finished, trouble = supervise(
        ["--kind", "rows", "--count", "4", "--first", "1000", "--limit", "2000"], 300
    )
    assert trouble is None, trouble
    assert sum(case["retired"] >= 1000 for case in finished) >= len(finished) // 4


@pytest.mark.parametrize("kind", KINDS)
def test_seeds_name_programs(kind):
    assert program(kind, "long64", 5) == program(kind, "long64", 5)
    assert program(kind, "long64", 5) != program(kind, "long64", 6)

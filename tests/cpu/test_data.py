"""The instruction tests of data/integer.txt: compiled, through the run loop, and as plain Python.

`python -m tests.cpu.test_data` runs them as a program: the plain-Python twin is that with NUMBA_DISABLE_JIT=1.
"""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.cpu.statefile import lines, parse

LINES = lines()


@pytest.fixture(scope="module")
def models():
    from tests.oracles.model import Model

    return [Model(0, cpl=0), Model(1, cpl=0), Model(2, cpl=3)]


def wrong(line, models) -> str:
    """How vmx differs from a line; empty when it does not."""
    mode, before, expected, defined = parse(line)
    after = models[mode].run(before)
    found = []
    if after["vector"][0] != expected["vector"][0]:
        found.append(f"vector {after['vector'][0]}")
    for field in ("gpr", "rip", "memory"):
        if (after[field] != expected[field]).any():
            found.append(
                f"{field} {after[field][0].tobytes().hex() if field == 'memory' else after[field][0]}"
            )
    if (int(after["rflags"][0]) ^ int(expected["rflags"][0])) & defined:
        found.append(f"flags {int(after['rflags'][0]) & defined:x}")
    return "; ".join(found)


@pytest.mark.parametrize("line", LINES, ids=lambda line: " ".join(line.split("|")[1:3])[:60])
def test_line(line, models):
    assert not wrong(line, models), line


def test_plain_python_twin(tmp_path):
    """The same functions, not compiled, give the same results."""
    arguments = []
    try:
        import iced_x86  # noqa: F401  makes the random cases
    except ImportError:
        pass
    else:
        arrays = {}
        for mode, before, after in random_cases():
            arrays |= {f"before{mode}": before, f"after{mode}": after}
        arguments = [str(tmp_path / "cases.npz")]
        np.savez(arguments[0], **arrays)
    environment = dict(os.environ, NUMBA_DISABLE_JIT="1", PYTHONPATH=str(Path(__file__).parents[2]))
    run = subprocess.run(
        [sys.executable, "-m", "tests.cpu.test_data", *arguments],
        capture_output=True,
        text=True,
        env=environment,
        cwd=Path(__file__).parents[2],
        timeout=120,
    )
    assert run.returncode == 0, run.stdout + run.stderr[-3000:]
    assert f"{len(LINES)} lines" in run.stdout


def random_cases():
    """Cases of all modes with what compiled vmx makes of them: [(mode, before, after)]."""
    from tests.cpu.generate import batch, integer_rows
    from tests.oracles.model import Model

    for mode in range(3):
        before = batch(integer_rows(mode), 2, 77, mode)[0]
        yield mode, before, Model(mode, cpl=3 if mode == 2 else 0).run(before)


def twin_differs(path) -> int:
    """How many of the random cases in a file come out differently here: undefined flags and all must be the same."""
    from tests.oracles.model import Model

    total = 0
    with np.load(path) as file:
        for mode in range(3):
            before, expected = file[f"before{mode}"], file[f"after{mode}"]
            after = Model(mode, cpl=3 if mode == 2 else 0).run(before)
            for i in np.nonzero(after != expected)[0]:
                code = bytes(before[i]["code"][: int(before[i]["length"])])
                fields = [n for n in after.dtype.names if (after[i][n] != expected[i][n]).any()]
                print(f"mode {mode}: {code.hex()}: {', '.join(fields)} differ")
                total += 1
    return total


def main() -> int:
    from tests.oracles.model import Model
    from vmx.state.jit import JIT

    models = [Model(0, cpl=0), Model(1, cpl=0), Model(2, cpl=3)]
    bad = [(line, text) for line in LINES if (text := wrong(line, models))]
    for line, text in bad:
        print(f"{line}\n  {text}")
    print(f"{len(LINES)} lines, {len(bad)} wrong, {'compiled' if JIT else 'plain Python'}")
    differing = twin_differs(sys.argv[1]) if len(sys.argv) > 1 else 0
    return 1 if bad or differing else 0


if __name__ == "__main__":
    sys.exit(main())

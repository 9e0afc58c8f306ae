"""The recorded runs in traces/: replayed, everything but host times is the same."""

import subprocess
import sys
from pathlib import Path

import pytest

from vmx.ledger import files

ROOT = Path(__file__).parents[2]
TRACES = sorted(path.parent for path in (ROOT / "traces").glob("*/config.toml"))


@pytest.mark.skipif(not TRACES, reason="traces/ holds no recorded run")
@pytest.mark.parametrize("recorded", TRACES, ids=lambda path: path.name)
def test_a_recorded_run_replays(recorded, tmp_path):
    command = [
        sys.executable,
        "-m",
        "vmx",
        "run",
        "--config",
        recorded / files.CONFIG,
        "-o",
        tmp_path,
        "--quiet",
    ]
    run = subprocess.run(
        command, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=600
    )
    assert run.returncode == 0, run.stderr
    assert files.compare(files.load(recorded), files.load(tmp_path)) is None

"""First compile, and the start of `vmx run` with everything compiled: whole processes, from their outside."""

import os
import subprocess
import sys
import tempfile
from time import perf_counter

from bench.figures import Figure

STARTS = 5


def _vmx(*arguments: str, **environment: str) -> float:
    """Seconds that a `vmx` command takes."""
    start = perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "vmx", *arguments],
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    seconds = perf_counter() - start
    if "Traceback" in done.stderr:
        raise RuntimeError(f"vmx {' '.join(arguments)} failed:\n{done.stderr}")
    return seconds


def measure() -> tuple[list[Figure], dict]:
    """The figures, and every single start."""
    with tempfile.TemporaryDirectory(prefix="vmx-bench-") as cache:
        cold = _vmx("warmup", VMX_CACHE_DIR=cache)
    _vmx("warmup")
    starts = [_vmx("run", "--quiet", "--max-instructions", "1") for _ in range(STARTS)]
    helps = [_vmx("--help") for _ in range(STARTS)]
    figures = [
        Figure("first compile, 2 processes", cold, "s", 180),
        Figure(
            "vmx run to the first guest instruction", min(starts), "s", 2, note="whole process, best of 5"
        ),
        Figure("vmx --help", min(helps), "s", 0.5, note="best of 5"),
    ]
    return figures, {"starts_s": starts, "helps_s": helps}

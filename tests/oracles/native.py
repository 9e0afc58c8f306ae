"""The host's own processor as an oracle for user-level 64-bit instructions (see native_child)."""

import json
import platform
import subprocess
import sys
from pathlib import Path

import numpy as np

from tests.oracles.cases import DTYPE, WINDOW

AVAILABLE = sys.platform == "linux" and platform.machine() == "x86_64"
_child = None


def _start():
    global _child
    if _child is None or _child.poll() is not None:
        offsets = {name: field[1] for name, field in DTYPE.fields.items()} | {
            "size": DTYPE.itemsize,
            "window": WINDOW,
        }
        _child = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("native_child.py")), json.dumps(offsets)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
    return _child


def run(cases: np.ndarray) -> np.ndarray:
    """The cases (dtype cases.DTYPE) after their instruction. RuntimeError when the child dies."""
    child = _start()
    after = []
    for start in range(0, len(cases), 500):
        part = np.ascontiguousarray(cases[start : start + 500])
        child.stdin.write(len(part).to_bytes(8, "little") + part.tobytes())
        child.stdin.flush()
        answer = child.stdout.read(part.nbytes)
        if len(answer) != part.nbytes:
            codes = [bytes(c["code"][: c["length"]]).hex() for c in part[:5]]
            raise RuntimeError(f"the native oracle died (status {child.wait()}) in a batch from {codes}")
        after.append(np.frombuffer(answer, DTYPE))
    return np.concatenate(after) if after else cases.copy()


def stop():
    """End the child."""
    if _child is not None:
        _child.stdin.close()
        _child.wait()

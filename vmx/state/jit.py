"""How vmx compiles: one place that configures numba and offers `compiled` and `primitive`.

Every 64-bit value in compiled code is an int64 that holds the bits (two's complement). numba turns
`uint64 + 1` into int64 anyway; with one type there is nothing to mix. Add, subtract, multiply, `&`, `|`,
`^`, `~`, `<<` do not care about the sign. What does care has a name in `vmx.state.bits`:
`shr` (logical right shift), `ult`/`ule` (unsigned compare), `udiv`, `urem`, `umulh`.

With `NUMBA_DISABLE_JIT=1` the same functions run as plain Python on numpy int64 scalars: the plain-Python twin.
"""

import os
import sys
from pathlib import Path

os.environ.setdefault("NUMBA_LOOP_VECTORIZE", "0")  # no compiled loop here gains from it; compile time does
os.environ.setdefault("NUMBA_SLP_VECTORIZE", "0")

import numba  # noqa: E402
import numpy as np  # noqa: E402
from numba.core import config  # noqa: E402

JIT = not config.DISABLE_JIT

if not JIT:
    np.seterr(over="ignore")  # int64 scalars wrap, as the compiled code does


def cache_root() -> Path:
    """The per-user directory below which compiled code is kept (`VMX_CACHE_DIR`, else XDG's cache directory)."""
    chosen = os.environ.get("VMX_CACHE_DIR")
    if chosen:
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vmx" / "compiled"


def versions() -> str:
    """What compiled code depends on besides its own source."""
    import llvmlite

    python = f"py{sys.version_info[0]}.{sys.version_info[1]}"
    return f"{python}-numba{numba.__version__}-llvmlite{llvmlite.__version__}-numpy{np.__version__}"


def compiled(function=None, *, inline=False):
    """Mark a function that compiled code calls; `inline` forces LLVM to inline it (hot paths only)."""

    def mark(f):
        if not JIT:
            return f
        return numba.njit(
            f,
            error_model="numpy",
            nogil=True,
            no_cpython_wrapper=True,
            no_cfunc_wrapper=True,
            forceinline=inline,
        )

    return mark(function) if function is not None else mark

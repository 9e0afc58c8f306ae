"""Compilation units: the pieces of compiled code that are compiled, cached and linked one by one.

A unit is a C function of int64s and record pointers that returns int64. Compiled code calls a unit through a
symbol, not by inlining it, so units compile independently, in several processes, and a change recompiles
only the units that can reach it: each is cached under a hash of all the code and constants that it uses.

    @unit(Processor, "i64")
    def read_msr(cpu, index): ...

Order matters: a unit is declared after the units that it calls.
"""

import ctypes
import enum
import hashlib
import types as python_types
from pathlib import Path

import llvmlite.binding as llvm
import numba
import numpy as np
from numba import types
from numba.core import config

from vmx.state.jit import JIT, cache_root, versions
from vmx.state.struct import Struct

_registry: dict[str, "Unit"] = {}


class Unit:
    """One compiled function. In the plain-Python twin it is the Python function itself."""

    def __init__(self, function, parameters):
        self.function, self.parameters = function, parameters
        self.name = f"{function.__module__.removeprefix('vmx.')}.{function.__name__}"
        self.symbol = "vmx_" + self.name.replace(".", "_")
        self.signature = types.int64(*[p.type if isinstance(p, Struct) else types.int64 for p in parameters])
        self.external = types.ExternalFunction(self.symbol, self.signature)
        self.address = 0
        self._native = None
        self._cfunc = None
        _registry[self.name] = self

    def cache_directory(self) -> Path:
        return cache_root() / versions() / f"{self.name}-{_digest(self)}"

    def is_cached(self) -> bool:
        return (self.cache_directory() / "complete").exists()

    def compile(self):
        """Compile, or load from the cache, and make the symbol known to units declared later."""
        if self._cfunc is not None:
            return
        directory = self.cache_directory()
        directory.mkdir(parents=True, exist_ok=True)
        previous, config.CACHE_DIR = config.CACHE_DIR, str(directory)
        try:
            self._cfunc = numba.cfunc(self.signature, cache=True, nopython=True, error_model="numpy")(
                self.function
            )
        finally:
            config.CACHE_DIR = previous
        (directory / "complete").touch()
        self.address = self._cfunc.address
        llvm.add_symbol(self.symbol, self.address)
        self._native = ctypes.CFUNCTYPE(ctypes.c_int64, *[ctypes.c_int64] * len(self.parameters))(
            self.address
        )

    def __call__(self, *arguments):
        """Call from Python; records are given as views or addresses. Releases the GIL."""
        if not JIT:
            return self.function(*[self._view(p, a) for p, a in zip(self.parameters, arguments, strict=True)])
        if self._native is None:
            link(self)
        return self._native(*[getattr(a, "_address", a) for a in arguments])

    @staticmethod
    def _view(parameter, argument):
        if isinstance(parameter, Struct):
            return argument if hasattr(argument, "_address") else parameter.view(argument)
        return np.int64(argument)


def unit(*parameters):
    """Declare a unit; each parameter is a Struct or "i64"."""

    def declare(function):
        return Unit(function, parameters)

    return declare


def units() -> list[Unit]:
    """All declared units, callees before callers."""
    return list(_registry.values())


def link(wanted: Unit | None = None):
    """Compile or load units in order, up to the wanted one (all by default)."""
    for each in units():
        each.compile()
        if each is wanted:
            break


def pending() -> list[Unit]:
    """The units that the cache does not hold yet."""
    return [each for each in units() if not each.is_cached()] if JIT else []


@numba.extending.typeof_impl.register(Unit)
def _typeof_unit(value, context):
    return numba.typeof(value.external)


# --- what a unit depends on ---------------------------------------------------------------------------------

_ground = None


def _ground_digest() -> str:
    """The primitives are emitted by Python code: any change in this folder changes everything."""
    global _ground
    if _ground is None:
        digest = hashlib.sha256()
        for path in sorted(Path(__file__).parent.glob("*.py")):
            if path.name not in ("processor.py", "build.py"):
                digest.update(path.read_bytes())
        _ground = digest.hexdigest()
    return _ground


def _digest(wanted: Unit) -> str:
    digest = hashlib.sha256(_ground_digest().encode())
    seen = set()
    _add_function(digest, wanted.function, seen)
    digest.update(str(wanted.signature).encode())
    for parameter in wanted.parameters:
        _add_value(digest, parameter, seen)
    return digest.hexdigest()[:16]


def _add_function(digest, function, seen):
    if id(function) in seen:
        return
    seen.add(id(function))
    _add_code(digest, function.__code__, function.__globals__, seen)
    for cell in function.__closure__ or ():
        _add_value(digest, cell.cell_contents, seen)


def _add_code(digest, code, scope, seen):
    digest.update(code.co_code)
    digest.update(repr(code.co_names).encode())
    for constant in code.co_consts:
        if isinstance(constant, python_types.CodeType):
            _add_code(digest, constant, scope, seen)
        else:
            digest.update(repr(constant).encode())
    for name in code.co_names:
        if name in scope:
            _add_value(digest, scope[name], seen, code.co_names)


def _add_value(digest, value, seen, names=()):
    if isinstance(value, Unit):
        digest.update(f"{value.symbol}{value.signature}".encode())
    elif isinstance(value, Struct):
        digest.update(repr(_layout(value.dtype)).encode())
    elif isinstance(value, python_types.ModuleType):
        for name in names:
            if value.__name__.startswith("vmx.") and hasattr(value, name):
                _add_value(digest, getattr(value, name), seen)
    elif isinstance(value, np.ndarray):
        digest.update(value.tobytes())
    elif hasattr(value, "py_func"):
        _add_function(digest, value.py_func, seen)
    elif isinstance(value, python_types.FunctionType):
        _add_function(digest, value, seen)
    elif isinstance(value, enum.EnumMeta):
        digest.update(repr(list(value)).encode())
    elif isinstance(value, (bool, int, float, str, bytes, tuple, np.generic)):
        digest.update(repr(value).encode())


def _layout(dtype):
    return [(name, str(field[0]), field[1]) for name, field in dtype.fields.items()]

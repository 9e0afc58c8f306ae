"""Raw host memory by address: width-exact, unaligned loads and stores.

Nothing here checks an address. Guest-controlled addresses meet host memory only after the MMU has
turned them into an address inside guest RAM (`vmx.mmu`).
"""

import ctypes

import numpy as np
from llvmlite import ir

from vmx.state.bits import primitive, signed

_I64 = ir.IntType(64)


def _pointer(builder, address, width):
    return builder.inttoptr(address, ir.IntType(width).as_pointer())


def _load(width):
    kind = {8: ctypes.c_uint8, 16: ctypes.c_uint16, 32: ctypes.c_uint32, 64: ctypes.c_int64}[width]

    def python(address):
        return np.int64(kind.from_address(int(address)).value)

    def emit(builder, address):
        value = builder.load(_pointer(builder, address, width), align=1)
        return value if width == 64 else builder.zext(value, _I64)

    return python, emit


def _store(width):
    kind = {8: ctypes.c_uint8, 16: ctypes.c_uint16, 32: ctypes.c_uint32, 64: ctypes.c_uint64}[width]

    def python(address, value):
        kind.from_address(int(address)).value = int(value) & ((1 << width) - 1)
        return np.int64(0)

    def emit(builder, address, value):
        narrow = value if width == 64 else builder.trunc(value, ir.IntType(width))
        builder.store(narrow, _pointer(builder, address, width), align=1)
        return ir.Constant(_I64, 0)

    return python, emit


@primitive(1)
def load8():
    """The byte at a host address, zero-extended."""
    return _load(8)


@primitive(1)
def load16():
    """The little-endian word at a host address, zero-extended."""
    return _load(16)


@primitive(1)
def load32():
    """The little-endian doubleword at a host address, zero-extended."""
    return _load(32)


@primitive(1)
def load64():
    """The little-endian quadword at a host address."""
    return _load(64)


@primitive(2)
def store8():
    """Store bits 7:0 at a host address."""
    return _store(8)


@primitive(2)
def store16():
    """Store bits 15:0 at a host address."""
    return _store(16)


@primitive(2)
def store32():
    """Store bits 31:0 at a host address."""
    return _store(32)


@primitive(2)
def store64():
    """Store a quadword at a host address."""
    return _store(64)


@primitive(3)
def copy_bytes():
    """Copy c bytes from host address b to host address a; the ranges may overlap."""

    def python(target, source, count):
        ctypes.memmove(int(target), int(source), int(count))
        return np.int64(0)

    def emit(builder, target, source, count):
        byte = ir.IntType(8).as_pointer()
        move = builder.module.declare_intrinsic("llvm.memmove", [byte, byte, _I64])
        arguments = [
            builder.inttoptr(target, byte),
            builder.inttoptr(source, byte),
            count,
            ir.Constant(ir.IntType(1), 0),
        ]
        builder.call(move, arguments)
        return ir.Constant(_I64, 0)

    return python, emit


@primitive(2)
def call1():
    """Call the host function at address a (C convention, one int64 argument, int64 result)."""
    kind = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64)

    def python(address, argument):
        return np.int64(kind(int(address))(int(argument)))

    def emit(builder, address, argument):
        function = ir.FunctionType(_I64, [_I64]).as_pointer()
        return builder.call(builder.inttoptr(address, function), [argument])

    return python, emit


def host_address(array: np.ndarray) -> int:
    """The host address of a numpy array's first byte, as the int64 that compiled code takes."""
    return signed(array.ctypes.data)

"""Arithmetic on 64-bit values held in int64: what depends on the sign has a name here.

Each primitive is an LLVM instruction in compiled code and a few lines of Python in the twin.
"""

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from vmx.state.jit import JIT

MASK64 = 0xFFFF_FFFF_FFFF_FFFF
MIN64 = -(1 << 63)  # bit 63 alone
_I64 = ir.IntType(64)


def signed(value: int) -> int:
    """The int64 that holds the 64 bits of a Python integer."""
    value &= MASK64
    return value - (1 << 64) if value >> 63 else value


def unsigned(value: int) -> int:
    """The unsigned reading of an int64."""
    return int(value) & MASK64


def primitive(arity):
    """Turn a plain-Python definition plus an LLVM emitter into one callable for both worlds.

    Usage: `@primitive(2)` on `def name(): return python_function, emit(builder, *arguments)`.
    """

    def build(define):
        python, emit = define()
        if not JIT:
            python.__name__ = define.__name__
            return python
        names = ["a", "b", "c", "d"][:arity]
        signature = types.int64(*[types.int64] * arity)

        def implementation(typingctx, *args):
            def codegen(context, builder, sig, values):
                values = [
                    context.cast(builder, v, t, types.int64) for v, t in zip(values, sig.args, strict=True)
                ]
                return emit(builder, *values)

            return signature, codegen

        parameters = ", ".join(["typingctx", *names])
        source = f"def {define.__name__}({parameters}): return implementation({parameters})"
        scope = {"implementation": implementation}
        exec(source, scope)  # intrinsic reads the argument names from the signature
        function = scope[define.__name__]
        function.__module__ = define.__module__
        return intrinsic(function)

    return build


def _wrap(value):
    return np.int64(signed(value))


@primitive(2)
def shr():
    """Logical right shift; the count is below 64."""
    return (lambda a, n: _wrap(unsigned(a) >> int(n))), (lambda b, a, n: b.lshr(a, n))


@primitive(2)
def ult():
    """1 when a < b unsigned, else 0."""
    return (lambda a, b: np.int64(unsigned(a) < unsigned(b))), (
        lambda b, x, y: b.zext(b.icmp_unsigned("<", x, y), _I64)
    )


@primitive(2)
def ule():
    """1 when a <= b unsigned, else 0."""
    return (lambda a, b: np.int64(unsigned(a) <= unsigned(b))), (
        lambda b, x, y: b.zext(b.icmp_unsigned("<=", x, y), _I64)
    )


@primitive(2)
def udiv():
    """Unsigned quotient; the divisor is not zero."""
    return (lambda a, b: _wrap(unsigned(a) // unsigned(b))), (lambda b, x, y: b.udiv(x, y))


@primitive(2)
def urem():
    """Unsigned remainder; the divisor is not zero."""
    return (lambda a, b: _wrap(unsigned(a) % unsigned(b))), (lambda b, x, y: b.urem(x, y))


def _high(builder, x, y, extend):
    wide = ir.IntType(128)
    product = builder.mul(extend(x, wide), extend(y, wide))
    return builder.trunc(builder.lshr(product, ir.Constant(wide, 64)), _I64)


@primitive(2)
def umulh():
    """Bits 127:64 of the unsigned product."""
    return (lambda a, b: _wrap(unsigned(a) * unsigned(b) >> 64)), (lambda b, x, y: _high(b, x, y, b.zext))


@primitive(2)
def smulh():
    """Bits 127:64 of the signed product."""
    return (lambda a, b: _wrap(int(a) * int(b) >> 64)), (lambda b, x, y: _high(b, x, y, b.sext))


def _sign_extend(width):
    narrow = ir.IntType(width)
    half, full = 1 << (width - 1), 1 << width

    def python(a):
        value = int(a) & (full - 1)
        return np.int64(value - full if value & half else value)

    return python, lambda b, a: b.sext(b.trunc(a, narrow), _I64)


@primitive(1)
def sext8():
    """Sign-extend bits 7:0."""
    return _sign_extend(8)


@primitive(1)
def sext16():
    """Sign-extend bits 15:0."""
    return _sign_extend(16)


@primitive(1)
def sext32():
    """Sign-extend bits 31:0."""
    return _sign_extend(32)


@primitive(1)
def popcount():
    """Number of one bits."""
    return (lambda a: np.int64(unsigned(a).bit_count())), (lambda b, a: b.ctpop(a))


_FALSE = ir.Constant(ir.IntType(1), 0)


@primitive(1)
def trailing_zeros():
    """Index of the lowest one bit; 64 for zero."""
    return (lambda a: np.int64(64 if a == 0 else (unsigned(a) & -unsigned(a)).bit_length() - 1)), (
        lambda b, a: b.cttz(a, _FALSE)
    )


@primitive(1)
def leading_zeros():
    """Number of zero bits above the highest one bit; 64 for zero."""
    return (lambda a: np.int64(64 - unsigned(a).bit_length())), (lambda b, a: b.ctlz(a, _FALSE))


@primitive(1)
def byte_swap():
    """Reverse the eight bytes."""
    return (lambda a: _wrap(int.from_bytes(unsigned(a).to_bytes(8, "little"), "big"))), (
        lambda b, a: b.bswap(a)
    )

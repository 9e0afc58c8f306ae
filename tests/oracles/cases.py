"""One instruction with a state before it, and the state after: what oracles and vmx exchange, as numpy records."""

import numpy as np

from vmx.state.struct import struct

DATA, CODE = 0x10_0000, 0x12_0000  # pages that exist; all around them is unmapped
WINDOW = (
    1024  # bytes at the end of the data page that a case fills and compares; the rest of the page is zero
)
WINDOW_AT = DATA + 4096 - WINDOW
NO_VECTOR = -1
REGISTERS = "rax rcx rdx rbx rsp rbp rsi rdi r8 r9 r10 r11 r12 r13 r14 r15".split()

CASE = struct(
    "OracleCase",
    [
        ("code", "u1", (16,)),  # the instruction; INT3 follows
        ("length", "u8"),
        ("gpr", "u8", (16,)),
        ("rip", "u8"),
        ("rflags", "u8"),
        ("vector", "i8"),  # after: exception, or NO_VECTOR
        ("error", "u8"),
        ("address", "u8"),  # after a page fault: CR2
        ("memory", "u1", (WINDOW,)),
    ],
)
DTYPE = CASE.dtype


def new_cases(count: int) -> np.ndarray:
    """`count` zeroed cases at the start of the code page, RSP inside the window."""
    cases = np.zeros(count, DTYPE)
    cases["rip"] = CODE
    cases["rflags"] = 0x202
    cases["vector"] = NO_VECTOR
    cases["gpr"][:, 4] = WINDOW_AT + WINDOW // 2
    return cases


def set_code(cases: np.ndarray, index, code: bytes) -> None:
    """Give one case, or a slice of them, its instruction."""
    padded = np.frombuffer(code.ljust(16, b"\xcc"), np.uint8)
    cases["code"][index] = padded
    cases["length"][index] = len(code)

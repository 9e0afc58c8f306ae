"""One instruction with a state before it, and the state after: what oracles and vmx exchange, as numpy records."""

from dataclasses import dataclass

import numpy as np

from vmx.state.struct import struct

WINDOW = (
    1024  # bytes at the end of the data page that a case fills and compares; the rest of the page is zero
)
NO_VECTOR = -1
REGISTERS = "rax rcx rdx rbx rsp rbp rsi rdi r8 r9 r10 r11 r12 r13 r14 r15".split()


@dataclass(frozen=True)
class Layout:
    """The two pages that exist, all around them is unmapped; and the bases of ES CS SS DS FS GS."""

    data: int
    code: int
    bases: tuple[int, ...] = (0,) * 6

    @property
    def window(self) -> int:
        """The linear address of the part of the data page that a case fills."""
        return self.data + 4096 - WINDOW

    @property
    def rip(self) -> int:
        """Where instructions are placed."""
        return self.code + 0x800


LAYOUTS = (
    Layout(0x6000, 0x8000, (0x1230, 0, 0x1000, 0x2340, 0x800, 0x450)),  # real mode: what 16 bits reach
    Layout(0x100000, 0x120000),
    Layout(0x100000, 0x120000),
)

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


def new_cases(count: int, mode: int = 2) -> np.ndarray:
    """`count` zeroed cases in the code page, RSP inside the window."""
    layout = LAYOUTS[mode]
    cases = np.zeros(count, DTYPE)
    cases["rip"] = layout.rip
    cases["rflags"] = 0x202
    cases["vector"] = NO_VECTOR
    cases["gpr"][:, 4] = layout.window + WINDOW // 2 - layout.bases[2]
    return cases


def set_code(cases: np.ndarray, index, code: bytes) -> None:
    """Give one case, or a slice of them, its instruction."""
    padded = np.frombuffer(code.ljust(16, b"\xcc"), np.uint8)
    cases["code"][index] = padded
    cases["length"][index] = len(code)

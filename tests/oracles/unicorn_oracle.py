"""Unicorn (a QEMU core) as an oracle for 16- and 32-bit code."""

import numpy as np
import unicorn
from unicorn import x86_const as x86

from tests.oracles.cases import LAYOUTS, WINDOW

UNMAPPED = 100  # vector of a case that left the two pages: there is nothing to compare
_GPR = [getattr(x86, f"UC_X86_REG_{n}") for n in "EAX ECX EDX EBX ESP EBP ESI EDI".split()]
_SEGMENTS = [getattr(x86, f"UC_X86_REG_{n}") for n in "ES CS SS DS FS GS".split()]


PREFIXES = b"\xf0\xf2\xf3\x66\x67\x26\x2e\x36\x3e\x64\x65"


def is_repeated(code: bytes) -> bool:
    """Whether a REP or REPNE prefix precedes the opcode."""
    prefixes = code[: len(code) - len(code.lstrip(PREFIXES))]
    return b"\xf2" in prefixes or b"\xf3" in prefixes


class Oracle:
    """One Unicorn processor in real mode (0) or flat 32-bit mode (1)."""

    def __init__(self, mode: int):
        self.mode, self.layout = mode, LAYOUTS[mode]
        self._fresh()

    def _fresh(self):
        """A new processor: after an exception the old one takes the next for a double fault."""
        mode = self.mode
        self.uc = unicorn.Uc(unicorn.UC_ARCH_X86, unicorn.UC_MODE_16 if mode == 0 else unicorn.UC_MODE_32)
        for page in (self.layout.data, self.layout.code):
            self.uc.mem_map(page, 4096)
        self.uc.mem_write(self.layout.code, b"\xcc" * 4096)
        if mode == 0:
            for register, base in zip(_SEGMENTS, self.layout.bases, strict=True):
                self.uc.reg_write(register, base >> 4)
        self.uc.hook_add(unicorn.UC_HOOK_INTR, self._interrupt)
        self.vector = -1

    def _interrupt(self, uc, number, _):
        if self.vector == -1:
            self.vector = number
        uc.emu_stop()

    def _run(self, case):
        uc, layout = self.uc, self.layout
        uc.mem_write(layout.data, b"\0" * (4096 - WINDOW) + case["memory"].tobytes())
        uc.mem_write(layout.rip, case["code"].tobytes())
        uc.ctl_remove_cache(layout.rip, layout.rip + 16)
        for register, number in zip(_GPR, case["gpr"], strict=False):
            uc.reg_write(register, int(number))
        uc.reg_write(x86.UC_X86_REG_EFLAGS, int(case["rflags"]))
        self.vector = -1
        repeated = is_repeated(case["code"].tobytes())
        try:
            if repeated:
                uc.emu_start(layout.rip, layout.rip + int(case["length"]))
            else:
                uc.emu_start(layout.rip, 0, count=1)
        except unicorn.UcError as error:
            if self.vector == -1:
                self.vector = 6 if error.errno == unicorn.UC_ERR_INSN_INVALID else UNMAPPED
        case["gpr"][:8] = [uc.reg_read(r) for r in _GPR]
        case["rflags"] = uc.reg_read(x86.UC_X86_REG_EFLAGS)
        case["rip"] = uc.reg_read(x86.UC_X86_REG_EIP)
        case["vector"] = self.vector
        case["memory"] = np.frombuffer(uc.mem_read(layout.window, WINDOW), np.uint8)
        if self.vector != -1:
            self._fresh()

    def run(self, cases: np.ndarray) -> np.ndarray:
        """The cases after their instruction."""
        after = cases.copy()
        for case in after:
            self._run(case)
        return after

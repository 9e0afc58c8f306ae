"""The same bytes executed natively with the same registers: a frame loads and saves everything around them.

Only masked exceptions and whitelisted instructions come here, so no signal can. RSP stays the host's.
"""

import ctypes

import numpy as np

from vmx.cpu.native import CodeMemory

GPRS, FLAGS, SIZE = 512, 640, 704  # offsets in the state: FXSAVE64 image, 16 registers, status flags


def _mov(store, register, base, offset):
    """MOV register, [base + offset] or the reverse, base being RAX or RDI."""
    rex = 0x48 | (register >= 8) << 2
    return bytes((rex, 0x89 if store else 0x8B, 0x80 | (register & 7) << 3 | base)) + offset.to_bytes(
        4, "little"
    )


def _frame(instruction: bytes) -> bytes:
    others = [r for r in range(16) if r not in (4, 7)]
    code = bytes.fromhex("53 55 41 54 41 55 41 56 41 57 57")  # PUSH RBX RBP R12..R15 RDI
    code += bytes.fromhex("480FAE0F") + bytes.fromhex("FFB7") + FLAGS.to_bytes(4, "little") + b"\x9d"
    code += b"".join(_mov(False, r, 7, GPRS + 8 * r) for r in others) + _mov(False, 7, 7, GPRS + 56)
    code += instruction
    code += bytes.fromhex("9C 50 488B442410 8F80") + GPRS.to_bytes(
        4, "little"
    )  # PUSHF, PUSH RAX, POP [state]
    code += bytes.fromhex("8F80") + FLAGS.to_bytes(4, "little")
    code += b"".join(_mov(True, r, 0, GPRS + 8 * r) for r in range(1, 16) if r != 4)
    code += bytes.fromhex(
        "480FAE00 DBE3 68801F0000 0FAE1424 58 5F"
    )  # FXSAVE64, FNINIT, LDMXCSR 0x1F80, POP RDI
    return code + bytes.fromhex("415F 415E 415D 415C 5D 5B C3")


class NativeOracle:
    """Runs single instructions; `run` changes the state array in place."""

    def __init__(self):
        self.code = CodeMemory(4096)
        self.call = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(self.code.address)
        raw = np.zeros(SIZE + 64, np.uint8)
        start = -raw.ctypes.data % 64
        self.state = raw[start : start + SIZE]
        self.fx = self.state[:512]
        self.gpr = self.state[GPRS : GPRS + 128].view(np.uint64)
        self.flags = self.state[FLAGS : FLAGS + 8].view(np.uint64)

    def run(self, instruction: bytes) -> None:
        frame = _frame(instruction)
        self.code.writable[: len(frame)] = frame
        self.call(self.state.ctypes.data)

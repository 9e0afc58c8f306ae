"""Native stubs: x87, MMX and SSE to SSE4.2 by the host's own instructions, on copies of the guest's state.

A stub is a C function of one pointer: to a `BLOCK` that holds copies of the operands. It loads them into
fixed host registers (ModRM.reg operand: xmm0, mm0 or rax; ModRM.rm operand: xmm1, mm1 or rcx), executes one
fixed instruction, stores the destination and restores the host's control words. Implicit operands and further
results lie where an x87 instruction has its image. All stubs are generated at
start-up from the instruction rows, one for each value of an imm8 operand, and then the writable mapping is
closed: a guest chooses which stub runs, never what is in it.

The code lies in one memfd with two mappings, so no mapping is ever writable and executable.
"""

import functools
import mmap
import os
import platform
import sys

import numpy as np

from vmx.isa.features import NATIVE
from vmx.isa.vector_rows import BYTES
from vmx.isa.vector_rows import ROWS as ROWS_V1
from vmx.isa.vector_v2_rows import ROWS_V2
from vmx.isa.x87_rows import MEMORY_FORMS, REGISTER_FORMS
from vmx.state.struct import struct

ROWS = ROWS_V1 + ROWS_V2  # in the order of the instruction table

BLOCK = struct(
    "NativeBlock",
    [
        ("reg", "u8", (2,)),  # ModRM.reg operand
        ("rm", "u8", (2,)),  # ModRM.rm operand, or what a memory operand holds
        ("mxcsr", "u4"),  # to run with
        ("mxcsr_out", "u4"),
        ("host_mxcsr", "u4"),
        ("host_control", "u2"),  # x87 control word
        ("flags", "u8"),  # status flags, in and out
        ("padding", "u8"),
        ("x87", "u1", (512,)),  # an FXSAVE64 image at a multiple of 16
    ],
)
BLOCK_ALIGNMENT = 64

VECTOR_ENTRY = struct(
    "VectorEntry",
    [
        ("stub", "u8"),  # host address; 0: compiled code does it
        ("wide_stub", "u8"),  # with REX.W
        ("stride", "u4"),  # bytes from the stub of one imm8 value to the next; 0: no imm8
        ("action", "u1"),
        ("reg_kind", "u1"),  # REGISTER_KINDS
        ("rm_kind", "u1"),
        ("size", "u1"),  # bytes of the memory operand, or that a move copies
        ("wide_size", "u1"),  # with REX.W
        ("writes_rm", "u1"),  # the destination is the ModRM.rm operand
        ("aligned", "u1"),  # #GP on a misaligned memory operand
        ("numeric", "u1"),
        ("writes_flags", "u1"),
        ("mmx", "u1"),
        ("os_support", "u1"),
        ("source_offset", "u1"),
        ("target_offset", "u1"),
        ("zeroes", "u1"),
        ("implicit", "u1"),  # XMM0 is a further operand
        ("memory_immediate", "u1"),  # bits of imm8 that count with a memory operand
    ],
)

NO_OPERAND, XMM, MM, GENERAL = range(4)  # kinds of register operands
ACTIONS = (
    "stub", "move", "and", "andn", "or", "xor", "masked store", "ldmxcsr", "stmxcsr", "clflush", "fence",
    "prefetch", "emms", "extract", "string",
)  # fmt: skip

# the table: addresses of x87 register forms, then memory forms, then one VECTOR_ENTRY for each row
X87_REGISTER_TABLE = 0
X87_MEMORY_TABLE = 8 * 512
VECTOR_TABLE = X87_MEMORY_TABLE + 8 * 64
TABLE_BYTES = VECTOR_TABLE + len(ROWS) * VECTOR_ENTRY.size

_REG, _RM, _FLAGS, _X87 = (BLOCK.offset(name) for name in ("reg", "rm", "flags", "x87"))
# of vector instructions: XMM0, or RAX and RDX, in; RCX and XMM0 out
_IMPLICIT, _RAX_IN, _RDX_IN, _RCX_OUT, _XMM0_OUT = _X87, _X87, _X87 + 8, _X87 + 16, _X87 + 32
_MXCSR, _MXCSR_OUT, _HOST_MXCSR, _HOST_CONTROL = (
    BLOCK.offset(name) for name in ("mxcsr", "mxcsr_out", "host_mxcsr", "host_control")
)


def _at_rdi(opcode: str, reg: int, offset: int) -> bytes:
    """An instruction with the memory operand [rdi + offset]."""
    return bytes.fromhex(opcode) + bytes((0x47 | reg << 3, offset))


STORE_MXCSR = functools.partial(_at_rdi, "0FAE", 3)
LOAD_MXCSR = functools.partial(_at_rdi, "0FAE", 2)
PUSH_FLAGS, POP_FLAGS, RETURN = b"\x9c", b"\x9d", b"\xc3"
_LOAD = {XMM: "0F10", MM: "0F6F", GENERAL: "488B"}  # MOVUPS, MOVQ, MOV
_STORE = {XMM: "0F11", MM: "0F7F", GENERAL: "4889"}


def register_kind(operand: str) -> int:
    """The kind of register that an operand in opcode-map notation names."""
    return {"V": XMM, "W": XMM, "U": XMM, "P": MM, "Q": MM, "N": MM, "G": GENERAL, "E": GENERAL}.get(
        operand[:1], NO_OPERAND
    )


def _vector_stub(row, wide: bool) -> tuple[bytes, int]:
    """The code of one row, and the position of its imm8 (-1: none)."""
    reg, rm = register_kind(row.reg_operand), register_kind(row.rm_operand)
    writes_rm = bool(row.operands) and row.operands[0] == row.rm_operand
    code = b""
    if row.numeric:
        code += STORE_MXCSR(_HOST_MXCSR) + LOAD_MXCSR(_MXCSR)
    number = 0
    if row.implicit:  # XMM0 is the mask
        number = 2
        code += _at_rdi(_LOAD[XMM], 0, _IMPLICIT)
    if row.action == "string":
        code += _at_rdi(_LOAD[GENERAL], 0, _RAX_IN) + _at_rdi(_LOAD[GENERAL], 2, _RDX_IN)
    if reg:
        code += _at_rdi(_LOAD[reg], number, _REG)
    code += _at_rdi(_LOAD[rm], 1, _RM)
    code += bytes.fromhex(row.prefix) + (b"\x48" if wide else b"") + row.code
    code += bytes((0xC1 | (row.reg or number) << 3,))
    position = -1
    if row.imm8:
        position = len(code)
        code += b"\0"
    if row.action == "string":
        code += PUSH_FLAGS + _at_rdi("8F", 0, _FLAGS)
        code += _at_rdi(_STORE[GENERAL], 1, _RCX_OUT) + _at_rdi(_STORE[XMM], 0, _XMM0_OUT)
    elif row.writes_flags:
        code += PUSH_FLAGS + _at_rdi("8F", 0, _FLAGS)
    elif writes_rm:
        code += _at_rdi(_STORE[rm], 1, _RM)
    else:
        code += _at_rdi(_STORE[reg], number, _REG)
    if row.numeric:
        code += STORE_MXCSR(_MXCSR_OUT) + LOAD_MXCSR(_HOST_MXCSR)
    if row.mmx:
        code += b"\x0f\x77"  # EMMS: the host's code expects an empty x87 stack
    return code + RETURN, position


def _x87_stub(instruction: bytes) -> bytes:
    """Run one x87 instruction on the FXSAVE64 image in the block. Nothing after it looks at exceptions."""
    return (
        _at_rdi("D9", 7, _HOST_CONTROL)  # FNSTCW
        + STORE_MXCSR(_HOST_MXCSR)
        + _at_rdi("480FAE", 1, _X87)  # FXRSTOR64
        + _at_rdi("FF", 6, _FLAGS)  # PUSH
        + POP_FLAGS
        + instruction
        + PUSH_FLAGS
        + _at_rdi("8F", 0, _FLAGS)  # POP
        + _at_rdi("480FAE", 0, _X87)  # FXSAVE64
        + b"\xdb\xe3"  # FNINIT
        + _at_rdi("D9", 5, _HOST_CONTROL)  # FLDCW
        + LOAD_MXCSR(_HOST_MXCSR)
        + RETURN
    )


class CodeMemory:
    """Host code: written through one mapping, executed through another. `address` is the executable one's."""

    def __init__(self, size: int):
        size = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
        descriptor = os.memfd_create("vmx-code", os.MFD_CLOEXEC)
        try:
            os.ftruncate(descriptor, size)
            self.writable = mmap.mmap(descriptor, size, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
            self._executable = mmap.mmap(descriptor, size, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_EXEC)
        finally:
            os.close(descriptor)
        self.address = np.frombuffer(self._executable, np.uint8).ctypes.data

    def seal(self) -> None:
        """No more code will be written."""
        self.writable.close()


class _Emitter:
    """Collects stubs, each at a multiple of 16 bytes; addresses are offsets until the code is placed."""

    def __init__(self):
        self._parts, self.size = [], 0

    def add(self, code: bytes, immediate: int = -1) -> tuple[int, int]:
        """Append a stub, or 256 copies of it with each value of the immediate. Returns (offset, stride)."""
        offset, stride = self.size, -(-len(code) // 16) * 16
        padded = code.ljust(stride, b"\xcc")
        if immediate >= 0:
            copies = np.tile(np.frombuffer(padded, np.uint8), (256, 1))
            copies[:, immediate] = np.arange(256)
            padded = copies.tobytes()
        self._parts.append(padded)
        self.size += len(padded)
        return offset, stride if immediate >= 0 else 0

    def code(self) -> bytes:
        return b"".join(self._parts)


class NativeStubs:
    """The stubs and their table; `address` is the table's, for `cpu.host_vector_stubs`."""

    def __init__(self):
        emitter = _Emitter()
        register = self._x87(emitter, REGISTER_FORMS, lambda op, low: bytes((0xD8 | op, 0xC0 | low)), 64)
        memory = self._x87(emitter, MEMORY_FORMS, lambda op, reg: _at_rdi(f"{0xD8 | op:02X}", reg, _RM), 8)
        entries = np.zeros(len(ROWS), VECTOR_ENTRY.dtype)
        for entry, row in zip(entries, ROWS, strict=True):
            _fill_entry(entry, row, emitter)
        self.code = CodeMemory(emitter.size)
        self.code.writable[: emitter.size] = emitter.code()
        self.code.seal()
        for addresses in (register, memory, entries["stub"], entries["wide_stub"]):
            addresses[...] = np.where(addresses == _ABSENT, 0, addresses + np.uint64(self.code.address))
        self._table = np.concatenate([part.view(np.uint8) for part in (register, memory, entries)])
        self.address = self._table.ctypes.data

    @staticmethod
    def _x87(emitter, forms, encode, per_opcode):
        offsets = np.full(8 * per_opcode, _ABSENT, np.uint64)
        for (opcode, low), form in forms.items():
            if form.native:
                offsets[(opcode & 7) * per_opcode + low] = emitter.add(_x87_stub(encode(opcode & 7, low)))[0]
        return offsets


_ABSENT = np.uint64(0xFFFF_FFFF_FFFF_FFFF)


def _fill_entry(entry, row, emitter) -> None:
    entry["stub"] = entry["wide_stub"] = _ABSENT
    if row.action in ("stub", "extract", "string"):
        entry["stub"], entry["stride"] = emitter.add(*_vector_stub(row, False))
        wide = row.depends_on_rex_w
        entry["wide_stub"] = emitter.add(*_vector_stub(row, True))[0] if wide else entry["stub"]
    entry["action"] = ACTIONS.index(row.action)
    entry["reg_kind"] = register_kind(row.reg_operand)
    entry["rm_kind"] = register_kind(row.rm_operand)
    size = BYTES[row.rm_operand[1:]] if row.action == "move" else row.memory_size
    entry["size"] = entry["wide_size"] = size
    if row.rm_operand.endswith("y"):
        entry["wide_size"] = 8
    entry["writes_rm"] = bool(row.operands) and row.operands[0] == row.rm_operand
    entry["aligned"] = row.memory_size == 16 and not row.unaligned
    entry["os_support"] = row.needs_os_support
    entry["implicit"] = row.implicit == "xmm0"
    for name in (
        "numeric",
        "writes_flags",
        "mmx",
        "source_offset",
        "target_offset",
        "zeroes",
        "memory_immediate",
    ):
        entry[name] = getattr(row, name)


def host_supported() -> bool:
    """Whether this host can run the stubs at all: Linux on x86-64, in a 64-bit process."""
    return sys.platform == "linux" and platform.machine() in ("x86_64", "AMD64") and sys.maxsize > 1 << 32


def host_lacks(features) -> list[str]:
    """Those of the features (see vmx.isa.features) that the host's instructions are needed for, and that it lacks."""
    wanted = sorted(set(features) & set(NATIVE))
    if not wanted:
        return []
    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="replace") as file:
            flags = next((line for line in file if line.startswith("flags")), "").split()
    except OSError:
        flags = []
    return [name for name in wanted if not available() or NATIVE[name] not in flags]


@functools.cache
def _stubs() -> NativeStubs | None:
    if not host_supported():
        return None
    try:
        return NativeStubs()
    except OSError:  # no memfd, or a policy against executable mappings
        return None


def available() -> bool:
    """Whether vector and x87 instructions can be executed here."""
    return _stubs() is not None


def stub_table() -> int:
    """The address for `cpu.host_vector_stubs`, valid as long as the process; 0 where there are no stubs."""
    stubs = _stubs()
    return stubs.address if stubs else 0

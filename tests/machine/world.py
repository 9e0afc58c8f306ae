"""Whole machines for tests: bundled guests, and small flat guests written as bytes.

The fragments below mean the same in 16-, 32- and 64-bit code. Numbers in tests are guest-physical addresses,
which is what flat guests see in every mode.
"""

import struct
from pathlib import Path

from vmx import BufferConsole, Machine, MachineConfig

BOTH = (True, False)  # bare, and under the hypervisor
MODES = ("real", "protected32", "long64")
BASE = 0x1_0000  # where flat guests are loaded, clear of what the loader puts into low memory
CODE_SELECTOR = 0x10  # the loader's GDT

HLT, CLI, STI, IRET, NOP, UD2 = b"\xf4", b"\xfa", b"\xfb", b"\xcf", b"\x90", b"\x0f\x0b"
OUT_DX_AL, OUT_DX_AX = b"\xee", b"\x66\xef"  # OUT DX, AX in 32- and 64-bit code
TO_ITSELF = b"\xeb\xfe"


def out(port: int, value: int) -> bytes:
    """MOV AL, value; OUT port, AL."""
    return bytes([0xB0, value, 0xE6, port])


def leave(value: int) -> bytes:
    """Through isa-debug-exit: the exit status is value << 1 | 1."""
    return out(0xF4, value)


def leave_with_al() -> bytes:
    return b"\xe6\xf4"


def mov_dx(port: int) -> bytes:
    """In 32- and 64-bit code."""
    return b"\x66\xba" + struct.pack("<H", port)


def at(address: int, parts: dict[int, bytes], size: int | None = None) -> bytes:
    """An image for `address` from parts at their addresses, the rest NOPs."""
    end = max(start + len(part) for start, part in parts.items())
    image = bytearray(NOP * (size or end - address))
    for start, part in parts.items():
        image[start - address : start - address + len(part)] = part
    return bytes(image)


def gate32(handler: int) -> bytes:
    """A 32-bit interrupt gate."""
    return struct.pack("<HHHH", handler & 0xFFFF, CODE_SELECTOR, 0x8E00, handler >> 16)


def gate64(handler: int, ist: int = 0) -> bytes:
    """A 64-bit interrupt gate for a handler below 4 GiB."""
    low = bytearray(gate32(handler))
    low[4] = ist
    return bytes(low) + bytes(8)


def flat_machine(directory: Path, code: bytes, **options) -> Machine:
    """A machine with `code` at BASE. Options are MachineConfig's; `console` is the console."""
    kernel = directory / "kernel.bin"
    kernel.write_bytes(code)
    console = options.pop("console", None) or BufferConsole()
    values = {"kernel": str(kernel), "load_address": BASE, "load_mode": "protected32", "memory": 4 << 20}
    return Machine(MachineConfig(**{**values, **options}), console=console)


def run_flat(directory: Path, code: bytes, *, limit: int = 8_000_000, **options):
    """Run a flat guest. Returns (machine, RunResult)."""
    machine = flat_machine(directory, code, **options)
    return machine, machine.run(max_instructions=limit, timeout_s=60)


def run_bundled(name: str, *, bare: bool = False, append: str = "", console=None, **options):
    """Run a bundled guest to its end. Returns (machine, RunResult)."""
    values = {"guest": name, "bare": bare, "append": append, "memory": 64 << 20, **options}
    machine = Machine(MachineConfig(**values), console=console or BufferConsole())
    return machine, machine.run(timeout_s=120)

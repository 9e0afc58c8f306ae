"""Machines that run the guests of rows.py: the IDT, what is kept of a run, and how it is compared."""

import json
import struct
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from tests.exits.rows import CODE, HANDLERS, IDT, IDT_POINTER, LOG, SCRATCH
from vmx import BufferConsole, Machine, MachineConfig

CODE_SELECTOR = 0x10
NOT_PRESENT_VECTOR = 0x50
REGISTERS = "rax rbx rcx rdx rsi rdi rbp rsp r8 r9 r10 r11 r12 r13 r14 r15".split()
SYSTEM = "cr0 cr2 cr3 cr4 efer xcr0 cs ss ds es fs gs tr ldtr".split()


@cache
def _code() -> dict:
    return json.loads((Path(__file__).parent / "code.json").read_text())


def code_of(name: str) -> dict:
    """The assembled guest of a name: code, exit, length, finish."""
    return _code()["guests"][name]


def _gate(vector: int) -> bytes:
    handler = HANDLERS + 16 * vector
    access = 0x0E if vector == NOT_PRESENT_VECTOR else 0x8E
    return struct.pack("<HHBBHII", handler & 0xFFFF, CODE_SELECTOR, 0, access, handler >> 16 & 0xFFFF, 0, 0)


def machine(name: str, tmp_path, **config) -> Machine:
    """A machine about to run a guest of rows.py. Extra keywords go to MachineConfig."""
    path = tmp_path / "guest.bin"
    path.write_bytes(bytes.fromhex(code_of(name)["code"]))
    built = Machine(
        MachineConfig(kernel=str(path), load_address=CODE, load_mode="long64", memory="4M", **config),
        console=BufferConsole(),
    )
    built.memory.write(HANDLERS, bytes.fromhex(_code()["handlers"]))
    built.memory.write(IDT, b"".join(_gate(vector) for vector in range(256)))
    built.memory.write(IDT_POINTER, struct.pack("<HQ", 0xFFF, IDT))
    _mask_timer(built, config.get("controls", {}).get("INTERRUPT_WINDOW_EXITING", False))
    return built


def _mask_timer(built: Machine, window: bool) -> None:
    """Only what a test arranges interrupts: at power-on the timer's line is high and the PIC open."""
    for port in (0x21, 0xA1):
        built.platform.ports.write(port, 1, 0xFF)
    built.vmcs().want_interrupt_window(window)
    built.processors[0].view.primary_controls = built.vmcs().read("primary_controls")


@dataclass
class Outcome:
    """What a guest left behind."""

    stop: str
    message: str
    registers: dict[str, int]
    dr: list[int]
    handled: list[tuple[int, ...]]  # vector, error code, RIP, RFLAGS, CR2 of every event that a handler saw
    memory: bytes
    exits: np.ndarray  # all but the exit of the final OUT


def run(built: Machine, name: str) -> Outcome:
    """Run to the end of the guest (at most a million instructions)."""
    result = built.run(max_instructions=1_000_000, timeout_s=60)
    registers = built.vmcs().registers
    size = int.from_bytes(built.memory.read(LOG, 8), "little")
    log = built.memory.read(LOG + 8, size)
    records = built.ledger.records
    final = (records["reason"] == 30) & (records["guest_rip"] == CODE + code_of(name)["finish"])
    return Outcome(
        result.stop,
        result.message,
        {each: registers[each] for each in REGISTERS + SYSTEM},
        [int(value) for value in built.processors[0].state["dr"][:7]],
        list(struct.iter_unpack("<5Q", log)),
        built.memory.read(SCRATCH, 64),
        records[~final],
    )

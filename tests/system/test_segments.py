"""Segment loads and questions about descriptors against Unicorn, over random descriptors."""

import random
import struct

import pytest

from vmx.state.bits import unsigned
from vmx.state.processor import Status

from .world import CODE, CODE32, CODE32_3, DATA0, DATA3, GDT, LDT, LOCAL, RAM, SPARE, STACK0, STACK3, World

unicorn = pytest.importorskip("unicorn", reason="the unicorn package is not installed")
x86 = pytest.importorskip("unicorn.x86_const")

SEGMENTS = {
    "es": x86.UC_X86_REG_ES,
    "ss": x86.UC_X86_REG_SS,
    "ds": x86.UC_X86_REG_DS,
    "fs": x86.UC_X86_REG_FS,
}
NUMBER = {"es": 0, "ss": 2, "ds": 3, "fs": 4}
MOV = {name: bytes([0x8E, 0xC0 | number << 3]) for name, number in NUMBER.items()}  # MOV sreg, AX
QUESTIONS = {
    "lar": b"\x0f\x02\xc8",  # ECX, AX
    "lsl": b"\x0f\x03\xc8",
    "verr": b"\x0f\x00\xe0",
    "verw": b"\x0f\x00\xe8",
}


def random_descriptor(rng):
    """Any type, mostly present, any privilege."""
    raw = rng.getrandbits(64)
    present = 1 if rng.random() < 0.85 else 0
    return raw & ~(1 << 47) | present << 47


class Oracle:
    """Unicorn in 32-bit protected mode on the same memory image."""

    def __init__(self, world, cpl):
        self.uc = uc = unicorn.Uc(unicorn.UC_ARCH_X86, unicorn.UC_MODE_32)
        uc.mem_map(0, RAM)
        uc.mem_write(0, world.ram.tobytes())
        uc.reg_write(x86.UC_X86_REG_GDTR, (0, GDT, 0xFF, 0))
        uc.reg_write(x86.UC_X86_REG_LDTR, (LOCAL, LDT, 0xFF, 0x8200))
        uc.reg_write(x86.UC_X86_REG_CS, CODE32)
        uc.reg_write(x86.UC_X86_REG_SS, DATA0)
        for register in (x86.UC_X86_REG_DS, x86.UC_X86_REG_ES, x86.UC_X86_REG_FS, x86.UC_X86_REG_GS):
            uc.reg_write(register, DATA3 if cpl else DATA0)
        if cpl:  # to ring 3 by a far return
            frame = struct.pack("<4I", CODE, CODE32_3, STACK3, DATA3)
            uc.mem_write(STACK0 - 16, frame)
            uc.reg_write(x86.UC_X86_REG_ESP, STACK0 - 16)
            uc.mem_write(CODE - 16, b"\xcb")
            uc.emu_start(CODE - 16, CODE, count=1)
            assert uc.reg_read(x86.UC_X86_REG_SS) == DATA3
            uc.mem_write(0, world.ram.tobytes())
        self.vector = None
        uc.hook_add(unicorn.UC_HOOK_INTR, self._interrupt)

    def _interrupt(self, uc, number, _):
        self.vector = number
        uc.emu_stop()

    def run(self, code, eax):
        self.uc.mem_write(CODE, code)
        self.uc.reg_write(x86.UC_X86_REG_EAX, eax)
        self.uc.reg_write(x86.UC_X86_REG_ECX, 0x5555)
        self.uc.emu_start(CODE, CODE + len(code), count=1)
        return self.vector


@pytest.fixture(scope="module", params=[0, 3])
def start(request):
    return request.param


def worlds(cpl, seed):
    """A world and an oracle with the same random descriptor in GDT and LDT, and a selector of it."""
    rng = random.Random(seed)
    world = World("protected32_ring3" if cpl else "protected32")
    raw = random_descriptor(rng)
    world.put(GDT + SPARE, raw)
    world.put(LDT + 8, raw)
    selector = (SPARE if rng.random() < 0.7 else 8 | 4) | rng.choice([0, cpl, 3])
    if rng.random() < 0.05:
        selector = rng.choice([0, 3, 0x400, 0x104 | 4])
    return world, Oracle(world, cpl), selector


@pytest.mark.parametrize("seed", range(150))
def test_segment_loads(start, seed):
    name = list(MOV)[seed % len(MOV)]
    world, oracle, selector = worlds(start, seed)
    world.cpu.gpr[0] = selector
    vector = oracle.run(MOV[name], selector)
    status = world.execute(MOV[name])
    if vector is not None:
        assert status == Status.FAULT and world.cpu.fault_vector == vector
        assert world.cpu.fault_error == selector & ~3
        return
    assert status == Status.JUMP
    assert world.cpu.segments[NUMBER[name]].selector == oracle.uc.reg_read(SEGMENTS[name])
    assert world.ram[GDT : GDT + 0x100].tobytes() == bytes(oracle.uc.mem_read(GDT, 0x100))  # accessed bits


@pytest.mark.parametrize("seed", range(150))
def test_questions(start, seed):
    name = list(QUESTIONS)[seed % len(QUESTIONS)]
    world, oracle, selector = worlds(start, 1000 + seed)
    world.cpu.gpr[0], world.cpu.gpr[1] = selector, 0x5555
    assert oracle.run(QUESTIONS[name], selector) is None
    assert world.execute(QUESTIONS[name]) == Status.OK
    kind = struct.unpack("<Q", world.ram[GDT + SPARE : GDT + SPARE + 8].tobytes())[0] >> 40 & 0x1F
    zero = oracle.uc.reg_read(x86.UC_X86_REG_EFLAGS) & 0x40
    assert world.rflags & 0x40 == zero, hex(kind)
    assert unsigned(world.cpu.gpr[1]) == oracle.uc.reg_read(x86.UC_X86_REG_ECX), hex(kind)

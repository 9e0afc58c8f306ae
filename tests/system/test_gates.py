"""Call gates of 16, 32 and 64 bits, against expectations from the manual's "Call Gates" and CALL."""

import pytest

from vmx.state.bits import unsigned
from vmx.state.processor import CS, SS, TR, Status

from .world import (
    ABSENT,
    CODE,
    CODE32,
    CODE32_3,
    CODE64,
    CODE64_3,
    DATA0,
    DATA3,
    GDT,
    STACK0,
    STACK3,
    TSS,
    World,
    descriptor,
    gate,
)

GATE, NARROW_STACK = 0x80, 0x98
GP, NP, TS, SSF = 13, 11, 10, 12
TARGET = 0x9ABC
KINDS = {2: 4, 4: 0xC}


def prepared(width, count=0, cpl=3, selector=CODE32, dpl=3, **options):
    world = World("protected32_ring3" if cpl else "protected32")
    low, _ = gate(
        selector, 0xDEAD_0000 | TARGET if width == 2 else TARGET, KINDS[width], dpl, count, **options
    )
    world.put(GDT + GATE, low)
    return world


def transfer(world, opcode=b"\x9a", selector=GATE):
    return world.execute(opcode + b"\x78\x56\x34\x12" + selector.to_bytes(2, "little"))


@pytest.mark.parametrize("width", [2, 4])
@pytest.mark.parametrize("count", [0, 1, 31])
def test_call_to_an_inner_level(width, count):
    """The offset in the far pointer is ignored; parameters move to the inner stack."""
    world = prepared(width, count)
    cpu = world.cpu
    cpu.gpr[4] = STACK3 - count * width
    parameters = [0x1000 + i for i in range(count)]
    for i, value in enumerate(parameters):
        world.put(STACK3 - (count - i) * width, value, width)
    assert transfer(world) == Status.JUMP
    frame = [CODE + 7, CODE32_3, *parameters, (STACK3 - count * width) & (1 << 8 * width) - 1, DATA3]
    assert cpu.gpr[4] == STACK0 - width * len(frame)
    assert world.words(int(cpu.gpr[4]), len(frame), width) == frame
    assert (cpu.rip, cpu.cpl, cpu.segments[CS].selector, cpu.segments[SS].selector) == (
        TARGET,
        0,
        CODE32,
        DATA0,
    )


def test_there_and_back_by_16_bit_return():
    world = prepared(2, 2)
    world.cpu.gpr[4] = STACK3 - 4
    transfer(world)
    assert world.execute(b"\x66\xca\x04\x00") == Status.JUMP  # RET far 4
    assert (world.cpu.rip, world.cpu.cpl, world.cpu.gpr[4]) == (CODE + 7, 3, STACK3)


@pytest.mark.parametrize("width", [2, 4])
def test_the_16_bit_tss_has_short_stack_pointers(width):
    world = prepared(width)
    world.segment(TR, 0x40, 0x83, TSS, 0x2B)
    world.put(TSS + 2, 0xB800, 2)
    world.put(TSS + 4, DATA0, 2)
    assert transfer(world) == Status.JUMP
    assert world.cpu.gpr[4] == 0xB800 - 4 * width


def test_a_16_bit_inner_stack():
    world = prepared(2)
    world.put(GDT + NARROW_STACK, descriptor(0, 0xFFFF, 0x93))
    world.put(TSS + 8, NARROW_STACK, 4)
    world.cpu.gpr[4] = STACK3
    assert transfer(world) == Status.JUMP
    assert world.cpu.gpr[4] & 0xFFFF == STACK0 - 8


@pytest.mark.parametrize("width", [2, 4])
@pytest.mark.parametrize("opcode", [b"\x9a", b"\xea"])
def test_same_level(width, opcode):
    world = prepared(width, cpl=0)
    before = int(world.cpu.gpr[4])
    assert transfer(world, opcode) == Status.JUMP
    assert (world.cpu.rip, world.cpu.segments[CS].selector) == (TARGET, CODE32)
    if opcode == b"\x9a":
        assert world.words(before - 2 * width, 2, width) == [CODE + 7, CODE32]
    assert world.cpu.gpr[4] == before - (2 * width if opcode == b"\x9a" else 0)


@pytest.mark.parametrize("width", [2, 4])
@pytest.mark.parametrize(
    "options,opcode,selector,fault",
    [
        ({"dpl": 2}, b"\x9a", GATE, (GP, GATE)), ({"present": False}, b"\x9a", GATE, (NP, GATE)),
        ({"selector": 0}, b"\x9a", GATE, (GP, 0)), ({"selector": DATA0}, b"\x9a", GATE, (GP, DATA0)),
        ({"selector": 0x200}, b"\x9a", GATE, (GP, 0x200)), ({}, b"\xea", GATE, (GP, CODE32)),
        ({"dpl": 2, "cpl": 0}, b"\x9a", GATE | 3, (GP, GATE)),
        ({"cpl": 0, "selector": CODE32_3}, b"\x9a", GATE, (GP, CODE32_3 & ~3)),
    ],
)  # fmt: skip
def test_checks(width, options, opcode, selector, fault):
    world = prepared(width, **options)
    before = int(world.cpu.gpr[4])
    assert transfer(world, opcode, selector) == Status.FAULT
    assert world.fault() == fault and world.cpu.gpr[4] == before


@pytest.mark.parametrize("width", [2, 4])
@pytest.mark.parametrize(
    "stack,fault", [(0, (TS, 0)), (DATA3, (TS, DATA3 & ~3)), (ABSENT, (SSF, ABSENT)), (0x200, (TS, 0x200))]
)
def test_stack_from_the_tss(width, stack, fault):
    world = prepared(width)
    world.put(TSS + 8, stack, 4)
    assert transfer(world) == Status.FAULT and world.fault() == fault


def test_long_mode_knows_64_bit_gates_only():
    world = World("ring3")
    low, high = gate(CODE64, TARGET, 0xC, 3)
    world.put(GDT + GATE, low)
    world.put(GDT + GATE + 8, high)
    world.put(0xC000, GATE << 32, 6)
    world.cpu.gpr[0] = 0xC000
    assert world.execute(b"\xff\x18") == Status.JUMP
    cpu = world.cpu
    assert world.words(unsigned(cpu.gpr[4]), 4) == [CODE + 2, CODE64_3, STACK3, DATA3]
    assert (cpu.rip, cpu.cpl, cpu.segments[SS].selector) == (TARGET, 0, 0)
    world = World("ring3")
    world.put(GDT + GATE, gate(CODE64, TARGET, 4, 3)[0])
    world.put(0xC000, GATE << 32, 6)
    world.cpu.gpr[0] = 0xC000
    assert world.execute(b"\xff\x18") == Status.FAULT and world.fault() == (GP, GATE)

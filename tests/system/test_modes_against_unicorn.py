"""Task switches and virtual-8086 mode against Unicorn (a QEMU core): the same start, the same end.

Left out are 16-bit TSSs, whose selectors Unicorn's core looks for at the wrong offsets, and PUSHFD, which pushes VM
there.
"""

import random

import pytest

from vmx.state.processor import TR, Status

from .test_tasks import GATE, NEW, NEW_TSS, prepared, put_task
from .world import CODE, CODE32, DATA0, GDT, LDT, LOCAL, STACK0, TASK, TSS, descriptor

unicorn = pytest.importorskip("unicorn")
from unicorn import x86_const as x86  # noqa: E402

pytestmark = pytest.mark.oracle
GPRS = [getattr(x86, f"UC_X86_REG_{n}") for n in "EAX ECX EDX EBX ESP EBP ESI EDI".split()]
SEGMENTS = [getattr(x86, f"UC_X86_REG_{n}") for n in "ES CS SS DS FS GS".split()]
LOAD_TR = b"\x66\xb8\x40\x00\x0f\x00\xd8"  # MOV AX, 40; LTR AX
VM, IOPL, IF = 1 << 17, 3 << 12, 1 << 9


def oracle(world, gpr, code):
    """Unicorn with the world's memory and tables, after LTR: ready for `code`, which ours executes at CODE."""
    uc = unicorn.Uc(unicorn.UC_ARCH_X86, unicorn.UC_MODE_32)
    uc.mem_map(0, 1 << 20)
    uc.mem_write(0, bytes(world.ram))
    uc.mem_write(GDT + TASK, descriptor(TSS, 0x67, 0x89).to_bytes(8, "little"))
    uc.reg_write(x86.UC_X86_REG_GDTR, (0, GDT, 0xFF, 0))
    uc.reg_write(x86.UC_X86_REG_LDTR, (LOCAL, LDT, 0xFF, 0x8200))
    for register, selector in zip(SEGMENTS, (DATA0, CODE32, DATA0, DATA0, DATA0, DATA0), strict=True):
        uc.reg_write(register, selector)
    uc.mem_write(CODE - len(LOAD_TR), LOAD_TR)
    uc.mem_write(CODE, code)
    uc.emu_start(CODE - len(LOAD_TR), CODE)
    for register, value in zip(GPRS, gpr, strict=True):
        uc.reg_write(register, value)
    return uc


def start(world, rng, flags):
    gpr = [rng.getrandbits(32) for _ in range(8)]
    gpr[4] = STACK0 - 0x200
    for i, value in enumerate(gpr):
        world.cpu.gpr[i] = value
    world.rflags = flags
    return gpr


def compare(world, uc, areas):
    cpu = world.cpu
    assert [int(cpu.gpr[i]) for i in range(8)] == [uc.reg_read(r) for r in GPRS]
    assert [int(cpu.segments[i].selector) for i in range(6)] == [uc.reg_read(r) for r in SEGMENTS]
    assert (int(cpu.rip), world.rflags) == (
        uc.reg_read(x86.UC_X86_REG_EIP),
        uc.reg_read(x86.UC_X86_REG_EFLAGS),
    )
    assert int(cpu.segments[TR].selector) == uc.reg_read(x86.UC_X86_REG_TR)[0]
    for address, size in areas:
        assert bytes(world.ram[address : address + size]) == bytes(uc.mem_read(address, size)), hex(address)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("back", [False, True])
@pytest.mark.parametrize(
    "opcode,selector", [(b"\x9a", NEW), (b"\xea", NEW), (b"\x9a", GATE), (b"\xea", GATE)]
)
def test_task_switch(opcode, selector, back, seed):
    rng = random.Random(seed)
    world = prepared()
    values = {name: rng.getrandbits(32) for name in "EAX ECX EDX EBX EBP ESI EDI".split()}
    put_task(world, **values, EFLAGS=2 | rng.getrandbits(12) & 0xCD5)
    gpr = start(world, rng, 2 | rng.getrandbits(12) & 0xCD5)
    code = opcode + b"\0\0\0\0" + selector.to_bytes(2, "little")
    if opcode == b"\xea" and back:
        world.put(NEW_TSS, 0, 2)
        back = False  # nothing to return to
    uc = oracle(world, gpr, code)
    uc.reg_write(x86.UC_X86_REG_EFLAGS, world.rflags)
    uc.mem_write(0x9800, b"\xcf")
    uc.emu_start(CODE, 0, count=2 if back else 1)
    world.ram[0x9800] = 0xCF
    assert world.execute(code) == Status.JUMP
    if back:
        assert world.execute(b"\xcf") == Status.JUMP
    compare(world, uc, [(TSS, 0x68), (NEW_TSS, 0x68), (GDT + TASK, 8), (GDT + NEW, 8)])


PROGRAMS = [
    "9c", "58 9d", "66 58 66 9d", "fa", "fb", "9a 3412 0010", "ea 3412 0010", "8ed8 1e 07", "8ee0 0fa0",
    "c5 36 0010", "cb", "66 cb", "cf", "66 cf", "ca 0400", "0fa9", "17",
]  # fmt: skip


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("code", PROGRAMS)
def test_virtual_8086_program(code, seed):
    """IRET into a program with IOPL 3, then its instructions one by one."""
    rng = random.Random(seed)
    code = bytes.fromhex(code)
    world = prepared()
    gpr = start(world, rng, 2)
    gpr[4] = world.cpu.gpr[4] = 0xA000
    frame = (
        0x10,
        0x900,
        2 | VM | IOPL | IF | rng.getrandbits(12) & 0x8D5,
        0x0E00,
        0xA00,
        0x1234,
        0xB00,
        0x200,
        0x300,
    )
    for i, value in enumerate(frame):
        world.put(0xA000 + 4 * i, value, 4)
    for i in range(64):  # its stack: plausible return frames
        world.put(0xAE00 + i, rng.getrandbits(4) if i % 2 else rng.getrandbits(8), 1)
    for offset in (2, 6, 10):
        world.put(0xAE00 + offset, 0, 2)
    world.put(0x9010, int.from_bytes(code, "little"), len(code))
    uc = oracle(world, [int(v) for v in gpr], b"\xcf")
    uc.emu_start(CODE, 0, count=1)
    assert world.execute(b"\xcf") == Status.JUMP
    compare(world, uc, [(0xA000, 64)])
    position = 0
    while position < len(code):
        from iced_x86 import Decoder

        size = Decoder(16, code[position:]).decode().len
        uc.emu_start(uc.reg_read(x86.UC_X86_REG_EIP), 0, count=1)  # Unicorn adds the base
        if code[position : position + size] not in (b"\x90",):
            assert world.execute(code[position : position + size]) in (Status.OK, Status.JUMP)
        else:
            world.cpu.rip += 1
        compare(world, uc, [(0xAD00, 0x200)])
        position += size

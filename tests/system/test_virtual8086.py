"""Virtual-8086 mode, against expectations from the manual's chapter "8086 Emulation"."""

import pytest

from vmx.cpu.events import deliver, deliver_fault, handle_attention
from vmx.cpu.idt import EXTERNAL
from vmx.mmu.mode import update_mode
from vmx.state.bits import unsigned
from vmx.state.processor import CS, DS, ES, FS, GS, SS, Status

from .world import CODE32, CODE32_3, CONFORMING, DATA0, GDT, STACK0, TSS, World, descriptor

IF, TF, DF, IOPL, NT, RF, VM, AC, VIF, VIP, ID = (
    1 << 9, 1 << 8, 1 << 10, 3 << 12, 1 << 14, 1 << 16, 1 << 17, 1 << 18, 1 << 19, 1 << 20, 1 << 21,
)  # fmt: skip
VME, PVI = 1, 2
GP, SSF, UD = 13, 12, 6
BITMAP = 0x70  # offset of the I/O map in the TSS; the redirection bitmap lies 32 bytes below
SELECTORS = {CS: 0x800, SS: 0x900, ES: 0x1234, DS: 0x100, FS: 0x200, GS: 0x300}


def program(iopl=3, cr4=0, flags=0):
    """A processor that executes an 8086 program at 0800:0000, stack 0900:0F00; the monitor is flat 32-bit code."""
    world = World("protected32")
    cpu = world.cpu
    for register, selector in SELECTORS.items():
        world.segment(register, selector, 0xF3, selector << 4, 0xFFFF)
    cpu.rip, cpu.gpr[4], cpu.cr4 = 0, 0x0F00, cr4
    world.rflags = 2 | VM | iopl << 12 | flags
    world.segment(7, 0x40, 0x8B, TSS, 0x100)
    world.put(TSS + 102, BITMAP, 2)
    update_mode(cpu)
    for vector in range(64):
        world.put_gate(vector, CODE32, 0xE000 + vector * 16, dpl=3, width=8)
    assert (cpu.cpl, cpu.code_mode) == (3, 0)
    return world


def stack(world, count, size=2):
    return world.words(0x9000 + (unsigned(world.cpu.gpr[4]) & 0xFFFF), count, size)


def push_words(world, *words):
    for word in reversed(words):
        world.cpu.gpr[4] -= 2
        world.put(0x9000 + int(world.cpu.gpr[4]), word, 2)


# --- entry and the way out ----------------------------------------------------------------------------------


def frame(world, eip, eflags):
    cpu = world.cpu
    cpu.gpr[4] = 0xA000
    values = (eip, 0x800, eflags, 0x1_0F00, 0x900, 0x1234, 0x100, 0x200, 0x300)
    for i, value in enumerate(values):
        world.put(0xA000 + 4 * i, value, 4)


def test_iret_enters():
    world = World("protected32")
    frame(world, 0x123, VM | IF | IOPL | VIF | VIP | 0x8D7)
    assert world.execute(b"\xcf") == Status.JUMP
    cpu = world.cpu
    assert (cpu.rip, cpu.cpl, cpu.code_mode, cpu.gpr[4]) == (0x123, 3, 0, 0x1_0F00)
    assert world.rflags == VM | IF | IOPL | VIF | VIP | 0x8D7
    for register, selector in SELECTORS.items():
        segment = cpu.segments[register]
        assert (segment.selector, segment.base, segment.limit, segment.access) == (
            selector, selector << 4, 0xFFFF, 0xF3,
        )  # fmt: skip


def test_iret_entry_refuses_an_offset_beyond_64_kib():
    world = World("protected32")
    frame(world, 0x1_0000, VM)
    assert world.execute(b"\xcf") == Status.FAULT
    assert world.fault() == (GP, 0) and world.cpu.gpr[4] == 0xA000 and not world.rflags & VM


def test_only_privilege_level_0_enters():
    world = World("protected32_ring3")
    world.put(0xA000 - 0x100, 0x1000, 4)
    world.put(0xA000 - 0xFC, CODE32_3, 4)
    world.put(0xA000 - 0xF8, VM | 2, 4)
    world.cpu.gpr[4] = 0xA000 - 0x100
    assert world.execute(b"\xcf") == Status.JUMP
    assert not world.rflags & VM


@pytest.mark.parametrize("error", [None, 0x18])
def test_an_event_leaves_through_the_monitor_stack(error):
    world = program(flags=IF | NT)
    cpu = world.cpu
    cpu.rip = 0x321
    if error is None:
        assert deliver(cpu, 0x21, EXTERNAL, 0, 0) == Status.DELIVERED
        expected, vector, extra = [], 0x21, 0
    else:
        cpu.fault, cpu.fault_vector, cpu.fault_error = 2, GP, error
        assert deliver_fault(cpu) == Status.DELIVERED
        expected, vector, extra = [error], GP, RF
    expected += [0x321, 0x800, 2 | VM | IOPL | IF | NT | extra, 0x0F00, 0x900, 0x1234, 0x100, 0x200, 0x300]
    assert cpu.gpr[4] == STACK0 - 4 * len(expected)
    assert world.words(int(cpu.gpr[4]), len(expected), 4) == expected
    assert (cpu.rip, cpu.cpl, cpu.code_mode) == (0xE000 + vector * 16, 0, 1)
    assert world.rflags == 2 | IOPL
    assert cpu.segments[CS].selector == CODE32 and cpu.segments[SS].selector == DATA0
    for register in (ES, DS, FS, GS):
        assert cpu.segments[register].selector == 0 and cpu.segments[register].access & 1 << 16
    assert world.execute(b"\xcf") == Status.JUMP if error is None else True
    if error is None:
        assert world.rflags & VM and cpu.rip == 0x321 and cpu.segments[GS].base == 0x3000


@pytest.mark.parametrize("selector,dpl", [(CONFORMING, 0), (CODE32_3, 3)])
def test_the_handler_must_be_at_level_0(selector, dpl):
    world = program()
    if selector == CONFORMING:
        world.put(GDT + (CONFORMING & ~7), descriptor(0, 0xFFFF_FFFF, 0xC09F))
    world.put_gate(0x21, selector, 0x9000, width=8)
    deliver(world.cpu, 0x21, EXTERNAL, 0, 0)
    # the fault is delivered instead, with the handler's code segment and EXT as its error code
    assert world.cpu.rip == 0xE000 + GP * 16
    assert world.get(int(world.cpu.gpr[4]), 4) == selector & ~3 | 1


# --- instructions -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "code,vector",
    [
        ("f4", GP), ("0f01d0", UD), ("0f20c0", GP), ("0f06", GP), ("0f30", GP), ("0f0116 0001", GP),
        ("0f00c0", UD), ("0f00c8", UD), ("0f00d0", UD), ("0f00d8", UD), ("0f00e0", UD), ("0f00e8", UD),
        ("0f02c1", UD), ("0f03c1", UD), ("63c1", UD), ("0f01f0", GP),
    ],
)  # fmt: skip
def test_protected_instructions(code, vector):
    world = program()
    assert world.execute(bytes.fromhex(code)) == Status.FAULT
    assert world.fault() == (vector, 0)


@pytest.mark.parametrize("code", ["fa", "fb", "9c", "9d", "cf", "66 9c", "66 9d", "66 cf", "cd 20"])
@pytest.mark.parametrize("cr4", [0, VME])
def test_iopl_sensitive_instructions_without_iopl(code, cr4):
    """#GP(0) for the monitor, except for the 16-bit forms with VME."""
    world = program(iopl=0, cr4=cr4)
    world.ram[TSS + BITMAP - 32 : TSS + BITMAP] = 0xFF
    status = world.execute(bytes.fromhex(code))
    if cr4 and "66" not in code and "cd" not in code:
        assert status in (Status.OK, Status.JUMP)
    else:
        assert status == Status.FAULT and world.fault() == (GP, 0)
        assert world.cpu.gpr[4] == 0x0F00


def test_with_iopl_3_the_program_owns_if():
    world = program(flags=IF)
    assert world.execute(b"\xfa") == Status.JUMP and not world.rflags & IF
    assert world.execute(b"\xfb") == Status.JUMP and world.rflags & IF
    assert world.execute(b"\x66\x9c") == Status.OK
    assert stack(world, 1, 4) == [2 | IF | IOPL]
    push_words(world, 0x0FD7 & ~TF, (AC | ID | VIP | VIF) >> 16)
    assert world.execute(b"\x66\x9d") == Status.JUMP
    assert world.rflags == VM | IOPL | AC | ID | 0xED7 & ~TF | 2  # IOPL, VM, VIF and VIP stay


def test_iret_inside():
    world = program()
    push_words(world, 0x10, 0, 0xA00, 0, IF | NT, (AC | VIF) >> 16)
    assert world.execute(b"\x66\xcf") == Status.JUMP
    cpu = world.cpu
    assert (cpu.rip, cpu.segments[CS].base, cpu.segments[CS].access) == (0x10, 0xA000, 0xF3)
    assert world.rflags == 2 | VM | IOPL | IF | NT | AC and cpu.gpr[4] == 0x0F00


@pytest.mark.parametrize("code,delta", [("9a 7856 0010", 4), ("ea 7856 0010", 0)])
def test_far_transfers_load_paragraphs(code, delta):
    world = program()
    assert world.execute(bytes.fromhex(code)) == Status.JUMP
    cpu = world.cpu
    assert (cpu.rip, cpu.segments[CS].selector, cpu.segments[CS].base) == (0x5678, 0x1000, 0x1_0000)
    assert cpu.gpr[4] == 0x0F00 - delta and cpu.cpl == 3 and cpu.segments[CS].access == 0xF3
    if delta:
        world.ram[0x1_5678] = 0xCB
        assert world.execute(b"\xcb") == Status.JUMP
        assert (cpu.rip, cpu.segments[CS].selector, cpu.gpr[4]) == (5, 0x800, 0x0F00)


@pytest.mark.parametrize(
    "register,code", [(ES, "8ec0"), (SS, "8ed0"), (DS, "8ed8"), (FS, "8ee0"), (GS, "8ee8")]
)
def test_segment_loads(register, code):
    world = program()
    world.cpu.gpr[0] = 0xABCD
    assert world.execute(bytes.fromhex(code)) == Status.JUMP
    segment = world.cpu.segments[register]
    assert (segment.selector, segment.base, segment.limit, segment.access) == (0xABCD, 0xABCD0, 0xFFFF, 0xF3)
    assert world.cpu.cpl == 3


@pytest.mark.parametrize("iopl", [0, 3])
@pytest.mark.parametrize("allowed", [True, False])
def test_ports_always_ask_the_bitmap(iopl, allowed):
    world = program(iopl=iopl)
    world.put(TSS + BITMAP + 2, 0 if allowed else 1, 2)
    status = world.execute(b"\xe4\x10")
    if allowed:
        assert status == Status.STOP and world.cpu.bus_address == 0x10
    else:
        assert status == Status.FAULT and world.fault() == (GP, 0)


# --- VME ----------------------------------------------------------------------------------------------------


def test_vif_stands_for_if():
    world = program(iopl=0, cr4=VME, flags=IF)
    world.execute(b"\xfb")
    assert world.rflags & (IF | VIF) == IF | VIF
    world.execute(b"\x9c")
    assert stack(world, 1) == [2 | IF | IOPL]
    world.execute(b"\xfa")
    assert world.rflags & (IF | VIF) == IF
    world.execute(b"\x9c")
    assert stack(world, 1) == [2 | IOPL]
    push_words(world, IF | IOPL | DF | 2)
    assert world.execute(b"\x9d") == Status.OK
    assert world.rflags == 2 | VM | IF | VIF | DF
    push_words(world, 0x40, 0x800, IOPL | 2)
    assert world.execute(b"\xcf") == Status.JUMP
    assert (world.rflags, world.cpu.rip) == (2 | VM | IF, 0x40)


@pytest.mark.parametrize("code,image", [("fb", 0), ("9d", IF), ("9d", TF), ("cf", IF), ("cf", TF)])
def test_what_the_monitor_must_see(code, image):
    """Interrupts enabled while one is pending for the program, or TF."""
    world = program(iopl=0, cr4=VME, flags=VIP)
    if code == "9d":
        push_words(world, image | 2)
    else:
        push_words(world, 0x40, 0x800, image | 2)
    before = int(world.cpu.gpr[4])
    assert world.execute(bytes.fromhex(code)) == Status.FAULT
    assert world.fault() == (GP, 0) and world.cpu.gpr[4] == before and world.rflags == 2 | VM | VIP


@pytest.mark.parametrize(
    "iopl,cr4,flags", [(0, VME, VIF | VIP), (3, VME, VIF | VIP), (0, VME, VIF), (0, 0, VIF | VIP)]
)
def test_both_virtual_flags_at_the_beginning_of_an_instruction(iopl, cr4, flags):
    world = program(iopl=iopl, cr4=cr4, flags=flags)
    world.cpu.limit, world.cpu.attention = 100, 1
    hits = iopl < 3 and cr4 and flags == VIF | VIP
    assert handle_attention(world.cpu) == (Status.FAULT if hits else Status.OK)
    assert world.fault() == ((GP, 0) if hits else None)


@pytest.mark.parametrize("iopl", [0, 3])
def test_redirected_interrupt(iopl):
    world = program(iopl=iopl, cr4=VME, flags=IF | VIF | DF)
    world.put(TSS + BITMAP - 32 + 4, 0xFE, 1)  # vector 0x20 only
    world.put(0x20 * 4, 0x0C00_0033, 4)
    assert world.execute(b"\xcd\x20") == Status.JUMP
    cpu = world.cpu
    assert (cpu.rip, cpu.segments[CS].selector, cpu.segments[CS].base, cpu.cpl) == (0x33, 0xC00, 0xC000, 3)
    assert stack(world, 3) == [2, 0x800, 2 | IF | IOPL | DF]
    assert world.rflags == 2 | VM | iopl << 12 | DF | (VIF if iopl == 3 else IF)


@pytest.mark.parametrize("iopl", [0, 3])
def test_interrupt_that_is_not_redirected(iopl):
    world = program(iopl=iopl, cr4=VME)
    world.put(TSS + BITMAP - 32 + 4, 1, 1)
    status = world.execute(b"\xcd\x20")
    if iopl == 3:
        assert status == Status.JUMP and world.cpu.rip == 0xE000 + 0x20 * 16 and world.cpu.cpl == 0
    else:
        assert status == Status.FAULT and world.fault() == (GP, 0)


@pytest.mark.parametrize("code,vector", [("cc", 3), ("f1", 1), ("ce", 4)])
def test_other_software_interrupts_ignore_iopl(code, vector):
    world = program(iopl=0, flags=1 << 11)
    assert world.execute(bytes.fromhex(code)) == Status.JUMP
    assert world.cpu.rip == 0xE000 + vector * 16


# --- protected-mode virtual interrupts ----------------------------------------------------------------------


@pytest.mark.parametrize("cr4", [0, PVI])
def test_pvi(cr4):
    world = World("protected32_ring3")
    world.cpu.cr4 = cr4
    status = world.execute(b"\xfb")
    if cr4 == 0:
        assert status == Status.FAULT and world.fault() == (GP, 0)
        return
    assert status == Status.OK and world.rflags == 2 | VIF
    assert world.execute(b"\xfa") == Status.OK and world.rflags == 2
    world.rflags = 2 | VIP
    assert world.execute(b"\xfb") == Status.FAULT and world.fault() == (GP, 0)


# --- UMIP ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", ["0f0100", "0f0108", "0f00c0", "0f00c8", "0f01e0"])
@pytest.mark.parametrize("mode", ["long64", "ring3"])
def test_user_mode_instruction_prevention(code, mode):
    world = World(mode)
    world.cpu.gpr[0] = 0xD000
    assert world.execute(bytes.fromhex(code)) in (Status.OK, Status.JUMP)
    world.cpu.cr4 |= 1 << 11
    status = world.execute(bytes.fromhex(code))
    if mode == "ring3":
        assert status == Status.FAULT and world.fault() == (GP, 0)
    else:
        assert status in (Status.OK, Status.JUMP)

"""Delivery of events through the IDT, against expectations from the manual."""

import pytest

from vmx.cpu.events import after_step, deliver, deliver_fault, handle_attention
from vmx.cpu.idt import EXTERNAL, HARDWARE_EXCEPTION, NMI_TYPE
from vmx.state.bits import unsigned
from vmx.state.processor import CS, SS, Status, Stop

from .world import (
    ABSENT,
    CODE,
    CODE32,
    CODE64,
    CODE64_3,
    CONFORMING,
    DATA0,
    DATA3,
    GDT,
    IDT,
    READ_ONLY,
    STACK0,
    STACK3,
    STACK_IST1,
    TASK,
    TSS,
    World,
)

HANDLER = 0x9000
TF, IF, DF, NT, RF, AC = 1 << 8, 1 << 9, 1 << 10, 1 << 14, 1 << 16, 1 << 18
GP, PF, DB, NP, TS, SSF, DFAULT, UD, BP = 13, 14, 1, 11, 10, 12, 8, 6, 3


def raised(world, vector, error=0, address=0):
    """Deliver a hardware exception as an instruction raises it."""
    cpu = world.cpu
    cpu.fault, cpu.fault_vector, cpu.fault_error, cpu.fault_address = 2, vector, error, address
    return deliver_fault(cpu)


def handlers(world, vectors=range(32), **options):
    for vector in vectors:
        world.put_gate(vector, CODE64, HANDLER + vector * 16, **options)


# --- 64-bit -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "vector,error,has_error", [(UD, 0, False), (GP, 0x1234, True), (PF, 6, True), (0, 0, False)]
)
def test_fault_from_ring_3(vector, error, has_error):
    world = World("ring3")
    handlers(world)
    world.rflags = 0x2 | IF | TF | DF | NT | 0x8D5
    before = world.rflags
    assert raised(world, vector, error, 0xDEAD_BEEF_0000) == Status.DELIVERED
    cpu = world.cpu
    frame = [CODE, CODE64_3, before | RF, STACK3, DATA3]
    if has_error:
        frame = [error, *frame]
    assert world.words(unsigned(cpu.gpr[4]), len(frame)) == frame
    assert cpu.gpr[4] == STACK0 - 8 * len(frame)
    assert (cpu.rip, cpu.cpl, cpu.code_mode) == (HANDLER + vector * 16, 0, 2)
    assert world.rflags == before & ~(IF | TF | NT)
    assert cpu.segments[CS].selector == CODE64
    assert cpu.segments[SS].selector == 0 and cpu.segments[SS].access & 0x10060 == 0x10000
    assert cpu.cr2 == (0xDEAD_BEEF_0000 if vector == PF else 0)
    assert cpu.fault == cpu.vectoring_info == 0


def test_same_level_keeps_ss_and_aligns_the_stack():
    world = World()
    handlers(world)
    world.cpu.gpr[4] = STACK0 - 0x203
    raised(world, GP, 0)
    assert world.cpu.gpr[4] == (STACK0 - 0x210) - 48
    assert world.get(unsigned(world.cpu.gpr[4]) + 32) == STACK0 - 0x203
    assert world.cpu.segments[SS].selector == DATA0


def test_interrupt_stack_table():
    world = World()
    handlers(world, ist=1)
    raised(world, DFAULT, 0)
    assert world.cpu.gpr[4] == STACK_IST1 - 48
    assert world.cpu.segments[SS].selector == DATA0  # no change of privilege


def test_trap_gate_leaves_if():
    world = World()
    handlers(world, kind=0xF)
    world.rflags = 2 | IF
    raised(world, UD)
    assert world.rflags & IF


def test_conforming_handler_runs_at_the_interrupted_level():
    world = World("ring3")
    world.put_gate(UD, CONFORMING, HANDLER)
    raised(world, UD)
    assert world.cpu.cpl == 3 and world.cpu.segments[CS].selector == CONFORMING | 3
    assert world.cpu.gpr[4] == STACK3 - 40


@pytest.mark.parametrize(
    "change,expected",
    [
        (lambda w: w.put_gate(UD, 0, HANDLER), (GP, 1)),  # null selector
        (lambda w: w.put_gate(UD, CODE64, HANDLER, kind=5), (GP, UD * 8 + 3)),  # not a 64-bit gate type
        (lambda w: w.put_gate(UD, CODE64, HANDLER, present=False), (NP, UD * 8 + 3)),
        (lambda w: w.put_gate(UD, DATA0, HANDLER), (GP, DATA0 + 1)),  # not code
        (lambda w: w.put_gate(UD, CODE32, HANDLER), (GP, CODE32 + 1)),  # not 64-bit code
        (lambda w: w.put_gate(UD, 0x200, HANDLER), (GP, 0x201)),  # beyond the GDT
        (lambda w: w.put_gate(UD, CODE64, 1 << 47), (GP, 1)),  # not canonical
        (lambda w: setattr(w.cpu, "idtr_limit", UD * 16 + 14), (GP, UD * 8 + 3)),
        (lambda w: w.put_gate(UD, CODE64_3, HANDLER), (GP, (CODE64_3 & ~3) + 1)),  # outer code
    ],
)
def test_fault_on_the_way(change, expected):
    """#UD is benign: the second fault is delivered by itself, with EXT in its error code."""
    world = World()
    vector, error = expected
    world.put_gate(vector, CODE64, HANDLER)
    world.put_gate(UD, CODE64, HANDLER + 0x100)
    change(world)
    if (
        world.cpu.idtr_limit != 0xFFF
    ):  # the second fault's gate must be inside the table: move it to a second try
        assert raised(world, UD) == Status.STOP  # #GP is beyond the limit too, and so is #DF: triple fault
        return
    assert raised(world, UD) == Status.DELIVERED
    assert world.cpu.rip == HANDLER
    assert world.get(unsigned(world.cpu.gpr[4])) == error


def test_stack_faults_on_the_way():
    world = World("ring3")
    handlers(world, vectors=(UD,))
    world.put_gate(SSF, CODE64, HANDLER + 0x300, ist=1)
    world.put_gate(TS, CODE64, HANDLER + 0x200, ist=1)
    world.put(TSS + 4, 1 << 50)
    assert raised(world, UD) == Status.DELIVERED
    assert world.cpu.rip == HANDLER + 0x300 and world.get(unsigned(world.cpu.gpr[4])) == 1
    world = World("ring3")
    handlers(world, vectors=(UD,), ist=7)
    world.put_gate(TS, CODE64, HANDLER + 0x200)
    world.cpu.segments[7].limit = 0x40
    assert raised(world, UD) == Status.DELIVERED
    assert world.cpu.rip == HANDLER + 0x200 and world.get(unsigned(world.cpu.gpr[4])) == TASK + 1


CONTRIBUTORY = {0, TS, NP, SSF, GP}


@pytest.mark.parametrize("first", [0, 1, UD, 7, DFAULT, TS, NP, SSF, GP, PF, 16, 17])
@pytest.mark.parametrize("second", [NP, GP, PF, SSF])
def test_double_fault_table(first, second):
    """Which second exception during delivery of which first makes a double or a triple fault."""
    world = World("ring3")
    handlers(world)
    if second == NP:
        world.put_gate(first, CODE64, HANDLER, present=False)
    elif second == GP:
        world.put_gate(first, CODE32, HANDLER)
    elif second == SSF:
        world.put_gate(first, CODE64, HANDLER, ist=2)
        world.put(TSS + 44, 1 << 50)
    else:
        world.put_gate(first, CODE64, HANDLER, ist=2)
        world.put(TSS + 44, 0x40_0000)  # no translation
    if first == second:
        world.put(TSS + 52, STACK_IST1)
    status = raised(world, first, 0, 0x1234)
    double = first in CONTRIBUTORY and second != PF or first == PF
    if first == DFAULT:
        assert status == Status.STOP and world.cpu.stop == Stop.SHUTDOWN and world.cpu.activity == 2
        return
    assert status == Status.DELIVERED
    if first == second and not double:
        return
    delivered = DFAULT if double else second
    assert world.cpu.rip == HANDLER + delivered * 16
    if second == PF:
        assert world.cpu.cr2 == 0x40_0000 - 8
    if double:
        assert world.get(unsigned(world.cpu.gpr[4])) == 0


def test_triple_fault():
    world = World()
    world.cpu.idtr_limit = 0
    assert raised(world, GP) == Status.STOP
    assert world.cpu.stop == Stop.SHUTDOWN
    assert handle_attention(world.cpu) == Status.STOP and world.cpu.stop == Stop.SHUTDOWN


def test_software_interrupt_needs_the_gates_privilege():
    world = World("ring3")
    handlers(world)
    world.put_gate(0x80, CODE64, HANDLER + 0x800, dpl=3)
    assert world.execute(b"\xcd\x80") == Status.JUMP
    assert world.cpu.rip == HANDLER + 0x800
    assert world.get(unsigned(world.cpu.gpr[4])) == CODE + 2
    assert world.get(unsigned(world.cpu.gpr[4]) + 16) & RF == 0
    assert world.cpu.retired == 1

    world = World("ring3")
    handlers(world)
    world.put_gate(0x81, CODE64, HANDLER + 0x800)
    assert world.execute(b"\xcd\x81") == Status.DELIVERED
    assert world.cpu.rip == HANDLER + GP * 16
    assert world.words(unsigned(world.cpu.gpr[4]), 2) == [0x81 * 8 + 2, CODE]
    assert world.cpu.retired == 0


@pytest.mark.parametrize("code,vector,delivered", [(b"\xcc", BP, False), (b"\xf1", DB, True)])
def test_int3_and_int1(code, vector, delivered):
    """INT3 checks the gate's DPL, INT1 does not."""
    world = World("ring3")
    handlers(world)
    world.execute(code)
    assert world.cpu.rip == HANDLER + 16 * (vector if delivered else GP)
    if delivered:
        assert world.get(unsigned(world.cpu.gpr[4])) == CODE + 1


def test_external_interrupt_from_compatibility_mode():
    world = World("compat")
    handlers(world, vectors=[0x20])
    world.rflags = 2 | IF
    assert deliver(world.cpu, 0x20, EXTERNAL, 0, 0) == Status.DELIVERED
    assert world.cpu.code_mode == 2
    assert world.words(unsigned(world.cpu.gpr[4]), 3) == [CODE, CODE32, 2 | IF]


def test_slow_and_fast_frames_are_equal():
    """A frame that crosses a page goes by the page tables, another one by the TLB."""
    frames = []
    for top in (STACK0, STACK0 - 0xFF0, STACK0):
        world = World("ring3")
        handlers(world)
        world.put(TSS + 4, top)
        for _ in range(2):  # the second delivery finds the TLB filled
            world.long64(3)
            raised(world, GP, 0x18)
        frames.append(world.words(unsigned(world.cpu.gpr[4]), 6))
    assert frames[0] == frames[1] == frames[2]


# --- legacy protected mode ----------------------------------------------------------------------------------


def protected_handlers(world, kind=0xE, **options):
    for vector in range(32):
        world.put_gate(vector, CODE32, HANDLER + vector * 16, kind, width=8, **options)


@pytest.mark.parametrize("kind,width", [(0xE, 4), (0xF, 4), (6, 2), (7, 2)])
def test_protected_mode_frames(kind, width):
    for start in ("protected32", "protected32_ring3"):
        world = World(start)
        protected_handlers(world, kind)
        world.rflags = 2 | IF | NT
        outer = start.endswith("ring3")
        cpu = world.cpu
        old = [CODE, int(cpu.segments[CS].selector), world.rflags | RF]
        if outer:
            old += [STACK3, DATA3]
        assert raised(world, GP, 0x42) == Status.DELIVERED
        mask = (1 << 8 * width) - 1
        assert world.words(unsigned(cpu.gpr[4]), len(old) + 1, width) == [v & mask for v in [0x42, *old]]
        assert cpu.rip == HANDLER + GP * 16 and cpu.cpl == 0
        assert bool(world.rflags & IF) == bool(kind & 1) and not world.rflags & NT
        if outer:
            assert cpu.segments[SS].selector == DATA0 and cpu.gpr[4] == STACK0 - 6 * width


@pytest.mark.parametrize(
    "selector,expected",
    [(0, (TS, 1)), (DATA3, (TS, (DATA3 & ~3) + 1)), (READ_ONLY, (TS, READ_ONLY + 1)), (0x200, (TS, 0x201))],
)
def test_protected_mode_inner_stack_checks(selector, expected):
    world = World("protected32_ring3")
    protected_handlers(world)
    world.put_gate(TS, CONFORMING_32, HANDLER + TS * 16, width=8)
    world.put(GDT + CONFORMING_32, descriptor_of_conforming_code())
    world.put(TSS + 8, selector, 4)
    assert raised(world, UD) == Status.DELIVERED
    assert world.cpu.rip == HANDLER + TS * 16
    assert world.get(unsigned(world.cpu.gpr[4]), 4) == expected[1]


CONFORMING_32 = 0x80


def descriptor_of_conforming_code():
    from .world import descriptor

    return descriptor(0, 0xFFFF_FFFF, 0xC09F)


def test_absent_inner_stack_is_a_stack_fault():
    world = World("protected32_ring3")
    protected_handlers(world)
    world.put(GDT + CONFORMING_32, descriptor_of_conforming_code())
    world.put_gate(SSF, CONFORMING_32, HANDLER + SSF * 16, width=8)
    world.put(TSS + 8, ABSENT, 4)
    raised(world, UD)
    assert world.cpu.rip == HANDLER + SSF * 16
    assert world.get(unsigned(world.cpu.gpr[4]), 4) == ABSENT + 1


# --- real-address mode --------------------------------------------------------------------------------------


def test_real_mode():
    world = World("real")
    cpu = world.cpu
    cpu.idtr_base = 0
    world.put(GP * 4, 0x1234_5678, 4)
    world.rflags = 2 | IF | TF | AC
    cpu.rip = 0x8000
    assert raised(world, GP, 0x42) == Status.DELIVERED
    assert (cpu.segments[CS].selector, cpu.segments[CS].base, cpu.rip) == (0x1234, 0x12340, 0x5678)
    assert world.words(unsigned(cpu.gpr[4]), 3, 2) == [0x8000, 0, 2 | IF | TF]
    assert world.rflags & (IF | TF | AC) == 0
    assert world.execute(b"\xcf") == Status.JUMP  # IRET
    assert (cpu.rip, cpu.segments[CS].selector, cpu.gpr[4]) == (0x8000, 0, STACK0)
    assert world.rflags & (IF | TF) == IF | TF


# --- between instructions -----------------------------------------------------------------------------------


def ready(vector=0x20):
    world = World()
    handlers(world, vectors=[DB, 2, vector])
    world.rflags = 2 | IF
    world.cpu.attention = 1
    return world


def test_interrupt_is_acknowledged_then_delivered():
    world = ready()
    cpu = world.cpu
    cpu.intr_pin = 1
    assert handle_attention(cpu) == Status.STOP and cpu.stop == Stop.ACKNOWLEDGE
    cpu.interrupt_vector = 0x20
    assert handle_attention(cpu) == Status.DELIVERED
    assert cpu.rip == HANDLER + 0x200 and cpu.interrupt_vector == -1


def test_interrupt_waits_for_if():
    world = ready()
    cpu = world.cpu
    world.rflags = 2
    cpu.intr_pin = 1
    assert handle_attention(cpu) == Status.OK and cpu.attention == 1
    cpu.intr_pin = 0
    assert handle_attention(cpu) == Status.OK and cpu.attention == 0


@pytest.mark.parametrize("code", [b"\xfb", b"\x8e\xd0"])  # STI; MOV SS, EAX
def test_shadow_of_one_instruction(code):
    world = ready()
    cpu = world.cpu
    world.rflags = 2 if code == b"\xfb" else 2 | IF
    cpu.gpr[0] = DATA0
    cpu.intr_pin, cpu.interrupt_vector = 1, 0x20
    assert world.execute(code) == Status.JUMP
    assert handle_attention(cpu) == 8
    cpu.rip += 1  # any instruction
    after_step(cpu)
    assert handle_attention(cpu) == Status.DELIVERED
    assert world.get(unsigned(cpu.gpr[4])) == CODE + len(code) + 1


def test_nmi_blocks_nmis_until_iret():
    world = ready()
    cpu = world.cpu
    cpu.nmi_pin = 1
    assert handle_attention(cpu) == Status.DELIVERED
    assert cpu.rip == HANDLER + 0x20 and cpu.shadow == 8 and cpu.nmi_pin == 0
    cpu.nmi_pin = cpu.attention = 1
    assert handle_attention(cpu) == Status.OK
    assert world.execute(b"\x48\xcf") == Status.JUMP
    assert cpu.shadow == 0 and cpu.rip == CODE and cpu.attention == 1
    assert handle_attention(cpu) == Status.DELIVERED


def test_single_step():
    world = ready()
    cpu = world.cpu
    world.rflags = 2 | TF
    assert handle_attention(cpu) == 8
    cpu.rip += 1
    after_step(cpu)
    assert handle_attention(cpu) == Status.DELIVERED
    assert cpu.rip == HANDLER + 16 and cpu.dr[6] & 1 << 14
    assert world.words(unsigned(cpu.gpr[4]), 3) == [CODE + 1, CODE64, 2 | TF]
    assert handle_attention(cpu) == Status.OK  # the handler is not stepped


def test_halt_wakes_by_an_interrupt():
    world = ready()
    cpu = world.cpu
    assert world.execute(b"\xf4") == Status.JUMP
    assert handle_attention(cpu) == Status.STOP and cpu.stop == Stop.HALT
    cpu.intr_pin, cpu.interrupt_vector = 1, 0x20
    assert handle_attention(cpu) == Status.DELIVERED
    assert cpu.activity == 0 and world.get(unsigned(cpu.gpr[4])) == CODE + 1


def test_injected_event():
    world = ready()
    cpu = world.cpu
    handlers(world, vectors=[PF])
    cpu.has_injected, cpu.vectoring_info, cpu.vectoring_error = 1, 1 << 31 | 1 << 11 | 3 << 8 | PF, 2
    cpu.cr2 = 0x77
    assert handle_attention(cpu) == Status.DELIVERED
    assert cpu.has_injected == cpu.vectoring_info == 0 and cpu.cr2 == 0x77
    assert world.get(unsigned(cpu.gpr[4])) == 2


def test_priorities():
    """Debug trap, NMI, interrupt, in this order, each after the handler of the one before has begun."""
    world = ready()
    handlers(world, vectors=[DB, 2, 0x20], kind=0xF)  # IF stays
    cpu = world.cpu
    cpu.pending_debug, cpu.nmi_pin, cpu.intr_pin, cpu.interrupt_vector = 1 << 14, 1, 1, 0x20
    order = []
    for _ in range(3):
        assert handle_attention(cpu) == Status.DELIVERED
        order.append((int(cpu.rip) - HANDLER) // 16)
    assert order == [DB, 2, 0x20]


def test_delivery_type_of_nmi_by_hand():
    world = ready()
    assert deliver(world.cpu, 2, NMI_TYPE, 0, 0) == Status.DELIVERED
    assert deliver(world.cpu, GP, HARDWARE_EXCEPTION, 0, 1) == Status.STOP  # no gate for #GP and none for #DF
    assert world.get(IDT + GP * 16) == 0

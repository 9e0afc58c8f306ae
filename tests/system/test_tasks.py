"""Hardware task switching, against expectations from the manual's chapter "Task Management"."""

import numpy as np
import pytest

from vmx.cpu.events import deliver, deliver_fault, handle_attention
from vmx.cpu.idt import EXTERNAL
from vmx.state.memory import host_address
from vmx.state.processor import CS, FS, GS, LDTR, TR, Status
from vmx.virt.fields import VMCS

from .world import (
    ABSENT,
    CODE,
    CODE32,
    CODE32_3,
    CONFORMING,
    DATA0,
    DATA3,
    GDT,
    IDT,
    LOCAL,
    READ_ONLY,
    TASK,
    TSS,
    World,
    descriptor,
    gate,
)

NT, VM, RF, IF, TF = 1 << 14, 1 << 17, 1 << 16, 1 << 9, 1 << 8
DB, DF, TS, NP, SSF, GP, PF = 1, 8, 10, 11, 12, 13, 14
NEW, NEW_TSS = 0x80, 0xD000  # the task to switch to
GATE = 0x88
NEW_STACK = 0xA800
REGISTERS = [0x1000_0000 + i for i in range(8)]
JMP, CALL, IRET, EVENT = "JMP", "CALL", "IRET", "EVENT"
HANDLER = 0x9000


def field32(name):
    names = "CR3 EIP EFLAGS EAX ECX EDX EBX ESP EBP ESI EDI ES CS SS DS FS GS LDT".split()
    return 28 + 4 * names.index(name)


def put_task(world, **changes):
    """A 32-bit TSS at NEW_TSS: flat ring 0 unless changed."""
    values = dict(
        zip("EAX ECX EDX EBX ESP EBP ESI EDI".split(), REGISTERS, strict=True),
        EIP=0x9800, EFLAGS=2 | IF, CS=CODE32, SS=DATA0, DS=DATA0, ES=DATA0, FS=0, GS=DATA3, LDT=LOCAL, CR3=0,
    )  # fmt: skip
    values.update(ESP=NEW_STACK)
    values.update(changes)
    for name, value in values.items():
        world.put(NEW_TSS + field32(name), value, 4)


def put_task_16(world):
    """A 16-bit TSS at NEW_TSS."""
    words = [0] * 7 + [0x9800, 2 | IF, *range(0x10, 0x18), DATA0, CODE32, DATA0, DATA0, LOCAL]
    words[7 + 2 + 4] = NEW_STACK
    for i, word in enumerate(words):
        world.put(NEW_TSS + 2 * i, word, 2)


def prepared(kind=0x89, limit=0x67, cpl=0):
    world = World("protected32_ring3" if cpl else "protected32")
    world.put(GDT + NEW, descriptor(NEW_TSS, limit, kind))
    world.put(GDT + TASK, descriptor(TSS, 0x67, 0x8B))
    world.put(GDT + GATE, gate(NEW, 0, 5, dpl=3)[0])
    for vector in range(32):
        world.put_gate(vector, CODE32, HANDLER + vector * 16, width=8)
    world.put(IDT + 8 * 0x21, gate(NEW, 0, 5)[0])
    put_task(world)
    world.rflags = 2 | 0x8C1
    for i in range(8):
        if i != 4:
            world.cpu.gpr[i] = 0xAA00 + i
    return world


def go(world, how):
    """Make the switch; returns the status."""
    if how == EVENT:
        return deliver(world.cpu, 0x21, EXTERNAL, 0, 0)
    if how == IRET:
        world.rflags |= NT
        world.put(TSS, NEW, 2)
        world.put(GDT + NEW + 5, world.get(GDT + NEW + 5, 1) | 2, 1)
        return world.execute(b"\xcf")
    opcode = b"\xea" if how == JMP else b"\x9a"
    return world.execute(opcode + b"\0\0\0\0" + NEW.to_bytes(2, "little"))


def busy(world, selector):
    return world.get(GDT + selector + 5, 1) >> 1 & 1


@pytest.mark.parametrize("how", [JMP, CALL, IRET, EVENT])
def test_switch(how):
    world = prepared()
    cpu = world.cpu
    cpu.dr[7] = 0x7FF
    stack = int(cpu.gpr[4])
    assert go(world, how) == (Status.DELIVERED if how == EVENT else Status.JUMP)
    nested = how in (CALL, EVENT)
    # the old task
    length = {JMP: 7, CALL: 7, IRET: 1, EVENT: 0}[how]
    saved = [CODE + length, 2 | 0x8C1, 0xAA00, 0xAA01, 0xAA02, 0xAA03, stack, 0xAA05, 0xAA06, 0xAA07]
    assert world.words(TSS + 32, 10, 4) == saved
    assert world.words(TSS + 72, 6, 4) == [DATA0, CODE32, DATA0, DATA0, DATA0, DATA0]
    assert busy(world, TASK) == (1 if nested else 0)
    # the new one
    assert busy(world, NEW) == 1
    assert [int(cpu.gpr[i]) for i in range(8)] == REGISTERS[:4] + [NEW_STACK] + REGISTERS[5:]
    assert (cpu.rip, world.rflags) == (0x9800, 2 | IF | (NT if nested else 0))
    assert world.get(NEW_TSS, 2) == (TASK if nested else 0)
    assert [int(cpu.segments[i].selector) for i in range(8)] == [
        DATA0, CODE32, DATA0, DATA0, 0, DATA3, LOCAL, NEW,
    ]  # fmt: skip
    assert (cpu.segments[TR].base, cpu.segments[TR].limit, cpu.segments[TR].access) == (NEW_TSS, 0x67, 0x8B)
    assert cpu.segments[FS].access & 1 << 16 and cpu.segments[GS].access == 0xC0F3
    assert cpu.cr0 & 8 and cpu.dr[7] == 0x6AA
    assert (cpu.cpl, cpu.code_mode) == (0, 1)


def test_there_and_back():
    world = prepared()
    assert go(world, CALL) == Status.JUMP
    assert world.execute(b"\xcf") == Status.JUMP
    assert (world.cpu.rip, world.cpu.segments[TR].selector) == (CODE + 7, TASK)
    assert world.rflags == 2 | 0x8C1 and not busy(world, NEW) and busy(world, TASK)
    assert world.get(NEW_TSS + 36, 4) == 2 | IF  # NT is not saved
    assert world.get(NEW_TSS + 32, 4) == 0x9801


@pytest.mark.parametrize("how", [JMP, CALL, EVENT])
def test_16_bit_task(how):
    world = prepared(kind=0x81, limit=0x2B)
    put_task_16(world)
    go(world, how)
    cpu = world.cpu
    assert (cpu.rip, cpu.gpr[4], cpu.gpr[0]) == (0x9800, 0xFFFF_0000 | NEW_STACK, 0xFFFF_0010)
    assert cpu.segments[LDTR].selector == LOCAL and cpu.segments[GS].selector == 0
    assert cpu.segments[TR].access == 0x83
    if how == CALL:
        assert world.execute(b"\xcf") == Status.JUMP
        assert world.words(NEW_TSS + 14, 3, 2) == [0x9801, 2 | IF, 0x10]
        assert world.words(NEW_TSS + 34, 4, 2) == [DATA0, CODE32, DATA0, DATA0]
        assert world.cpu.rip == CODE + 7


def test_task_gate_by_call_and_its_privilege():
    world = prepared(cpl=3)
    assert world.execute(b"\x9a\0\0\0\0" + GATE.to_bytes(2, "little")) == Status.JUMP
    assert world.cpu.cpl == 0 and world.cpu.rip == 0x9800
    world = prepared(cpl=3)
    assert go(world, CALL) == Status.FAULT and world.fault() == (GP, NEW)  # the TSS itself has DPL 0
    world.put(GDT + GATE, gate(NEW, 0, 5, dpl=3, present=False)[0])
    assert world.execute(b"\x9a\0\0\0\0" + GATE.to_bytes(2, "little")) == Status.FAULT
    assert world.fault() == (NP, GATE)


def test_virtual_8086_task():
    world = prepared()
    put_task(world, EFLAGS=2 | VM | IF, CS=0x900, SS=0xA00, DS=1, ES=2, FS=3, GS=4, EIP=0x10, ESP=0x20)
    assert go(world, JMP) == Status.JUMP
    cpu = world.cpu
    assert (cpu.cpl, cpu.code_mode, cpu.rip) == (3, 0, 0x10)
    assert [int(cpu.segments[i].base) for i in range(6)] == [0x20, 0x9000, 0xA000, 0x10, 0x30, 0x40]
    assert all(cpu.segments[i].access == 0xF3 and cpu.segments[i].limit == 0xFFFF for i in range(6))


def test_outer_task():
    world = prepared()
    put_task(world, CS=CODE32_3, SS=DATA3, DS=DATA3, ES=CONFORMING, GS=0)
    world.put(GDT + CONFORMING, descriptor(0, 0xFFFF_FFFF, 0xC09F))
    assert go(world, JMP) == Status.JUMP
    assert world.cpu.cpl == 3 and world.cpu.segments[CS].selector == CODE32_3


def test_paging_base_follows():
    world = prepared()
    world.put(0xE000, 0x87, 4)  # 4-MiB page
    put_task(world, CR3=0xE000)
    world.cpu.cr4, world.cpu.cr3 = 0x10, 0xE000
    world.cpu.cr0 |= 1 << 31
    from vmx.mmu.mode import paging_changed

    paging_changed(world.cpu)
    put_task(world, CR3=0xF000)
    world.put(0xF000, 0x87, 4)
    assert go(world, JMP) == Status.JUMP
    assert world.cpu.cr3 == 0xF000


# --- faults of the old task ---------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [JMP, CALL, IRET, EVENT])
@pytest.mark.parametrize(
    "case,vector", [("type", None), ("local", None), ("beyond", None), ("absent", NP), ("limit", TS)]
)
def test_the_new_tss_is_checked(how, case, vector):
    """The old task gets the fault, unchanged. The vector is #TS for IRET, #GP otherwise, where none is given."""
    world = prepared()
    selector, kind, limit = NEW, 0x8B if how == IRET else 0x89, 0x67
    if case == "type":
        kind = 0x89 if how == IRET else 0x8B
    elif case == "local":
        selector = NEW | 4
    elif case == "beyond":
        selector = 0x100
    elif case == "absent":
        kind &= ~0x80
    else:
        limit = 0x66
    world.put(GDT + NEW, descriptor(NEW_TSS, limit, kind))
    before = bytes(world.ram[TSS : TSS + 0x68])
    if how == EVENT:
        world.put(IDT + 8 * 0x21, gate(selector, 0, 5)[0])
        assert deliver(world.cpu, 0x21, EXTERNAL, 0, 0) == Status.DELIVERED
        wanted = vector or GP
        assert world.cpu.rip == HANDLER + 16 * wanted
        assert world.get(int(world.cpu.gpr[4]), 4) == selector & 0xFFFC | 1
    elif how == IRET:
        world.rflags |= NT
        world.put(TSS, selector, 2)
        before = bytes(world.ram[TSS : TSS + 0x68])
        assert world.execute(b"\xcf") == Status.FAULT
        assert world.fault() == (vector or TS, selector & 0xFFFC)
    else:
        if case == "local":  # a far pointer into the LDT: the TSS descriptor is there, which is wrong
            world.put(0x6000 + NEW, descriptor(NEW_TSS, limit, kind))
        world.put(GDT + GATE, gate(selector, 0, 5)[0])
        target = selector if case != "beyond" else GATE
        opcode = b"\xea" if how == JMP else b"\x9a"
        assert world.execute(opcode + b"\0\0\0\0" + target.to_bytes(2, "little")) == Status.FAULT
        assert world.fault() == (vector or GP, selector & 0xFFFC)
    assert bytes(world.ram[TSS : TSS + 0x68]) == before and world.cpu.segments[TR].selector == TASK
    assert busy(world, TASK) == 1


def test_both_tss_must_be_present_first():
    world = prepared()
    world.put(0xE000, 0xF007, 4)
    for page in range(256):
        world.put(0xF000 + 4 * page, page << 12 | (7 if page != NEW_TSS >> 12 else 6), 4)
    world.cpu.cr3, world.cpu.cr4 = 0xE000, 0
    world.cpu.cr0 |= 1 << 31
    from vmx.mmu.mode import paging_changed

    paging_changed(world.cpu)
    before = bytes(world.ram[TSS : TSS + 0x68])
    assert go(world, JMP) == Status.FAULT
    assert world.fault()[0] == PF and world.cpu.fault_address == NEW_TSS
    assert bytes(world.ram[TSS : TSS + 0x68]) == before and busy(world, TASK) and not busy(world, NEW)


# --- faults of the new task ---------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [JMP, EVENT])
@pytest.mark.parametrize(
    "changes,vector,error",
    [
        ({"LDT": 0x54}, TS, 0x54), ({"LDT": 0x200}, TS, 0x200), ({"LDT": TASK}, TS, TASK), ({"LDT": 0}, None, 0),
        ({"CS": 0}, TS, 0), ({"CS": DATA0}, TS, DATA0), ({"CS": 0x200}, TS, 0x200),
        ({"CS": CODE32 | 3}, TS, CODE32), ({"CS": CODE32_3 & ~3}, TS, CODE32_3 & ~3), ({"CS": 0x90}, NP, 0x90),
        ({"SS": 0}, TS, 0), ({"SS": DATA3}, TS, DATA3 & ~3), ({"SS": READ_ONLY}, TS, READ_ONLY),
        ({"SS": DATA0 | 1}, TS, DATA0), ({"SS": ABSENT}, SSF, ABSENT), ({"SS": 0x200}, TS, 0x200),
        ({"DS": 0x98}, TS, 0x98), ({"ES": TASK}, TS, TASK), ({"FS": ABSENT}, NP, ABSENT),
        ({"GS": DATA0 | 3}, TS, DATA0), ({"GS": 0x200}, TS, 0x200), ({"EIP": 0x2_0000}, GP, 0),
    ],
)  # fmt: skip
def test_segments_of_the_new_task(how, changes, vector, error):
    """The switch has happened: TR and the registers are the new task's when the fault comes."""
    world = prepared()
    world.put(GDT + 0x90, descriptor(0, 0xFFFF_FFFF, 0xC01B))  # code, absent
    world.put(GDT + 0x98, descriptor(0, 0xFFFF_FFFF, 0xC099))  # code, execute-only
    if "EIP" in changes:
        world.put(GDT + 0xA0, descriptor(0, 0x1_FFFF, 0x409B))
        changes = {**changes, "CS": 0xA0}
    put_task(world, **changes)
    cpu = world.cpu
    if how == JMP:
        status = go(world, JMP)
        assert status == (Status.FAULT if vector else Status.JUMP)
        assert world.fault() == ((vector, error) if vector else None)
        assert cpu.rip == changes.get("EIP", 0x9800)
    else:
        # a task gate for the fault as well: its TSS shows in which task it came
        world.put(GDT + 0xA8, descriptor(0xD800, 0x67, 0x89))
        for name in "CR3 EIP EFLAGS ESP ES CS SS DS FS GS LDT".split():
            value = {"EIP": 0x9900, "EFLAGS": 2, "ESP": 0xB800, "CS": CODE32, "SS": DATA0}.get(name, 0)
            world.put(0xD800 + field32(name), value, 4)
        world.put(IDT + 8 * (vector or 0), gate(0xA8, 0, 5)[0])
        assert go(world, EVENT) == Status.DELIVERED
        if vector:
            assert cpu.rip == 0x9900 and world.get(0xD800, 2) == NEW
            assert world.get(0xB7FC, 4) == error | 1 and cpu.gpr[4] == 0xB7FC
    if not vector:
        assert cpu.rip == 0x9800
    assert busy(world, NEW)


# --- events -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wide", [True, False])
def test_error_code_on_the_new_stack(wide):
    world = prepared() if wide else prepared(kind=0x81, limit=0x2B)
    if not wide:
        put_task_16(world)
        world.put(GDT + 0x90, descriptor(0, 0xFFFF, 0x93))
        world.put(NEW_TSS + 38, 0x90, 2)
    world.put(IDT + 8 * GP, gate(NEW, 0, 5)[0])
    cpu = world.cpu
    cpu.fault, cpu.fault_vector, cpu.fault_error = 2, GP, 0x1234
    assert deliver_fault(cpu) == Status.DELIVERED
    size = 4 if wide else 2
    assert cpu.gpr[4] & 0xFFFF == NEW_STACK - size and world.get(NEW_STACK - size, size) == 0x1234
    assert world.words(TSS + 32, 2, 4) == [CODE, 2 | 0x8C1 | RF]  # the fault restarts its instruction


def test_error_code_that_does_not_fit():
    world = prepared()
    world.put(GDT + 0x90, descriptor(0, 0xFFF, 0x4093))
    put_task(world, SS=0x90)
    world.put(IDT + 8 * GP, gate(NEW, 0, 5)[0])
    world.put(IDT + 8 * DF, gate(0xA8, 0, 5)[0])
    world.put(GDT + 0xA8, descriptor(0xD800, 0x67, 0x89))
    for name, value in {"EIP": 0x9900, "EFLAGS": 2, "ESP": 0xB800, "CS": CODE32, "SS": DATA0}.items():
        world.put(0xD800 + field32(name), value, 4)
    cpu = world.cpu
    cpu.fault, cpu.fault_vector, cpu.fault_error = 2, GP, 0x1234
    assert deliver_fault(cpu) == Status.DELIVERED
    assert cpu.rip == 0x9900 and world.get(0xB7FC, 4) == 0  # #GP, then #SS: a double fault, in the new task
    assert world.get(0xD800, 2) == NEW


def test_trap_of_the_new_task():
    world = prepared()
    world.put(NEW_TSS + 100, 1, 2)
    assert go(world, JMP) == Status.JUMP
    assert handle_attention(world.cpu) == Status.DELIVERED
    assert world.cpu.rip == HANDLER + 16 * DB and world.cpu.dr[6] & 0xF00F == 0x8000
    assert world.get(int(world.cpu.gpr[4]), 4) == 0x9800


def test_long_mode_has_no_tasks():
    world = World("compat")
    world.put(GDT + NEW, descriptor(NEW_TSS, 0x67, 0x89))
    assert go(world, JMP) == Status.FAULT and world.fault() == (GP, NEW)
    world.rflags |= NT
    assert world.execute(b"\xcf") == Status.FAULT and world.fault() == (GP, 0)


@pytest.mark.parametrize("how,source", [(CALL, 0), (IRET, 1), (JMP, 2), (EVENT, 3)])
def test_non_root_operation_exits(how, source):
    """After the checks of the new TSS, before anything of the switch."""
    world = prepared()
    world.vmcs = np.zeros(VMCS.size + 64, np.uint8)
    cpu = world.cpu
    cpu.host_vmcs = host_address(world.vmcs)
    cpu.non_root = cpu.python_hypervisor = 1
    assert go(world, how) == Status.EXIT
    vmcs = VMCS.view(host_address(world.vmcs))
    assert (vmcs.exit_reason, vmcs.exit_qualification) == (9, NEW | source << 30)
    assert vmcs.vm_exit_instruction_length == {CALL: 7, IRET: 1, JMP: 7, EVENT: 0}[how]
    assert vmcs.idt_vectoring_info == (0x8000_0021 if how == EVENT else 0)
    assert vmcs.guest_rip == CODE and vmcs.guest_tr_selector == TASK
    assert world.get(TSS + 32, 4) == 0


def test_non_root_operation_checks_first():
    world = prepared(kind=0x8B)
    world.cpu.non_root = 1
    assert go(world, JMP) == Status.FAULT and world.fault() == (GP, NEW)

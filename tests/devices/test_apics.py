"""Local APIC, I/O APIC and their wiring."""

import pytest

from vmx.devices import lapic as la
from vmx.devices.interrupts import InterruptSystem
from vmx.devices.lapic import LocalApic


@pytest.fixture
def lapic(time):
    lapic = LocalApic(time.clock, eoi=lambda vector: eois.append(vector))
    eois = lapic.eois = []
    lapic.write(la.SVR, 4, 0x1FF)
    return lapic


def test_priorities_and_eoi(lapic):
    lapic.accept(0x41), lapic.accept(0x52, True), lapic.accept(0x45)
    assert lapic.acknowledge() == 0x52 and lapic.read(la.PPR, 4) == 0x50
    assert not lapic.has_interrupt() and lapic.read(la.ISR + 0x20, 4) == 1 << 0x12
    lapic.write(la.EOI, 4, 0)
    assert lapic.eois == [0x52] and lapic.acknowledge() == 0x45
    assert not lapic.has_interrupt()  # 0x41 is of the same class
    lapic.write(la.EOI, 4, 0)
    lapic.write(la.TPR, 4, 0x40)
    assert not lapic.has_interrupt() and lapic.acknowledge() == 0xFF
    lapic.write(la.TPR, 4, 0x30)
    assert lapic.acknowledge() == 0x41 and lapic.eois == [0x52]


def test_timer_modes(lapic, time):
    lapic.write(la.DIVIDE, 4, 0x3)  # by 16
    lapic.write(la.LVT_TIMER, 4, 0x20030)
    lapic.write(la.INITIAL_COUNT, 4, 1000)
    time.to(15_999)
    assert not lapic.has_interrupt() and lapic.read(la.CURRENT_COUNT, 4) == 1
    time.to(16_000)
    assert lapic.acknowledge() == 0x30 and lapic.next_event() == 32_000
    lapic.write(la.EOI, 4, 0)
    lapic.write(la.LVT_TIMER, 4, 0x31)
    assert lapic.next_event() is None
    lapic.write(la.INITIAL_COUNT, 4, 10)
    time.advance(1000)
    assert lapic.acknowledge() == 0x31 and lapic.read(la.CURRENT_COUNT, 4) == 0
    lapic.write(la.EOI, 4, 0)
    lapic.write(la.LVT_TIMER, 4, 0x40032)
    assert lapic.write_msr(la.IA32_TSC_DEADLINE, time.ns + 500)
    time.advance(499)
    assert not lapic.has_interrupt()
    time.advance(1)
    assert lapic.acknowledge() == 0x32 and lapic.read_msr(la.IA32_TSC_DEADLINE) == (True, 0)


def test_apic_base_transitions(lapic):
    base = lapic.base
    assert not lapic.write_msr(0x1B, base & ~la.BASE_EN | la.BASE_EXTD)
    assert not lapic.write_msr(0x1B, base | 1)
    assert lapic.read_msr(0x802) == (False, 0)
    assert lapic.write_msr(0x1B, base | la.BASE_EXTD)
    assert lapic.read(la.ID, 4) == 0xFFFF_FFFF
    assert not lapic.write_msr(0x1B, base)
    assert lapic.write_msr(0x1B, base & ~la.BASE_EN)
    assert not lapic.write_msr(0x1B, base | la.BASE_EXTD)
    assert lapic.write_msr(0x1B, base) and lapic.svr == 0xFF


def test_x2apic_msrs(lapic):
    lapic.write_msr(0x1B, lapic.base | la.BASE_EXTD)
    assert lapic.read_msr(0x803) == (True, la.VERSION_VALUE)
    assert lapic.read_msr(0x80D) == (True, 1)
    assert (
        not lapic.write_msr(0x80D, 1)
        and not lapic.write_msr(0x80B, 1)
        and not lapic.write_msr(0x808, 1 << 32)
    )
    assert lapic.read_msr(0x80E) == (False, 0) and lapic.read_msr(0x83F) == (False, 0)
    assert lapic.write_msr(0x83F, 0x77) and lapic.acknowledge() == 0x77
    assert lapic.write_msr(0x80B, 0)
    assert lapic.write_msr(0x830, 0x40078) and lapic.acknowledge() == 0x78


def test_software_disable_and_error(lapic):
    lapic.write(la.LVT_ERROR, 4, 0xFE)
    lapic.write(la.ICR_LOW, 4, 0x40005)
    assert lapic.acknowledge() == 0xFE
    assert lapic.read(la.ESR, 4) == 0
    lapic.write(la.ESR, 4, 0)
    assert lapic.read(la.ESR, 4) == la.ESR_SEND_ILLEGAL
    lapic.write(la.SVR, 4, 0xFF)
    lapic.write(la.LVT_TIMER, 4, 0x30)
    assert lapic.read(la.LVT_TIMER, 4) == 0x10030


def pic_ready(system):
    for offset, value in (
        (0, 0x11),
        (1, 0x30),
        (1, 4),
        (1, 1),
        (1, 0),
        (2, 0x11),
        (3, 0x38),
        (3, 2),
        (3, 1),
        (3, 0),
    ):
        system.pic.write(offset, 1, value)


def test_virtual_wire(time):
    changes = []
    system = InterruptSystem(time.clock, intr=lambda cpu, level: changes.append((cpu, level)))
    pic_ready(system)
    system.isa[4].set(True)
    assert not system.pending(0)
    system.virtual_wire()
    assert system.pending(0) and system.acknowledge(0) == 0x34
    assert not system.pending(0) and changes == [(0, True), (0, False)]
    system.lapics[0].write_msr(0x1B, 0xFEE0_0000)  # disabled: INTR goes straight in
    system.isa[1].set(True)
    assert system.acknowledge(0) == 0x31


def redirect(system, pin, low, high=0):
    for register, value in ((0x11 + 2 * pin, high), (0x10 + 2 * pin, low)):
        system.ioapic.write(0x00, 4, register)
        system.ioapic.write(0x10, 4, value)


def test_ioapic_edge_level_and_eoi(time):
    system = InterruptSystem(time.clock)
    lapic = system.lapics[0]
    lapic.write(la.SVR, 4, 0x1FF)
    redirect(system, 2, 0x50)
    system.isa[0].pulse()
    assert system.acknowledge(0) == 0x50
    lapic.write(la.EOI, 4, 0)
    redirect(system, 9, 0x8060)
    system.isa[9].set(True)
    assert system.acknowledge(0) == 0x60
    system.ioapic.write(0, 4, 0x10 + 18)
    assert system.ioapic.read(0x10, 4) == 0x8060 | 1 << 14
    lapic.write(la.EOI, 4, 0)
    assert system.pending(0) and system.acknowledge(0) == 0x60  # still asserted
    system.isa[9].set(False)
    lapic.write(la.EOI, 4, 0)
    assert not system.pending(0)
    redirect(system, 4, 0x10070)
    system.isa[4].pulse()
    redirect(system, 4, 0x70)
    assert not system.pending(0)  # an edge while masked is lost
    system.ioapic.write(0, 4, 1)
    assert system.ioapic.read(0x10, 4) == 0x170020


def test_logical_destinations_and_ipis(time):
    events = []
    system = InterruptSystem(
        time.clock,
        cpus=3,
        init=lambda cpu: events.append(("init", cpu)),
        startup=lambda cpu, vector: events.append(("sipi", cpu, vector)),
        nmi=lambda cpu: events.append(("nmi", cpu)),
    )
    for cpu, lapic in enumerate(system.lapics):
        lapic.write(la.SVR, 4, 0x1FF)
        lapic.write(la.LDR, 4, 1 << (24 + cpu))
    redirect(system, 4, 0x850, 0x06 << 24)
    system.isa[4].pulse()
    assert [system.pending(cpu) for cpu in range(3)] == [False, True, True]
    redirect(system, 5, 0x960, 0x07 << 24)  # lowest priority: one of them
    system.lapics[0].write(la.TPR, 4, 0x20)
    assert system.acknowledge(1) == 0x50 and system.acknowledge(2) == 0x50
    system.isa[5].pulse()
    assert [system.pending(cpu) for cpu in range(3)] == [True, False, False]
    first = system.lapics[0]
    (
        first.write(la.ICR_LOW, 4, 0xC4500),
        first.write(la.ICR_HIGH, 4, 2 << 24),
        first.write(la.ICR_LOW, 4, 0x4608),
    )
    first.write(la.ICR_LOW, 4, 0x4400)
    assert events == [("init", 1), ("init", 2), ("sipi", 2, 8), ("nmi", 2)]


def test_system_round_trip(time):
    system = InterruptSystem(time.clock, cpus=2)
    system.virtual_wire()
    pic_ready(system)
    system.isa[3].set(True)
    copy = InterruptSystem(time.clock, cpus=2)
    copy.load(system.state())
    assert copy.state() == system.state() and copy.pending(0) and copy.acknowledge(0) == 0x33
    with pytest.raises(ValueError, match="2 CPUs"):
        InterruptSystem(time.clock).load(system.state())

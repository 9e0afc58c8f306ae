"""8259A pair and 8254."""

import pytest

from vmx.devices.bus import Line
from vmx.devices.pic import PicPair
from vmx.devices.pit import PIT_HZ, Pit8254, SystemControlB, time_of


@pytest.fixture
def pic():
    pic = PicPair()
    for base, vector, icw3 in ((0, 0x30, 4), (2, 0x38, 2)):
        for offset, value in ((0, 0x11), (1, vector), (1, icw3), (1, 1), (1, 0)):
            pic.write(base + offset, 1, value)
    return pic


def test_priority_nesting_and_eoi(pic):
    pic.set_irq(4, True), pic.set_irq(1, True)
    assert pic.intr.level and pic.acknowledge() == 0x31
    assert not pic.intr.level  # IRQ 4 waits for IRQ 1's end
    pic.write(0, 1, 0x20)
    assert pic.acknowledge() == 0x34
    pic.write(0, 1, 0x0B)
    assert pic.read(0, 1) == 0x10
    pic.write(0, 1, 0x64)  # specific EOI
    assert pic.read(0, 1) == 0


def test_cascade_mask_and_spurious(pic):
    pic.set_irq(12, True)
    assert pic.acknowledge() == 0x3C
    pic.write(2, 1, 0x20), pic.write(0, 1, 0x20)
    pic.set_irq(5, True)
    pic.write(1, 1, 0xFF)
    assert not pic.intr.level and pic.acknowledge() == 0x37
    assert pic.read(1, 1) == 0xFF


def test_level_triggered_by_elcr(pic):
    pic.write(5, 1, 0xFF)
    assert pic.read(5, 1) == 0xDE
    pic.set_irq(11, True)
    assert pic.acknowledge() == 0x3B
    pic.write(2, 1, 0x20), pic.write(0, 1, 0x20)
    assert pic.intr.level  # still asserted
    pic.set_irq(11, False)
    assert not pic.intr.level


def test_rotation_poll_and_aeoi(pic):
    pic.write(0, 1, 0xC0 | 3)  # IRQ 3 lowest, so 4 is highest
    pic.set_irq(0, True), pic.set_irq(4, True)
    pic.write(0, 1, 0x0C)
    assert pic.read(0, 1) == 0x84
    pic.write(0, 1, 0xA0)  # rotating EOI: now 5 is highest, 4 lowest
    assert pic.acknowledge() == 0x30


def test_special_mask(pic):
    pic.set_irq(1, True)
    pic.acknowledge()
    pic.set_irq(6, True)
    assert not pic.intr.level
    pic.write(1, 1, 0x02), pic.write(0, 1, 0x68)
    assert pic.intr.level and pic.acknowledge() == 0x36


def count(pit, channel):
    pit.write(3, 1, channel << 6)
    return pit.read(channel, 1) | pit.read(channel, 1) << 8


def program(pit, channel, mode, value, bcd=0):
    pit.write(3, 1, channel << 6 | 0x30 | mode << 1 | bcd)
    pit.write(channel, 1, value & 0xFF), pit.write(channel, 1, value >> 8)


def test_mode_2_interrupts(time):
    edges = []
    pit = Pit8254(time.clock, Line(lambda level: edges.append(level)))
    program(pit, 0, 2, 11932)
    edges.clear()
    time.to(1_000_000_000)
    assert edges.count(True) == PIT_HZ // 11932


@pytest.mark.parametrize("mode, first_rise", [(0, 101), (4, 102)])
def test_one_shot_modes_interrupt_once(time, mode, first_rise):
    rises = []
    pit = Pit8254(time.clock, Line(lambda level: level and rises.append(time.ns)))
    program(pit, 0, mode, 100)
    rises.clear()
    time.to(10_000_000)
    assert rises == [time_of(first_rise)]


@pytest.mark.parametrize("mode, bcd, after, expected", [
    (0, 0, 11, 990), (2, 0, 1001, 1000), (3, 0, 11, 980), (0, 1, 1, 0x1000), (0, 1, 2, 0x0999),
])  # fmt: skip
def test_counts(time, mode, bcd, after, expected):
    pit = Pit8254(time.clock, Line())
    program(pit, 0, mode, 0x1000 if bcd else 1000, bcd)
    time.to(time_of(after))
    assert count(pit, 0) == expected


def test_new_count_of_periodic_mode_waits_for_the_period(time):
    pit = Pit8254(time.clock, Line())
    program(pit, 0, 2, 100)
    time.to(time_of(1 + 250))
    pit.write(0, 1, 0xE8), pit.write(0, 1, 0x03)
    assert count(pit, 0) == 50
    time.to(time_of(1 + 300))
    assert count(pit, 0) == 1000


def test_read_back_status(time):
    pit = Pit8254(time.clock, Line())
    pit.write(3, 1, 0x34)
    pit.write(3, 1, 0xE2)
    assert pit.read(0, 1) == 0x80 | 0x40 | 0x34
    pit.write(0, 1, 0), pit.write(0, 1, 0)
    time.to(time_of(5))
    pit.write(3, 1, 0xC2)  # status and count: status comes first
    assert pit.read(0, 1) == 0xB4
    assert pit.read(0, 1) | pit.read(0, 1) << 8 == 0x10000 - 4


def test_channel_2_through_port_61(time):
    pit = Pit8254(time.clock, Line())
    port = SystemControlB(time.clock, pit)
    port.write(0, 1, 0)
    program(pit, 2, 0, 1193)
    time.to(time_of(5000))
    assert not port.read(0, 1) & 0x20  # gate low: not counting
    port.write(0, 1, 1)
    time.to(time.ns + 900_000)
    assert not port.read(0, 1) & 0x20
    time.to(time.ns + 110_000)
    assert port.read(0, 1) & 0x20
    before = port.read(0, 1)
    time.advance(15_085)
    assert (before ^ port.read(0, 1)) & 0x10


def test_mode_1_is_started_by_its_gate(time):
    pit = Pit8254(time.clock, Line())
    program(pit, 2, 1, 100)
    assert pit.out2()
    pit.set_gate2(True)
    time.to(time_of(50))
    assert not pit.out2()
    time.to(time_of(102))
    assert pit.out2()

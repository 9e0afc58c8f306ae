"""Buses, lines and the clock."""

import pytest

from vmx.devices.bus import Line, MmioBus, PortBus
from vmx.devices.device import Device
from vmx.devices.pci import PciConfig
from vmx.devices.reset import ResetControl


class Bytes(Device):
    def __init__(self, sizes=(1,)):
        self.access_sizes = sizes
        self.log = []

    def read(self, offset, size):
        return offset

    def write(self, offset, size, value):
        self.log.append((offset, size, value))


@pytest.mark.parametrize("bus_class", [PortBus, MmioBus])
def test_split_unclaimed_overlap(bus_class):
    bus, device = bus_class(), Bytes()
    bus.attach(0x100, 4, device, "first")
    assert bus.read(0x100, 4) == 0x03020100
    assert bus.read(0x102, 4) == 0xFFFF0302
    bus.write(0x101, 2, 0xABCD)
    assert device.log == [(1, 1, 0xCD), (2, 1, 0xAB)]
    assert bus.read(0x200, 2) == 0xFFFF and bus.read(0xFFFF, 4) == 0xFFFF_FFFF
    bus.write(0x200, 1, 1)
    assert bus.unclaimed_reads[0x200] == 1 and bus.unclaimed_writes[0x200] == 1
    with pytest.raises(ValueError, match="second.*first"):
        bus.attach(0x103, 2, Bytes(), "second")
    bus.detach(device)
    assert bus.read(0x100, 1) == 0xFF


def test_hooks():
    bus, device, seen = PortBus(), Bytes(), []
    bus.attach(0x10, 4, device, "d")
    remove = bus.hook(0x11, 1, lambda *a: seen.append(a) or (0x1FF if a[0] == "read" else None))
    assert bus.read(0x11, 1) == 0xFF and bus.read(0x10, 1) == 0
    bus.write(0x11, 1, 5)
    assert device.log == [(1, 1, 5)]
    assert seen == [("read", 0x11, 1, None), ("write", 0x11, 1, 5)]
    remove()
    assert bus.read(0x11, 1) == 1


def test_wired_or():
    levels = []
    line = Line(levels.append)
    a, b = line.input(), line.input()
    a.set(True), b.set(True), a.set(False), b.set(False)
    line.pulse()
    assert levels == [True, False, True, False]


def test_reset_control_inside_config_address():
    bus, resets = PortBus(), []
    bus.attach_device(PciConfig(ResetControl(resets.append)), "pci")
    bus.write(0xCF8, 4, 0x8000_0000 | 0x600)
    assert resets == [] and bus.read(0xCF8, 4) == 0x8000_0600
    assert bus.read(0xCFC, 4) == 0xFFFF_FFFF and bus.read(0xCFE, 2) == 0xFFFF
    bus.write(0xCF9, 1, 0x02), bus.write(0xCF9, 1, 0x06)
    assert resets == [True] and bus.read(0xCF8, 4) == 0x8000_0600


def test_clock_order(time):
    ran = []
    for key, at in (("a", 50), ("b", 20), ("c", 20), ("d", None)):
        time.clock.set_event(key, at, lambda now, key=key: ran.append(key))
    assert time.clock.next_event() == 20
    time.ns = 100
    assert time.clock.run_due() == 3 and ran == ["b", "c", "a"]
    assert time.clock.next_event() is None
    time.clock.set_event("c", 200, ran.append)
    time.clock.cancel("c")
    assert time.clock.next_event() is None

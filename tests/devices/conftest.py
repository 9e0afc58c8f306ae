"""A clock that the test moves, and one instance of every device."""

import pytest

from vmx.devices.acpi_pm import AcpiPm
from vmx.devices.bus import Line
from vmx.devices.debug_exit import DebugExit
from vmx.devices.debug_ports import DebugConsole, PostCode
from vmx.devices.fw_cfg import FwCfg
from vmx.devices.i8042 import I8042
from vmx.devices.interrupts import ApicBus, LocalApicPage
from vmx.devices.ioapic import IoApic
from vmx.devices.lapic import LocalApic
from vmx.devices.pci import PciConfig
from vmx.devices.pic import PicPair
from vmx.devices.pit import Pit8254, SystemControlB
from vmx.devices.reset import ResetControl, SystemControlA
from vmx.devices.rtc import Rtc
from vmx.devices.uart import Uart16550
from vmx.devices.vga import Vga
from vmx.machine.clock import Clock


class Time:
    """Virtual time in the test's hands."""

    def __init__(self):
        self.ns = 0
        self.clock = Clock(lambda: self.ns)

    def advance(self, ns):
        self.to(self.ns + ns)

    def to(self, ns):
        """Stops at every event on the way, as the machine does."""
        while self.clock.next_event() is not None and self.clock.next_event() <= ns:
            self.ns = max(self.ns, self.clock.next_event())
            self.clock.run_due()
        self.ns = ns


@pytest.fixture
def time():
    return Time()


def ignore(*_):
    return None


def lapic_with_bus(time):
    bus = ApicBus()
    lapic = LocalApic(time.clock, ipi=bus.ipi)
    bus.lapics.append(lapic)
    return lapic


def ioapic(time):
    bus = ApicBus()
    bus.lapics.append(LocalApic(time.clock))
    return IoApic(bus)


# name -> (factory(time), length of the register window)
DEVICES = {
    "uart": (lambda t: Uart16550(t.clock, Line(), ignore), 8),
    "pic": (lambda t: PicPair(), 6),
    "pit": (lambda t: Pit8254(t.clock, Line()), 4),
    "port61": (lambda t: SystemControlB(t.clock, Pit8254(t.clock, Line())), 1),
    "rtc": (lambda t: Rtc(t.clock, Line()), 2),
    "i8042": (lambda t: I8042(Line(), ignore), 5),
    "lapic": (lapic_with_bus, 0x1000),
    "lapic_page": (lambda t: LocalApicPage([lapic_with_bus(t)]), 0x1000),
    "ioapic": (ioapic, 0x1000),
    "acpi_pm": (lambda t: AcpiPm(t.clock, Line(), ignore, ignore), 0x14),
    "reset": (lambda t: ResetControl(ignore), 1),
    "port92": (lambda t: SystemControlA(ignore), 1),
    "fw_cfg": (lambda t: FwCfg(lambda a, n: bytes(n), lambda a, d: a < 1 << 32, files={"x": b"y"}), 12),
    "pci": (lambda t: PciConfig(ResetControl(ignore)), 8),
    "debug_exit": (lambda t: DebugExit(ignore), 4),
    "debug_console": (lambda t: DebugConsole(ignore), 1),
    "post_code": (lambda t: PostCode(), 1),
    "vga": (lambda t: Vga(t.clock), 0x30),
}

"""RTC, i8042, ACPI PM, fw_cfg, PCI, VGA, debug ports."""

import struct
from datetime import UTC, datetime

import pytest

from vmx.devices import acpi_pm as pm
from vmx.devices import fw_cfg as fw
from vmx.devices import rtc as r
from vmx.devices.acpi_pm import AcpiPm
from vmx.devices.bus import Line, PortBus
from vmx.devices.debug_ports import DebugConsole
from vmx.devices.fw_cfg import FwCfg, e820_table
from vmx.devices.i8042 import I8042
from vmx.devices.pci import PciConfig
from vmx.devices.reset import SystemControlA
from vmx.devices.rtc import Rtc
from vmx.devices.vga import Vga

SECOND = 1_000_000_000


def cmos(rtc, index, value=None):
    rtc.write(0, 1, index)
    if value is None:
        return rtc.read(1, 1)
    rtc.write(1, 1, value)


def date(rtc):
    return [cmos(rtc, i) for i in (r.CENTURY, r.YEAR, r.MONTH, r.DAY, r.HOURS, r.MINUTES, r.SECONDS)]


@pytest.mark.parametrize("when", [
    datetime(1999, 12, 31, 23, 59, 59), datetime(2024, 2, 29, 12, 0, 1), datetime(2100, 3, 1, 0, 30, 0),
])  # fmt: skip
def test_rtc_date_and_formats(time, when):
    rtc = Rtc(time.clock, Line(), start=int(when.replace(tzinfo=UTC).timestamp()))
    assert date(rtc) == [int(x, 16) for x in when.strftime("%C %y %m %d %H %M %S").split()]
    assert cmos(rtc, r.DAY_OF_WEEK) == when.isoweekday() % 7 + 1
    cmos(rtc, r.REG_B, r.B_DM)  # binary, 12 hours
    assert cmos(rtc, r.HOURS) == (when.hour % 12 or 12) | (0x80 if when.hour >= 12 else 0)
    assert cmos(rtc, r.YEAR) == when.year % 100


def test_rtc_set_time_and_uip(time):
    rtc = Rtc(time.clock, Line(), start=0)
    time.to(SECOND - 2_228_000)
    assert cmos(rtc, r.REG_A) == 0xA6
    time.to(SECOND)
    assert cmos(rtc, r.REG_A) == 0x26 and cmos(rtc, r.SECONDS) == 1
    cmos(rtc, r.REG_B, r.B_SET | r.B_24H)
    for index, value in ((r.CENTURY, 0x20), (r.YEAR, 0x24), (r.MONTH, 0x12), (r.DAY, 0x31), (r.HOURS, 0x23),
                         (r.MINUTES, 0x59), (r.SECONDS, 0x58)):  # fmt: skip
        cmos(rtc, index, value)
    time.advance(5 * SECOND)
    assert cmos(rtc, r.SECONDS) == 0x58
    cmos(rtc, r.REG_B, r.B_24H)
    time.advance(3 * SECOND)
    assert date(rtc) == [0x20, 0x25, 1, 1, 0, 0, 1]


def test_rtc_interrupts(time):
    irq = Line()
    rtc = Rtc(time.clock, irq, start=0)
    assert rtc.next_event() is None
    cmos(rtc, r.REG_C)
    cmos(rtc, r.REG_B, r.B_24H | r.B_UIE)
    time.to(SECOND)
    assert irq.level and cmos(rtc, r.REG_C) == r.C_IRQF | r.C_UF | r.C_PF and not irq.level
    cmos(rtc, r.SECONDS_ALARM, 0x05), cmos(rtc, r.MINUTES_ALARM, 0xFF), cmos(rtc, r.HOURS_ALARM, 0xFF)
    cmos(rtc, r.REG_B, r.B_24H | r.B_AIE)
    assert rtc.next_event() == 5 * SECOND
    time.to(5 * SECOND)
    assert irq.level and cmos(rtc, r.REG_C) & (r.C_IRQF | r.C_AF) == r.C_IRQF | r.C_AF
    assert rtc.next_event() == 65 * SECOND
    cmos(rtc, r.REG_B, r.B_24H | r.B_PIE)
    count = 0
    while time.ns < 6 * SECOND:
        time.to(rtc.next_event())
        count += bool(cmos(rtc, r.REG_C) & r.C_PF)
    assert count == 1024


def test_i8042(time):
    resets, gates, irq = [], [], Line()
    kbc = I8042(irq, lambda: resets.append(1), gates.append)

    def command(code, *data):
        kbc.write(4, 1, code)
        for byte in data:
            kbc.write(0, 1, byte)
        return kbc.read(4, 1), kbc.read(0, 1)

    assert command(0xAA)[1] == 0x55 and not kbc.read(4, 1) & 1
    assert command(0xAB)[1] == 0 and command(0x20)[1] == 0x45
    assert command(0xD3, 0x5A) == (0x15, 0x5A)  # no AUX bit: no such port
    kbc.write(0, 1, 0xF2)
    assert irq.level and kbc.read(4, 1) & 0x41 == 0x41 and kbc.read(0, 1) == 0xFE and not irq.level
    command(0xD1, 0xDD), command(0xD1, 0xDF)
    assert gates == [False, True]
    command(0xFE)
    assert resets == [1]


def test_acpi_pm(time):
    calls, sci = [], Line()
    acpi = AcpiPm(time.clock, sci, lambda: calls.append("off"), lambda: calls.append("reset"), timer_bits=24)
    time.to(SECOND)
    assert acpi.read(pm.PM_TMR, 4) == 3_579_545
    assert acpi.read(pm.PM1_CNT, 2) == 1
    acpi.write(pm.PM1_EN, 2, pm.TMR_STS | pm.PWRBTN_STS)
    time.to(acpi.next_event())
    assert sci.level and acpi.read(pm.PM_TMR, 4) == 1 << 23
    acpi.write(pm.PM1_STS, 2, pm.TMR_STS)
    assert not sci.level
    acpi.press_power_button()
    assert sci.level and acpi.read(pm.PM1_STS, 2) == pm.PWRBTN_STS
    acpi.write(pm.PM1_CNT, 2, 1 << 10 | pm.SLP_EN)
    assert calls == [] and acpi.read(pm.PM1_STS, 2) & pm.WAK_STS
    acpi.write(pm.RESET_REG, 1, 6)
    acpi.write(pm.PM1_CNT, 2, 5 << 10 | pm.SLP_EN)
    assert calls == ["reset", "off"]


def test_fw_cfg_ports_and_dma():
    memory = bytearray(0x1000)

    def store(address, data):
        if address + len(data) > len(memory):
            return False
        memory[address : address + len(data)] = data
        return True

    def fetch(address, length):
        return bytes(memory[address : address + length]) if address + length <= len(memory) else None

    device = FwCfg(fetch, store, ram_size=1 << 30, cpus=2, files={"etc/e820": e820_table([(0, 0xA0000, 1)])})
    bus = PortBus()
    bus.attach_device(device, "fw_cfg")

    def item(key, length):
        bus.write(0x510, 2, key)
        return bytes(bus.read(0x511, 1) for _ in range(length))

    assert item(0, 5) == b"QEMU\0" and item(fw.RAM_SIZE, 8) == struct.pack("<Q", 1 << 30)
    count, size, key, _, name = struct.unpack(">IIHH56s", item(fw.FILE_DIR, 68))
    assert (count, size, key, name.rstrip(b"\0")) == (1, 20, 0x20, b"etc/e820")
    assert bus.read(0x514, 4).to_bytes(4, "little") + bus.read(0x518, 4).to_bytes(4, "little") == b"QEMU CFG"

    def dma(control, length, address):
        store(0x100, struct.pack(">IIQ", control, length, address))
        bus.write(0x514, 4, 0)
        bus.write(0x518, 4, int.from_bytes((0x100).to_bytes(4, "big"), "little"))
        return struct.unpack(">I", fetch(0x100, 4))[0]

    assert dma(0x20 << 16 | 8 | 2, 24, 0x200) == 0
    assert fetch(0x200, 24) == struct.pack("<QQI", 0, 0xA0000, 1) + bytes(4)
    assert dma(0x20 << 16 | 8 | 2, 0xFFFF_FFFF, 0xFFF0) == 1
    device.add_kernel(b"kernel", cmdline=b"quiet")
    assert item(fw.CMDLINE_DATA, 6) == b"quiet\0" and item(fw.KERNEL_SIZE, 4) == struct.pack("<I", 6)


def test_pci_functions():
    class Bridge:
        def read_config(self, offset, size):
            return int.from_bytes(bytes(range(offset, offset + size)), "little")

        def write_config(self, offset, size, value):
            self.written = (offset, size, value)

    pci, bridge = PciConfig(), Bridge()
    pci.attach(0, 3, 1, bridge)
    with pytest.raises(ValueError, match="00:03.1"):
        pci.attach(0, 3, 1, bridge)
    pci.write(0, 4, 1 << 31 | 3 << 11 | 1 << 8 | 0x10)
    assert pci.read(4, 4) == 0x13121110 and pci.read(6, 2) == 0x1312
    pci.write(7, 1, 0xAB)
    assert bridge.written == (0x13, 1, 0xAB)
    pci.write(0, 4, 1 << 31)
    assert pci.read(4, 4) == 0xFFFF_FFFF


def test_vga_cursor_text_and_retrace(time):
    bus, vga = PortBus(), Vga(time.clock)
    bus.attach_device(vga, "vga")
    bus.write(0x3D4, 2, 0x0E | 0x01 << 8)
    bus.write(0x3D4, 1, 0x0F), bus.write(0x3D5, 1, 0x42)
    assert bus.read(0x3D5, 1) == 0x42 and vga.cursor == divmod(0x142, 80)
    memory = bytearray(b" \x07" * 2000)
    memory[160:170] = b"h\x07e\x07l\x07l\x07o\x07"
    assert vga.screen_text(memory).split("\n")[1] == "hello"
    seen = set()
    for _ in range(2000):
        time.ns += 15_000
        seen.add(bus.read(0x3DA, 1))
    assert seen == {0, 1, 9}
    bus.write(0x3C0, 1, 0x10), bus.write(0x3C0, 1, 0x0C)
    assert bus.read(0x3C1, 1) == 0x0C


def test_small_ports():
    out, resets = bytearray(), []
    console = DebugConsole(out.extend)
    console.write(0, 1, 0x41)
    assert out == b"A" and console.read(0, 1) == 0xE9
    port = SystemControlA(lambda: resets.append(1))
    port.write(0, 1, 3), port.write(0, 1, 3)
    assert resets == [1]

"""The motherboard: buses, devices and their wiring, the clock. It knows processors only by their pins.

`Pins` is what the platform asks of its surroundings; everything else (who runs the processors, and whether a
hypervisor stands between them and the devices) is above it.
"""

from collections.abc import Callable
from dataclasses import dataclass

from vmx.devices.acpi_pm import AcpiPm
from vmx.devices.bus import MmioBus, PortBus
from vmx.devices.debug_exit import DebugExit
from vmx.devices.debug_ports import DebugConsole, PostCode
from vmx.devices.fw_cfg import FwCfg
from vmx.devices.i8042 import I8042
from vmx.devices.interrupts import InterruptSystem
from vmx.devices.pci import PciConfig
from vmx.devices.pit import Pit8254, SystemControlB
from vmx.devices.reset import ResetControl, SystemControlA
from vmx.devices.rtc import Rtc
from vmx.devices.uart import Uart16550
from vmx.devices.vga import Vga
from vmx.machine.clock import Clock
from vmx.machine.memory import Memory

COM1_IRQ, RTC_IRQ, KEYBOARD_IRQ, SCI_IRQ = 4, 8, 1, 9

PIC_SETUP = (
    (0x20, 0x11), (0xA0, 0x11), (0x21, 0x08), (0xA1, 0x70), (0x21, 4), (0xA1, 2), (0x21, 1), (0xA1, 1),
    (0x21, 0xFB), (0xA1, 0xFF),
)  # fmt: skip


@dataclass
class Pins:
    """What the platform can do to the rest of the machine."""

    interrupt: Callable[[int, bool], None]  # INTR of a processor
    nmi: Callable[[int], None]
    poweroff: Callable[[], None]
    reset: Callable[[], None]
    debug_exit: Callable[[int], None]
    serial_output: Callable[[bytes], None]


class Platform:
    """A PC: devices by name in `devices`, `ports` and `mmio` buses, `interrupts`, `clock`."""

    def __init__(self, memory: Memory, read_ns: Callable[[], int], pins: Pins, *, cpus: int, rtc_start: int):
        self.memory = memory
        self.clock = clock = Clock(read_ns)
        self.ports, self.mmio = PortBus(), MmioBus()
        self.interrupts = InterruptSystem(clock, cpus, intr=pins.interrupt, nmi=pins.nmi)
        isa = self.interrupts.isa
        self.uart = Uart16550(clock, isa[COM1_IRQ], pins.serial_output)
        pit = Pit8254(clock, isa[0])
        reset = lambda *_: pins.reset()  # noqa: E731
        self.fw_cfg = FwCfg(self._read, self._write, ram_size=memory.size, cpus=cpus)
        self.devices = {
            "pic": self.interrupts.pic,
            "pit": pit,
            "port61": SystemControlB(clock, pit),
            "uart": self.uart,
            "rtc": Rtc(clock, isa[RTC_IRQ], rtc_start, memory.size),
            "i8042": I8042(isa[KEYBOARD_IRQ], reset),
            "port92": SystemControlA(reset),
            "acpi": AcpiPm(clock, isa[SCI_IRQ], pins.poweroff, reset),
            "fw_cfg": self.fw_cfg,
            "pci": PciConfig(ResetControl(reset)),
            "debug_exit": DebugExit(pins.debug_exit),
            "debug_console": DebugConsole(pins.serial_output),
            "post_code": PostCode(),
            "vga": Vga(clock),
        }
        for name, device in self.devices.items():
            self.ports.attach_device(device, name)
        self.mmio.attach_device(self.interrupts.page, "local APIC")
        self.mmio.attach_device(self.interrupts.ioapic, "I/O APIC")
        self._hand_over()

    def _hand_over(self) -> None:
        """What firmware leaves behind: virtual wire mode; the PICs at vectors 0x08 and 0x70, all masked."""
        self.interrupts.virtual_wire()
        for port, value in PIC_SETUP:
            self.ports.write(port, 1, value)

    def _read(self, address: int, length: int) -> bytes | None:
        return self.memory.read(address, length) if self.memory.is_ram(address, length) else None

    def _write(self, address: int, data: bytes) -> bool:
        if not self.memory.is_ram(address, len(data)):
            return False
        self.memory.write(address, data)
        return True

    def state(self) -> dict:
        """Every device's state by name, and the interrupt controllers'."""
        devices = {name: device.state() for name, device in self.devices.items() if name != "pic"}
        return {"devices": devices, "interrupts": self.interrupts.state()}

    def load(self, state: dict) -> None:
        """What `state` returned."""
        self.interrupts.load(state["interrupts"])
        for name, saved in state["devices"].items():
            self.devices[name].load(saved)

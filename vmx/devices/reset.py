"""The chip set's reset control register (port 0xCF9) and system control port A (0x92) (Intel PIIX and ICH
data sheets)."""

from __future__ import annotations

from collections.abc import Callable

from .device import Device

RCR_SYS_RST, RCR_RST_CPU, RCR_FULL_RST = 0x02, 0x04, 0x08
FAST_INIT, A20_GATE = 0x01, 0x02


class ResetControl(Device):
    """One byte, inside the PCI configuration address register's ports: not attached to the bus, but given to
    `PciConfig`, which passes it the byte accesses that are meant for it.

    A rising RST_CPU resets: `reset(hard)`, hard when SYS_RST was set.
    """

    access_sizes = (1,)
    FIELDS = ("register",)

    def __init__(self, reset: Callable[[bool], object]):
        self.pull_reset = reset
        self.register = 0

    def reset(self) -> None:
        self.register = 0

    def read(self, offset: int, size: int) -> int:
        return self.register

    def write(self, offset: int, size: int, value: int) -> None:
        rising = value & ~self.register & RCR_RST_CPU
        self.register = value & (RCR_SYS_RST | RCR_RST_CPU | RCR_FULL_RST)
        if rising:
            self.pull_reset(bool(value & RCR_SYS_RST))


class SystemControlA(Device):
    """Port 0x92: bit 0 resets the processor when it rises, bit 1 gates A20."""

    access_sizes = (1,)
    WINDOWS = ((0x92, 1, 0),)
    FIELDS = ("register",)

    def __init__(self, reset: Callable[[], object], a20: Callable[[bool], object] | None = None):
        self.pull_reset = reset
        self.a20 = a20 or (lambda level: None)
        self.register = A20_GATE

    def reset(self) -> None:
        self.register = A20_GATE  # the loaders here hand over with A20 on

    def read(self, offset: int, size: int) -> int:
        return self.register

    def write(self, offset: int, size: int, value: int) -> None:
        changed = (value ^ self.register) & 0xFF
        self.register = value & 0xFF
        if changed & A20_GATE:
            self.a20(bool(value & A20_GATE))
        if changed & value & FAST_INIT:
            self.pull_reset()

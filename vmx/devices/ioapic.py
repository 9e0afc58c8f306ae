"""I/O APIC (Intel 82093AA data sheet, with the EOI register of version 0x20).

A pin's level means "asserted": the polarity bit is stored, but boards invert an active-low signal before it
gets here. Edges that arrive while the pin is masked are lost, as the data sheet says.
"""

from __future__ import annotations

from .device import Device

PINS = 24
IOREGSEL, IOWIN, EOIR = 0x00, 0x10, 0x40
IOAPICID, IOAPICVER, IOAPICARB, IOREDTBL = 0x00, 0x01, 0x02, 0x10
VERSION_VALUE = (PINS - 1) << 16 | 0x20

LOGICAL, DELIVERY_STATUS, REMOTE_IRR, LEVEL, MASKED = 1 << 11, 1 << 12, 1 << 14, 1 << 15, 1 << 16
WRITABLE = 0xFF00_0000_0001_AFFF
BROADCAST = 0xFFFF_FFFF


class IoApic(Device):
    """`bus.deliver(destination, logical, mode, vector, level) -> bool` hands a message to the local APICs."""

    access_sizes = (1, 2, 4, 8)
    WINDOWS = ((0xFEC0_0000, 0x1000, 0),)
    FIELDS = ("apic_id", "select", "redirection", "lines")

    def __init__(self, bus, apic_id: int = 0):
        self.bus = bus
        self.initial_id = apic_id & 0xF
        self.lines = 0
        self.reset()

    def reset(self) -> None:
        self.apic_id = self.initial_id
        self.select = 0
        self.redirection = [MASKED] * PINS

    def set_pin(self, pin: int, level: bool) -> None:
        bit = 1 << pin
        rising = level and not self.lines & bit
        if level:
            self.lines |= bit
        else:
            self.lines &= ~bit
        if rising:
            if self.redirection[pin] & LEVEL:
                self._serve_level(pin)
            elif not self.redirection[pin] & MASKED:
                self._deliver(self.redirection[pin])

    def eoi(self, vector: int) -> None:
        """EOI broadcast of a local APIC, or a write to the EOI register."""
        for pin, entry in enumerate(self.redirection):
            if entry & REMOTE_IRR and entry & LEVEL and entry & 0xFF == vector:
                self.redirection[pin] = entry & ~REMOTE_IRR
                self._serve_level(pin)

    def _serve_level(self, pin: int) -> None:
        entry = self.redirection[pin]
        waiting = self.lines & 1 << pin and entry & LEVEL and not entry & (MASKED | REMOTE_IRR)
        if waiting:
            # Set first: the local APIC may answer with its EOI before `deliver` returns.
            self.redirection[pin] = entry | REMOTE_IRR
            if not self._deliver(entry):
                self.redirection[pin] &= ~REMOTE_IRR

    def _deliver(self, entry: int) -> bool:
        destination = entry >> 56
        logical = bool(entry & LOGICAL)
        if destination == 0xFF and not logical:
            destination = BROADCAST
        mode = (entry >> 8) & 7
        return self.bus.deliver(destination, logical, mode, entry & 0xFF, bool(entry & LEVEL))

    def read(self, offset: int, size: int) -> int:
        register = offset & 0xFF0
        if register == IOREGSEL:
            value = self.select
        elif register == IOWIN:
            value = self._read_register()
        else:
            value = 0
        byte = offset & 0xF
        return value >> (8 * byte) & (1 << 8 * size) - 1 if byte < 4 else 0

    def _read_register(self) -> int:
        select = self.select
        if IOREDTBL <= select < IOREDTBL + 2 * PINS:
            entry = self.redirection[(select - IOREDTBL) >> 1]
            return entry >> 32 if select & 1 else entry & 0xFFFF_FFFF
        if select in (IOAPICID, IOAPICARB):
            return self.apic_id << 24
        return VERSION_VALUE if select == IOAPICVER else 0

    def write(self, offset: int, size: int, value: int) -> None:
        register = offset & 0xFF0
        if offset & 0xF:
            return
        if register == IOREGSEL:
            self.select = value & 0xFF
        elif register == IOWIN and size >= 4:
            self._write_register(value & 0xFFFF_FFFF)
        elif register == EOIR:
            self.eoi(value & 0xFF)

    def _write_register(self, value: int) -> None:
        select = self.select
        if select == IOAPICID:
            self.apic_id = (value >> 24) & 0xF
        elif IOREDTBL <= select < IOREDTBL + 2 * PINS:
            pin = (select - IOREDTBL) >> 1
            old = self.redirection[pin]
            entry = old & 0xFFFF_FFFF | value << 32 if select & 1 else old & ~0xFFFF_FFFF | value
            entry = entry & WRITABLE | old & REMOTE_IRR
            if not entry & LEVEL:
                entry &= ~REMOTE_IRR
            self.redirection[pin] = entry
            self._serve_level(pin)

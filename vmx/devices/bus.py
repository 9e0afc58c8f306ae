"""Interrupt lines, the port bus and the MMIO bus.

An access goes to the hooks on its address first, then to the device that claims it. Unclaimed reads float
to all ones; they are counted per address, because a long list of them usually names a device that a guest
expected.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Callable

from .device import ALL_ONES, Device

PORTS = 0x10000
# A guest can touch 2^52 different MMIO addresses; past this many, further ones are counted under None.
COUNTED_ADDRESSES = 4096

Hook = Callable[[str, int, int, "int | None"], "int | None"]


class Line:
    """A signal that is high or low. `set` tells each target (a callable taking the level) of every change."""

    __slots__ = ("level", "targets", "_high_inputs")

    def __init__(self, *targets: Callable[[bool], None]):
        self.level = False
        self.targets = targets
        self._high_inputs = 0

    def set(self, level: bool) -> None:
        level = bool(level)
        if level != self.level:
            self.level = level
            for target in self.targets:
                target(level)

    def pulse(self) -> None:
        """A rising edge, then low again."""
        self.set(True)
        self.set(False)

    def input(self) -> Line:
        """A new line that is wired-OR with all other inputs of this one. Do not mix with `set` on this
        line.
        """
        return Line(self._input_changed)

    def _input_changed(self, level: bool) -> None:
        self._high_inputs += 1 if level else -1
        self.set(self._high_inputs > 0)


class _Window:
    """One claimed range: addresses base..end-1 are offsets from `offset` on of `device`."""

    __slots__ = ("base", "end", "shift", "device", "name", "sizes", "device_read", "device_write")

    def __init__(self, base: int, length: int, device: Device, name: str, offset: int):
        self.base = base
        self.end = base + length
        self.shift = base - offset
        self.device = device
        self.name = name
        self.sizes = frozenset(device.access_sizes)
        self.device_read = device.read
        self.device_write = device.write

    def __str__(self) -> str:
        return f"{self.name} (0x{self.base:X}-0x{self.end - 1:X})"


class _Bus:
    """What both buses do; they differ in how an address finds its window."""

    limit: int

    def __init__(self):
        self.windows: list[_Window] = []
        self.unclaimed_reads: Counter = Counter()
        self.unclaimed_writes: Counter = Counter()
        self._hooks: list[tuple[int, int, Hook]] = []

    def attach(self, base: int, length: int, device: Device, name: str, offset: int = 0) -> None:
        """Claims base..base+length-1 for `device`; the device sees base as `offset`. ValueError on an
        overlap.
        """
        if length <= 0 or base < 0 or base + length > self.limit:
            raise ValueError(
                f"{name}: 0x{base:X} + {length} bytes is outside the bus (0 to 0x{self.limit - 1:X})"
            )
        window = _Window(base, length, device, name, offset)
        for other in self.windows:
            if window.base < other.end and other.base < window.end:
                raise ValueError(f"{window} overlaps {other}: move one of them")
        self.windows.append(window)
        self.windows.sort(key=lambda each: each.base)
        self._changed()

    def attach_device(self, device: Device, name: str) -> None:
        """Claims the windows where a PC has this device."""
        for base, length, offset in device.WINDOWS:
            self.attach(base, length, device, name, offset)

    def detach(self, device: Device) -> None:
        """Gives up every window of `device` (a relocated APIC page, an unplugged device)."""
        self.windows = [window for window in self.windows if window.device is not device]
        self._changed()

    def hook(self, address: int, length: int, callback: Hook) -> Callable[[], None]:
        """Calls `callback(kind, address, size, value)` before the device, for accesses that touch the range.

        `kind` is "read" (value None) or "write". A result other than None replaces the access: the device
        does not see it, and a read gives that result. Returns a function that removes the hook.
        """
        entry = (address, address + length, callback)
        self._hooks.append(entry)

        def remove() -> None:
            if entry in self._hooks:
                self._hooks.remove(entry)

        return remove

    def _changed(self) -> None:
        raise NotImplementedError

    def _find(self, address: int) -> _Window | None:
        raise NotImplementedError

    def read(self, address: int, size: int) -> int:
        if self._hooks:
            replaced = self._run_hooks("read", address, size, None)
            if replaced is not None:
                return replaced & ALL_ONES[size]
        window = self._find(address)
        if window is not None and size in window.sizes and address + size <= window.end:
            return window.device_read(address - window.shift, size)
        return self._read_split(address, size)

    def write(self, address: int, size: int, value: int) -> None:
        if self._hooks and self._run_hooks("write", address, size, value) is not None:
            return
        window = self._find(address)
        if window is not None and size in window.sizes and address + size <= window.end:
            window.device_write(address - window.shift, size, value)
        else:
            self._write_split(address, size, value)

    def _read_split(self, address: int, size: int) -> int:
        parts = [self._find((address + i) % self.limit) for i in range(size)]
        if not any(parts):
            self._count(self.unclaimed_reads, address)
            return ALL_ONES[size]
        value = 0
        for i, window in enumerate(parts):
            here = (address + i) % self.limit
            byte = 0xFF if window is None else window.device_read(here - window.shift, 1) & 0xFF
            value |= byte << (8 * i)
        return value

    def _write_split(self, address: int, size: int, value: int) -> None:
        parts = [self._find((address + i) % self.limit) for i in range(size)]
        if not any(parts):
            self._count(self.unclaimed_writes, address)
        for i, window in enumerate(parts):
            if window is not None:
                here = (address + i) % self.limit
                window.device_write(here - window.shift, 1, (value >> (8 * i)) & 0xFF)

    def _count(self, counter: Counter, address: int) -> None:
        known = address in counter or len(counter) < COUNTED_ADDRESSES
        counter[address if known else None] += 1

    def _run_hooks(self, kind: str, address: int, size: int, value: int | None) -> int | None:
        for start, end, callback in tuple(self._hooks):
            if address < end and start < address + size:
                result = callback(kind, address, size, value)
                if result is not None:
                    return result
        return None


class PortBus(_Bus):
    """The 64 KiB of I/O ports; look-up is one list index."""

    limit = PORTS

    def __init__(self):
        super().__init__()
        self._table: list[_Window | None] = [None] * PORTS

    def _changed(self) -> None:
        self._table = [None] * PORTS
        for window in self.windows:
            self._table[window.base : window.end] = [window] * (window.end - window.base)

    def _find(self, address: int) -> _Window | None:
        return self._table[address & 0xFFFF]


class MmioBus(_Bus):
    """Guest-physical addresses that are not RAM; look-up is a binary search."""

    limit = 1 << 52

    def __init__(self):
        super().__init__()
        self._bases: list[int] = []

    def _changed(self) -> None:
        self._bases = [window.base for window in self.windows]

    def _find(self, address: int) -> _Window | None:
        i = bisect_right(self._bases, address) - 1
        if i >= 0:
            window = self.windows[i]
            if address < window.end:
                return window
        return None

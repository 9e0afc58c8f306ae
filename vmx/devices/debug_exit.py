"""isa-debug-exit, as QEMU has it: a write ends the run, and the process exits with (value << 1) | 1."""

from __future__ import annotations

from collections.abc import Callable

from .device import Device


class DebugExit(Device):
    """`exit(value)` gets the value written."""

    access_sizes = (1, 2, 4)
    WINDOWS = ((0xF4, 4, 0),)

    def __init__(self, exit: Callable[[int], object]):
        self.exit = exit

    def read(self, offset: int, size: int) -> int:
        return 0

    def write(self, offset: int, size: int, value: int) -> None:
        self.exit(value)

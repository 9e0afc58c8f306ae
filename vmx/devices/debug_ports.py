"""Port 0xE9, the debug console of Bochs, and port 0x80, the power-on self-test code."""

from __future__ import annotations

from collections.abc import Callable

from .device import Device


class DebugConsole(Device):
    """Every byte written goes to `sink(bytes)`. Reading gives 0xE9: that is how a guest finds the port."""

    access_sizes = (1,)
    WINDOWS = ((0xE9, 1, 0),)

    def __init__(self, sink: Callable[[bytes], object]):
        self.sink = sink

    def read(self, offset: int, size: int) -> int:
        return 0xE9

    def write(self, offset: int, size: int, value: int) -> None:
        self.sink(bytes((value & 0xFF,)))


class PostCode(Device):
    """Remembers the last code. Kernels write here for its delay, so this is often called."""

    access_sizes = (1,)
    WINDOWS = ((0x80, 1, 0),)
    FIELDS = ("last",)

    def __init__(self):
        self.last = 0

    def reset(self) -> None:
        self.last = 0

    def read(self, offset: int, size: int) -> int:
        return self.last

    def write(self, offset: int, size: int, value: int) -> None:
        self.last = value & 0xFF

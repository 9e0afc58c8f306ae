"""PCI configuration mechanism #1 (PCI Local Bus specification, "Configuration Space Decoding").

The bus is empty until something is attached: every function reads as all ones, the host bridge included.
"""

from __future__ import annotations

from .device import ALL_ONES, Device

CONFIG_ADDRESS, RESET_CONTROL, CONFIG_DATA = 0, 1, 4
ENABLE = 1 << 31
ADDRESS_WRITABLE = 0x80FF_FFFC


class PciConfig(Device):
    """CONFIG_ADDRESS at offset 0, CONFIG_DATA at 4.

    CONFIG_ADDRESS answers 32-bit accesses only. Byte accesses at offset 1 belong to the reset control
    register (port 0xCF9), given as `reset_control`; other narrow ones there reach nothing.
    """

    access_sizes = (1, 2, 4)
    WINDOWS = ((0xCF8, 8, 0),)
    FIELDS = ("address",)

    def __init__(self, reset_control: Device | None = None):
        self.reset_control = reset_control
        self.functions: dict[int, object] = {}
        self.address = 0

    def reset(self) -> None:
        self.address = 0

    def attach(self, bus: int, device: int, function: int, config) -> None:
        """`config` has `read_config(offset, size)` and `write_config(offset, size, value)` over 256 bytes."""
        if not (0 <= bus < 256 and 0 <= device < 32 and 0 <= function < 8):
            raise ValueError(f"no such PCI function: {bus:02x}:{device:02x}.{function:x}")
        key = bus << 8 | device << 3 | function
        if key in self.functions:
            raise ValueError(f"PCI function {bus:02x}:{device:02x}.{function:x} is taken")
        self.functions[key] = config

    def _selected(self):
        if not self.address & ENABLE:
            return None
        return self.functions.get(self.address >> 8 & 0xFFFF)

    def read(self, offset: int, size: int) -> int:
        if offset < CONFIG_DATA:
            if offset == CONFIG_ADDRESS and size == 4:
                return self.address
            if offset == RESET_CONTROL and size == 1 and self.reset_control is not None:
                return self.reset_control.read(0, 1)
            return ALL_ONES[size]
        selected = self._selected()
        if selected is None:
            return ALL_ONES[size]
        return selected.read_config((self.address & 0xFC) + offset - CONFIG_DATA, size) & ALL_ONES[size]

    def write(self, offset: int, size: int, value: int) -> None:
        if offset < CONFIG_DATA:
            if offset == CONFIG_ADDRESS and size == 4:
                self.address = value & ADDRESS_WRITABLE
            elif offset == RESET_CONTROL and size == 1 and self.reset_control is not None:
                self.reset_control.write(0, 1, value)
            return
        selected = self._selected()
        if selected is not None:
            selected.write_config((self.address & 0xFC) + offset - CONFIG_DATA, size, value)

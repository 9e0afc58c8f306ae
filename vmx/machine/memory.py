"""Guest RAM: one anonymous host mapping, its page flags, and the physical address map.

RAM lies from 0 to the hole at 3 GiB and goes on at 4 GiB. A few pages behind the guest's RAM, `private`, belong
to root-mode software written in Python (VMCS, EPT, bitmaps); no guest-physical address reaches them.
"""

import mmap
from collections.abc import Sequence

import numpy as np

from vmx.boot.layout import ABOVE_HOLE, HOLE
from vmx.state.memory import host_address

PAGE = 4096
SLACK = PAGE  # reads of eight bytes at the very end stay inside the mapping


class Memory:
    """`size` bytes of guest RAM and `private` bytes of root-mode RAM, both multiples of 4 KiB.

    Addresses are physical. `read` and `write` raise IndexError where there is no RAM.
    """

    def __init__(self, size: int, private: int = 0):
        self.size, self.private_size = size, private
        self.low = min(size, HOLE)
        self.high = size - self.low + private
        self._mapping = mmap.mmap(-1, size + private + SLACK)
        self.bytes = np.frombuffer(self._mapping, np.uint8)
        pages = (size + private) // PAGE
        self.page_flags = np.zeros(pages + 1, np.uint8)
        self.page_stamps = np.zeros(pages + 1, np.uint32)

    @property
    def private_base(self) -> int:
        """The physical address of the private part."""
        return ABOVE_HOLE + self.size - self.low

    def _offset(self, address: int, length: int) -> int:
        if 0 <= address and address + length <= self.low:
            return address
        if ABOVE_HOLE <= address and address + length <= ABOVE_HOLE + self.high:
            return self.low + address - ABOVE_HOLE
        raise IndexError(f"physical {address:#x}-{address + length - 1:#x} is not RAM")

    def is_ram(self, address: int, length: int = 1) -> bool:
        """Whether the whole range is RAM."""
        try:
            self._offset(address, length)
        except IndexError:
            return False
        return True

    def read(self, address: int, length: int) -> bytes:
        """Bytes at a physical address."""
        offset = self._offset(address, length)
        return self.bytes[offset : offset + length].tobytes()

    def write(self, address: int, data: bytes) -> None:
        """Store bytes at a physical address; decoded code there is forgotten."""
        offset = self._offset(address, len(data))
        self.bytes[offset : offset + len(data)] = np.frombuffer(data, np.uint8)
        first, last = offset // PAGE, (offset + len(data) - 1) // PAGE
        self.page_stamps[first : last + 1] += 1
        self.page_flags[first : last + 1] |= 2

    def array(self, address: int, count: int, dtype=np.uint64) -> np.ndarray:
        """A writable view of RAM (shape (count,)); the caller does not put code there."""
        offset = self._offset(address, count * np.dtype(dtype).itemsize)
        return self.bytes[offset : offset + count * np.dtype(dtype).itemsize].view(dtype)

    def host_address(self, address: int) -> int:
        """The host address of a physical address in RAM."""
        return host_address(self.bytes) + self._offset(address, 1)

    def place(self, placements: Sequence) -> None:
        """Store the placements of a boot image."""
        for placement in placements:
            self.write(placement.address, placement.data)

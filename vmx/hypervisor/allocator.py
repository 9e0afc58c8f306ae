"""The allocator: what the hypervisor needs of physical memory - a VMCS per virtual CPU, bitmaps, EPT tables.

It lives in RAM that no guest-physical address reaches. EPT maps guest RAM onto the same physical addresses,
with 2 MiB pages where they fit; everything else is left unmapped, so device memory exits.
"""

import numpy as np

from vmx.boot.layout import ABOVE_HOLE
from vmx.machine.memory import PAGE, Memory

LARGE = 2 << 20
GIB = 1 << 30
EPT_RWX, EPT_LARGE, EPT_WRITE_BACK = 7, 1 << 7, 6 << 3
EPTP_WRITE_BACK, EPTP_FOUR_LEVELS = 6, 3 << 3
ENTRIES = 512
BITMAPS = 1 + 2  # pages: MSR bitmap, I/O bitmaps A and B


def private_bytes(memory_bytes: int, cpus: int) -> int:
    """How much RAM the hypervisor needs for a guest of `memory_bytes`."""
    directories = memory_bytes // GIB + 4
    tables = 4  # at most one partial 2 MiB page per end of a RAM range
    return PAGE * (cpus + 4 + BITMAPS + directories + tables)


class Allocator:
    """Hands out pages of the private part of RAM and builds the EPT. Pages are zero."""

    def __init__(self, memory: Memory):
        self.memory = memory
        self._next = memory.private_base
        self._end = memory.private_base + memory.private_size
        self._tables: dict[int, np.ndarray] = {}
        self._root = 0

    def page(self) -> int:
        """The physical address of a fresh page."""
        if self._next >= self._end:
            raise MemoryError("the hypervisor's private memory is used up")
        address, self._next = self._next, self._next + PAGE
        return address

    def extended_page_tables(self) -> int:
        """Build the EPT of the guest's RAM and return the EPTP."""
        root = self._root = self._table()
        memory = self.memory
        self._map(root, 0, memory.low)
        self._map(root, ABOVE_HOLE, ABOVE_HOLE + memory.size - memory.low)
        return root | EPTP_WRITE_BACK | EPTP_FOUR_LEVELS

    def ept_entry(self, address: int) -> tuple[np.ndarray, int]:
        """The EPT entry that maps, or would map, a guest-physical address: its table and its place there.

        Write `table[index]` to change what the guest may do with that page, then let the hypervisor `flush`.
        """
        table = self._root
        for shift in (39, 30, 21):
            index = address >> shift & ENTRIES - 1
            entry = int(self._tables[table][index])
            if entry == 0 or entry & EPT_LARGE:
                return self._tables[table], index
            table = entry & ~0xFFF
        return self._tables[table], address >> 12 & ENTRIES - 1

    def _table(self) -> int:
        address = self.page()
        self._tables[address] = self.memory.array(address, ENTRIES)
        return address

    def _child(self, table: int, index: int) -> int:
        entry = int(self._tables[table][index])
        if entry == 0:
            child = self._table()
            self._tables[table][index] = child | EPT_RWX
            return child
        return entry & ~0xFFF

    def _map(self, root: int, start: int, end: int) -> None:
        address = start
        while address < end:
            directory = self._child(self._child(root, address >> 39 & 511), address >> 30 & 511)
            if address % LARGE == 0 and end - address >= LARGE:
                self._tables[directory][address >> 21 & 511] = address | EPT_RWX | EPT_LARGE | EPT_WRITE_BACK
                address += LARGE
                continue
            table = self._child(directory, address >> 21 & 511)
            self._tables[table][address >> 12 & 511] = address | EPT_RWX | EPT_WRITE_BACK
            address += PAGE

"""fw_cfg, the firmware configuration device (QEMU documentation, "QEMU Firmware Configuration (fw_cfg)
Device").

Selector at offset 0 (16 bits), data at 1 (bytes), DMA address at 4 (big-endian, 64 bits).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping

from .device import Device

SELECTOR, DATA, DMA_HIGH, DMA_LOW = 0, 1, 4, 8

SIGNATURE, FW_ID, UUID, RAM_SIZE, NOGRAPHIC, NB_CPUS = 0x00, 0x01, 0x02, 0x03, 0x04, 0x05
KERNEL_ADDR, KERNEL_SIZE, KERNEL_CMDLINE, INITRD_ADDR, INITRD_SIZE = 0x07, 0x08, 0x09, 0x0A, 0x0B
BOOT_DEVICE, BOOT_MENU, MAX_CPUS, KERNEL_ENTRY = 0x0C, 0x0E, 0x0F, 0x10
KERNEL_DATA, INITRD_DATA, CMDLINE_ADDR, CMDLINE_SIZE, CMDLINE_DATA = 0x11, 0x12, 0x13, 0x14, 0x15
SETUP_ADDR, SETUP_SIZE, SETUP_DATA, FILE_DIR, FILE_FIRST = 0x16, 0x17, 0x18, 0x19, 0x20
WRITE_CHANNEL = 0x4000  # historic flag in a selector

ID_TRADITIONAL, ID_DMA = 0x1, 0x2
DMA_SIGNATURE = b"QEMU CFG"
DMA_ERROR, DMA_READ, DMA_SKIP, DMA_SELECT, DMA_WRITE = 0x01, 0x02, 0x04, 0x08, 0x10
CHUNK = 1 << 16
NAME_LENGTH = 56


def e820_table(entries) -> bytes:
    """The file "etc/e820": `entries` are (address, length, type)."""
    return b"".join(struct.pack("<QQI", *entry) for entry in entries)


class FwCfg(Device):
    """`items` maps a selector to its bytes, `files` a name to its bytes; both may be changed between resets.

    `read_memory(address, length) -> bytes or None` and `write_memory(address, data) -> bool` reach the
    guest's RAM and say None or False when the range is not RAM.
    """

    access_sizes = (1, 2, 4, 8)
    WINDOWS = ((0x510, 2, 0), (0x514, 8, 4))
    FIELDS = ("selector", "position", "dma_high")

    def __init__(
        self,
        read_memory: Callable[[int, int], bytes | None],
        write_memory: Callable[[int, bytes], bool],
        *,
        ram_size: int = 0,
        cpus: int = 1,
        items: Mapping[int, bytes] | None = None,
        files: Mapping[str, bytes] | None = None,
    ):
        self.read_memory = read_memory
        self.write_memory = write_memory
        self.items: dict[int, bytes] = {
            SIGNATURE: b"QEMU",
            FW_ID: struct.pack("<I", ID_TRADITIONAL | ID_DMA),
            UUID: bytes(16),
            RAM_SIZE: struct.pack("<Q", ram_size),
            NOGRAPHIC: struct.pack("<H", 1),
            NB_CPUS: struct.pack("<H", cpus),
            BOOT_MENU: struct.pack("<H", 0),
            MAX_CPUS: struct.pack("<H", cpus),
        }
        self.items.update(items or {})
        self.files: dict[str, bytes] = {}
        for name, data in sorted((files or {}).items()):
            self.add_file(name, data)
        self.reset()

    def reset(self) -> None:
        self._select(SIGNATURE)
        self.dma_high = 0

    def after_load(self) -> None:
        self.current = self.items.get(self.selector, b"")

    def add_file(self, name: str, data: bytes) -> None:
        """Files get selectors from 0x20 on, in the order in which they are added."""
        if len(name.encode()) >= NAME_LENGTH:
            raise ValueError(f"fw_cfg file name {name!r} is longer than {NAME_LENGTH - 1} bytes")
        order = list(self.files)
        key = FILE_FIRST + (order.index(name) if name in self.files else len(order))
        self.files[name] = data
        self.items[key] = data
        directory = struct.pack(">I", len(self.files))
        for i, (each, content) in enumerate(self.files.items()):
            directory += struct.pack(">IHH56s", len(content), FILE_FIRST + i, 0, each.encode())
        self.items[FILE_DIR] = directory

    def add_kernel(
        self,
        kernel: bytes,
        *,
        setup: bytes = b"",
        initrd: bytes = b"",
        cmdline: bytes = b"",
        kernel_address: int = 0x10_0000,
        initrd_address: int = 0,
        cmdline_address: int = 0x2_0000,
        setup_address: int = 0x1_0000,
    ) -> None:
        """The items with which firmware loads a kernel; `cmdline` without its final zero byte."""

        def word(value: int) -> bytes:
            return struct.pack("<I", value)

        text = cmdline + b"\0"
        self.items.update(
            {
                KERNEL_ADDR: word(kernel_address),
                KERNEL_SIZE: word(len(kernel)),
                KERNEL_ENTRY: word(kernel_address),
                KERNEL_DATA: kernel,
                INITRD_ADDR: word(initrd_address),
                INITRD_SIZE: word(len(initrd)),
                INITRD_DATA: initrd,
                CMDLINE_ADDR: word(cmdline_address),
                CMDLINE_SIZE: word(len(text)),
                CMDLINE_DATA: text,
                KERNEL_CMDLINE: word(cmdline_address),
                SETUP_ADDR: word(setup_address),
                SETUP_SIZE: word(len(setup)),
                SETUP_DATA: setup,
            }
        )

    def _select(self, selector: int) -> None:
        self.selector = selector & 0xFFFF & ~WRITE_CHANNEL
        self.position = 0
        self.current = self.items.get(self.selector, b"")

    def read(self, offset: int, size: int) -> int:
        if offset == DATA and size == 1:
            position = self.position
            self.position = position + 1
            return self.current[position] if position < len(self.current) else 0
        if offset >= DMA_HIGH:
            at = offset - DMA_HIGH
            return int.from_bytes(DMA_SIGNATURE[at : at + size], "little")
        return 0

    def write(self, offset: int, size: int, value: int) -> None:
        if offset == SELECTOR and size == 2:
            self._select(value)
        elif offset == DMA_HIGH and size == 4:
            self.dma_high = int.from_bytes((value & 0xFFFF_FFFF).to_bytes(4, "little"), "big")
        elif offset == DMA_LOW and size == 4:
            low = int.from_bytes((value & 0xFFFF_FFFF).to_bytes(4, "little"), "big")
            self._run_dma(self.dma_high << 32 | low)
            self.dma_high = 0
        elif offset == DMA_HIGH and size == 8:
            self._run_dma(int.from_bytes((value & (1 << 64) - 1).to_bytes(8, "little"), "big"))
        # Data writes: items are read-only, so they are dropped.

    def _run_dma(self, descriptor: int) -> None:
        """One transfer as the descriptor (control, length, address) in guest memory says."""
        raw = self.read_memory(descriptor, 16)
        if raw is None or len(raw) != 16:
            return
        control, length, address = struct.unpack(">IIQ", bytes(raw))
        if control & DMA_SELECT:
            self._select(control >> 16)
        ok = True
        if control & DMA_READ:
            ok = self._transfer(address, length)
        elif control & DMA_WRITE:
            ok = False
        elif control & DMA_SKIP:
            self.position += length
        self.write_memory(descriptor, struct.pack(">I", 0 if ok else DMA_ERROR))

    def _transfer(self, address: int, length: int) -> bool:
        while length:
            n = min(length, CHUNK)
            data = self.current[self.position : self.position + n]
            # Past its end an item reads as zeros.
            if not self.write_memory(address, bytes(data) + bytes(n - len(data))):
                return False
            self.position += n
            address += n
            length -= n
        return True

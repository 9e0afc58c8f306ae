"""The boot image: what a loader hands to a machine.

A loader turns files into plain data: bytes for guest-physical addresses and the registers that the
processor starts with. It knows neither the processor nor the machine, so a boot image can be printed,
compared and tested.

Segment access rights have the VMX format (manual: "Guest Register State"):
type 3:0, S 4, DPL 6:5, P 7, AVL 12, L 13, D/B 14, G 15, unusable 16.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from vmx.errors import KernelError


class BootError(KernelError):
    """A kernel, initrd or module that cannot be loaded: what is wrong, where, and what would be right."""


@dataclass(frozen=True)
class Placement:
    """Bytes for guest-physical memory."""

    address: int
    data: bytes
    what: str

    @property
    def end(self) -> int:
        return self.address + len(self.data)


class Segment(NamedTuple):
    """A segment register with its hidden part."""

    selector: int
    base: int
    limit: int
    access_rights: int


class MemoryRange(NamedTuple):
    """One row of the e820 memory map; `type` is 1 for RAM, 2 for reserved."""

    start: int
    length: int
    type: int

    @property
    def end(self) -> int:
        return self.start + self.length


@dataclass
class InitialState:
    """The registers at the first instruction of the guest."""

    mode: str  # "real", "protected32" or "long64"
    rip: int
    rsp: int
    registers: dict[str, int]  # rax .. r15, all sixteen but rsp
    rflags: int
    cr0: int
    cr3: int
    cr4: int
    efer: int
    gdt_base: int
    gdt_limit: int
    idt_base: int
    idt_limit: int
    segments: dict[str, Segment]  # es, cs, ss, ds, fs, gs, ldtr, tr


@dataclass
class BootImage:
    """Everything that a machine needs to start a kernel."""

    kind: str  # which loader made it: "linux", "pvh", "multiboot", "elf" or "flat"
    placements: list[Placement]
    registers: InitialState
    e820: list[MemoryRange]
    cpus: int = 1  # how many virtual CPUs the firmware tables beside this image have to name
    notes: list[str] = field(default_factory=list)
    symbols: dict[str, int] | None = None

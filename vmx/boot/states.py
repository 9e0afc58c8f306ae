"""Initial processor states for the three ways to enter a kernel, and the tables in memory that go with them.

Selectors are the Linux boot protocol's (0x10 code, 0x18 data), which suit the other protocols as well.
TR holds a busy TSS and LDTR is unusable, because VM entry demands that (manual: "Checks on Guest Segment
Registers").
"""

from __future__ import annotations

import struct

from vmx.boot import layout
from vmx.boot.image import InitialState, Placement, Segment

CODE_SELECTOR = 0x10
DATA_SELECTOR = 0x18
TASK_SELECTOR = 0x20

CR0_PE = 1 << 0
CR0_ET = 1 << 4
CR0_NE = 1 << 5
CR0_PG = 1 << 31
CR4_PAE = 1 << 5
EFER_LME = 1 << 8
EFER_LMA = 1 << 10
RFLAGS_FIXED = 1 << 1

CODE_64 = 0xA09B  # G, L, present, execute/read/accessed
CODE_32 = 0xC09B  # G, D
CODE_16 = 0x009B
DATA_32 = 0xC093  # G, B, present, read/write/accessed
DATA_16 = 0x0093
BUSY_TSS = 0x008B
UNUSABLE = 0x10000

TSS_LIMIT = 0x67
GDT_LIMIT = 6 * 8 - 1
GENERAL_REGISTERS = "rax rcx rdx rbx rbp rsi rdi r8 r9 r10 r11 r12 r13 r14 r15".split()


def descriptor(base: int, limit: int, access_rights: int) -> int:
    """A segment descriptor from the parts of a segment register (manual: "Segment Descriptors")."""
    if access_rights & 0x8000:
        limit >>= 12
    return (
        limit & 0xFFFF
        | (base & 0xFF_FFFF) << 16
        | (access_rights & 0xFF) << 40
        | (limit >> 16 & 0xF) << 48
        | (access_rights >> 12 & 0xF) << 52
        | (base >> 24 & 0xFF) << 56
    )


def descriptor_tables(code: int) -> list[Placement]:
    """The GDT with code, data and task segment, and the TSS; `code` is the code segment's access rights."""
    entries = [
        0,
        0,
        descriptor(0, 0xFFFF_FFFF, code),
        descriptor(0, 0xFFFF_FFFF, DATA_32),
        descriptor(layout.TSS, TSS_LIMIT, BUSY_TSS),
        layout.TSS >> 32,  # upper half of the 16-byte descriptor that long mode expects
    ]
    return [
        Placement(layout.GDT, struct.pack("<6Q", *entries), "boot GDT"),
        Placement(layout.TSS, bytes(TSS_LIMIT + 1), "boot TSS"),
    ]


def identity_page_tables() -> Placement:
    """4-level tables that map the first 4 GiB to themselves with 2-MiB pages."""
    present_write = 0x3
    page_size = 0x80
    base = layout.PAGE_TABLES
    pml4 = [base + 0x1000 | present_write] + [0] * 511
    pdpt = [base + 0x2000 + 0x1000 * i | present_write for i in range(4)] + [0] * 508
    directories = [i << 21 | page_size | present_write for i in range(4 * 512)]
    return Placement(base, struct.pack("<3072Q", *pml4, *pdpt, *directories), "boot page tables")


def _registers(values: dict[str, int]) -> dict[str, int]:
    return {name: values.get(name, 0) for name in GENERAL_REGISTERS}


def _flat_segments(code: int) -> dict[str, Segment]:
    data = Segment(DATA_SELECTOR, 0, 0xFFFF_FFFF, DATA_32)
    return {
        "es": data,
        "cs": Segment(CODE_SELECTOR, 0, 0xFFFF_FFFF, code),
        "ss": data,
        "ds": data,
        "fs": data,
        "gs": data,
        "ldtr": Segment(0, 0, 0, UNUSABLE),
        "tr": Segment(TASK_SELECTOR, layout.TSS, TSS_LIMIT, BUSY_TSS),
    }


def long64(rip: int, **registers: int) -> tuple[InitialState, list[Placement]]:
    """64-bit mode, paging on with identity tables, interrupts off."""
    state = InitialState(
        mode="long64",
        rip=rip,
        rsp=layout.STACK_TOP,
        registers=_registers(registers),
        rflags=RFLAGS_FIXED,
        cr0=CR0_PG | CR0_NE | CR0_ET | CR0_PE,
        cr3=layout.PAGE_TABLES,
        cr4=CR4_PAE,
        efer=EFER_LME | EFER_LMA,
        gdt_base=layout.GDT,
        gdt_limit=GDT_LIMIT,
        idt_base=0,
        idt_limit=0,
        segments=_flat_segments(CODE_64),
    )
    return state, [*descriptor_tables(CODE_64), identity_page_tables()]


def protected32(rip: int, **registers: int) -> tuple[InitialState, list[Placement]]:
    """32-bit protected mode with flat segments, paging off, interrupts off."""
    state = InitialState(
        mode="protected32",
        rip=rip,
        rsp=layout.STACK_TOP,
        registers=_registers(registers),
        rflags=RFLAGS_FIXED,
        cr0=CR0_NE | CR0_ET | CR0_PE,
        cr3=0,
        cr4=0,
        efer=0,
        gdt_base=layout.GDT,
        gdt_limit=GDT_LIMIT,
        idt_base=0,
        idt_limit=0,
        segments=_flat_segments(CODE_32),
    )
    return state, descriptor_tables(CODE_32)


def real(address: int, **registers: int) -> tuple[InitialState, list[Placement]]:
    """Real-address mode at a linear address below 1 MiB; segment 0 where the address allows it."""
    selector, offset = (0, address) if address <= 0xFFFF else (address >> 4, address & 0xF)
    data = Segment(0, 0, 0xFFFF, DATA_16)
    state = InitialState(
        mode="real",
        rip=offset,
        rsp=layout.STACK_TOP,
        registers=_registers(registers),
        rflags=RFLAGS_FIXED,
        cr0=CR0_NE | CR0_ET,
        cr3=0,
        cr4=0,
        efer=0,
        gdt_base=0,
        gdt_limit=0,
        idt_base=0,
        idt_limit=0x3FF,
        segments={
            "es": data,
            "cs": Segment(selector, selector << 4, 0xFFFF, CODE_16),
            "ss": data,
            "ds": data,
            "fs": data,
            "gs": data,
            "ldtr": Segment(0, 0, 0, UNUSABLE),
            "tr": Segment(0, 0, 0xFFFF, BUSY_TSS),
        },
    )
    return state, []

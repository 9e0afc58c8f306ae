"""A processor with 1 MiB of RAM, descriptor tables in it, and a way to execute single instructions.

Physical memory: page tables at 0x1000 (identity, 2-MiB pages, user), IDT 0x4000, GDT 0x5000, LDT 0x6000, TSS
0x7000, code 0x8000, stacks below 0xA000 (ring 3), 0xB000 (ring 0), 0xC000 (IST 1).
"""

import struct

import numpy as np

from vmx.cpu.cpuid import cpuid_table
from vmx.cpu.decode import DECODED_OK, decode
from vmx.cpu.descriptor import group_descriptor
from vmx.cpu.far import group_far
from vmx.cpu.portio import group_portio
from vmx.cpu.system import group_system
from vmx.isa.operations import GROUP_NUMBER
from vmx.mmu.mode import update_mode
from vmx.mmu.tlb import flush_all, new_tlb
from vmx.state.bits import signed, unsigned
from vmx.state.flags import get_rflags, set_rflags
from vmx.state.memory import host_address
from vmx.state.processor import (
    CS,
    DECODED,
    DS,
    ES,
    FS,
    GS,
    LDTR,
    PROCESSOR,
    SS,
    TR,
    Status,
    new_record,
)
from vmx.state.unit import unit

RAM = 1 << 20
PAGE_TABLES, IDT, GDT, LDT, TSS, CODE = 0x1000, 0x4000, 0x5000, 0x6000, 0x7000, 0x8000
STACK3, STACK0, STACK_IST1 = 0xA000, 0xB000, 0xC000
UNUSABLE = 1 << 16

# selectors of the GDT that every world starts with
CODE64, DATA0, CODE32, CODE64_3, DATA3, CODE32_3, TASK, LOCAL, CONFORMING, ABSENT, READ_ONLY = (
    0x08, 0x10, 0x18, 0x20 | 3, 0x28 | 3, 0x30 | 3, 0x40, 0x50, 0x60, 0x68, 0x70,
)  # fmt: skip
SPARE = 0x80  # free room for a test's own descriptors


@unit(DECODED, "i64", "i64", "i64")
def decode_at(d, host, available, mode):
    return decode(d, host, available, mode, 0)


@unit(PROCESSOR)
def rflags_of(cpu):
    return get_rflags(cpu)


@unit(PROCESSOR, "i64")
def put_rflags(cpu, value):
    set_rflags(cpu, value)
    return 0


GROUPS = {
    GROUP_NUMBER["FAR"]: group_far,
    GROUP_NUMBER["SYSTEM"]: group_system,
    GROUP_NUMBER["DESCRIPTOR"]: group_descriptor,
    GROUP_NUMBER["PORTIO"]: group_portio,
}


def descriptor(base, limit, access):
    """Eight bytes from base, limit in bytes and VMCS-style access rights."""
    if access & 0x8000:
        limit >>= 12
    return (
        limit & 0xFFFF
        | (base & 0xFF_FFFF) << 16
        | (access & 0xFF) << 40
        | (limit >> 16 & 0xF) << 48
        | (access >> 12 & 0xF) << 52
        | (base >> 24 & 0xFF) << 56
    )


def gate(selector, offset, kind, dpl=0, ist=0, present=True):
    """Sixteen bytes of a 64-bit gate; the low eight are a 32-bit gate (`ist`: its parameter count)."""
    rights = kind | dpl << 5 | (0x80 if present else 0)
    low = offset & 0xFFFF | selector << 16 | ist << 32 | rights << 40 | (offset >> 16 & 0xFFFF) << 48
    return low, offset >> 32


class World:
    def __init__(self, mode="long64"):
        self.ram = np.zeros(RAM, np.uint8)
        self.flags = np.zeros(RAM >> 12, np.uint8)
        self.stamps = np.zeros(RAM >> 12, np.uint32)
        self.tlb = new_tlb()
        self.record = new_record(PROCESSOR)
        self.cpu = cpu = PROCESSOR.view(host_address(self.record))
        cpu.host_ram, cpu.ram_low = host_address(self.ram), RAM
        cpu.host_page_flags, cpu.host_page_stamp = host_address(self.flags), host_address(self.stamps)
        cpu.host_tlb = host_address(self.tlb)
        self.cpuid = cpuid_table()
        cpu.host_cpuid = host_address(self.cpuid)
        cpu.device_gpa = cpu.interrupt_vector = cpu.preemption_deadline = -1
        cpu.tsc_khz, cpu.ns_per_instruction = 1_000_000, 1
        cpu.limit = -1
        self.decoded = DECODED.new()
        self.d = DECODED.view(host_address(self.decoded))
        self.tables()
        getattr(self, mode)()

    # --- memory ---

    def put(self, address, value, size=8):
        self.ram[address : address + size] = np.frombuffer(
            (value & (1 << 8 * size) - 1).to_bytes(size, "little"), np.uint8
        )

    def get(self, address, size=8):
        return int.from_bytes(self.ram[address : address + size].tobytes(), "little")

    def words(self, address, count, size=8):
        return [self.get(address + i * size, size) for i in range(count)]

    def put_gate(self, vector, selector, offset, kind=0xE, dpl=0, ist=0, present=True, width=16):
        low, high = gate(selector, offset, kind, dpl, ist, present)
        self.put(IDT + vector * width, low)
        if width == 16:
            self.put(IDT + vector * width + 8, high)

    def tables(self):
        self.put(PAGE_TABLES, 0x2007)
        self.put(0x2000, 0x3007)
        self.put(0x3000, 0x87)
        for selector, access in (
            (CODE64, 0xA09B), (DATA0, 0xC093), (CODE32, 0xC09B), (CODE64_3, 0xA0FB), (DATA3, 0xC0F3),
            (CODE32_3, 0xC0FB), (CONFORMING, 0xA09F), (ABSENT, 0xC013), (READ_ONLY, 0xC091),
        ):  # fmt: skip
            self.put(GDT + (selector & ~7), descriptor(0, 0xFFFF_FFFF, access))
        self.put(GDT + TASK, descriptor(TSS, 0x67, 0x89))
        self.put(GDT + LOCAL, descriptor(LDT, 0xFF, 0x82))
        for i in range(3):
            self.put(TSS + 4 + 8 * i, STACK0 - 0x100 * i)
        self.put(TSS + 36, STACK_IST1)
        self.put(TSS + 102, 0x68, 2)

    # --- modes ---

    def segment(self, register, selector, access, base=0, limit=0xFFFF_FFFF):
        segment = self.cpu.segments[register]
        segment.selector, segment.access, segment.base, segment.limit = selector, access, base, limit

    def _common(self, task_access):
        cpu = self.cpu
        cpu.gdtr_base, cpu.gdtr_limit, cpu.idtr_base, cpu.idtr_limit = GDT, 0xFF, IDT, 0xFFF
        self.segment(TR, TASK, task_access, TSS, 0x67)
        self.segment(LDTR, LOCAL, 0x82, LDT, 0xFF)
        cpu.rip = CODE
        put_rflags(cpu, 2)

    def long64(self, cpl=0):
        cpu = self.cpu
        cpu.cr0, cpu.cr4, cpu.efer, cpu.cr3 = 0x8001_0033, 0x20, 0xD01, PAGE_TABLES
        self.segment(CS, CODE64_3 if cpl else CODE64, 0xA0FB if cpl else 0xA09B)
        for register in (SS, DS, ES, FS, GS):
            self.segment(register, DATA3 if cpl else DATA0, 0xC0F3 if cpl else 0xC093)
        self._common(0x8B)
        cpu.gpr[4] = STACK3 if cpl else STACK0 - 0x200
        update_mode(cpu)
        flush_all(cpu)
        return self

    def ring3(self):
        return self.long64(3)

    def compat(self):
        self.long64()
        self.segment(CS, CODE32, 0xC09B)
        update_mode(self.cpu)

    def protected32(self, cpl=0):
        cpu = self.cpu
        cpu.cr0, cpu.cr4, cpu.efer, cpu.cr3 = 0x33, 0, 0, 0
        self.segment(CS, CODE32_3 if cpl else CODE32, 0xC0FB if cpl else 0xC09B)
        for register in (SS, DS, ES, FS, GS):
            self.segment(register, DATA3 if cpl else DATA0, 0xC0F3 if cpl else 0xC093)
        self._common(0x8B)
        for i in range(3):
            self.put(TSS + 4 + 8 * i, STACK0, 4)
            self.put(TSS + 8 + 8 * i, DATA0 | i, 4)
        cpu.gpr[4] = STACK3 if cpl else STACK0 - 0x200
        update_mode(cpu)
        return self

    def protected32_ring3(self):
        return self.protected32(3)

    def real(self):
        cpu = self.cpu
        cpu.cr0, cpu.cr4, cpu.efer, cpu.cr3 = 0x30, 0, 0, 0
        for register in (CS, SS, DS, ES, FS, GS):
            self.segment(register, 0, 0x93, 0, 0xFFFF)
        self._common(0x8B)
        cpu.gpr[4] = STACK0
        cpu.idtr_limit = 0x3FF
        update_mode(cpu)

    # --- execution ---

    def execute(self, code: bytes):
        """Execute one instruction at cpu.rip as the run loop does. Faults stay in flight."""
        cpu = self.cpu
        linear = unsigned(cpu.rip) + (0 if cpu.code_mode == 2 else int(cpu.segments[CS].base))
        self.ram[linear : linear + len(code)] = np.frombuffer(code, np.uint8)
        assert decode_at(self.d, host_address(self.ram) + linear, len(code), int(cpu.code_mode)) == DECODED_OK
        assert self.d.length == len(code), (code.hex(), self.d.length)
        cpu.fault = 0
        cpu.next_rip = cpu.rip + self.d.length
        status = GROUPS[int(self.d.op) >> 5](cpu, self.d)
        if status in (Status.OK, Status.JUMP):
            cpu.rip = cpu.next_rip
            cpu.retired += 1
        return Status(status) if status in Status._value2member_map_ else status

    def fault(self):
        """(vector, error code) of the fault in flight, or None."""
        cpu = self.cpu
        return (int(cpu.fault_vector), int(cpu.fault_error)) if cpu.fault else None

    @property
    def rflags(self):
        return unsigned(rflags_of(self.cpu))

    @rflags.setter
    def rflags(self, value):
        put_rflags(self.cpu, value)


def quads(*values):
    return struct.pack(f"<{len(values)}Q", *values)


__all__ = ["World", "descriptor", "gate", "signed", "unsigned"]

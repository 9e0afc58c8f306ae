"""A processor record with RAM and a TLB, and what the tests do with it.

RAM is LOW bytes from address 0 and HIGH bytes from 4 GiB (where the tests put EPT tables).
"""

import numpy as np

from vmx.mmu import twin
from vmx.mmu.access import load_slow, store_slow
from vmx.mmu.mode import update_mode
from vmx.mmu.tlb import BANK_BYTES, SUPERVISOR, TLB_ENTRY, flush_all, new_tlb
from vmx.mmu.translate import EPT_EXIT, FETCH, IMPLICIT, PHYSICAL_ADDRESS_BITS, READ, WRITE, translate
from vmx.state.bits import signed, unsigned
from vmx.state.memory import host_address
from vmx.state.processor import (
    CR0_PE,
    CR0_PG,
    CR4_PAE,
    CR4_PSE,
    EFER_LMA,
    EFER_LME,
    EFER_NXE,
    FAULT,
    FLAG_AC,
    GP,
    PF,
    PROCESSOR,
    SS,
    new_record,
)

LOW, HIGH = 512 << 10, 64 << 10
HIGH_BASE = 1 << 32
EPT_TABLES = HIGH_BASE  # root, then one table per level
MODES = ("none", "32-bit", "32-bit PSE", "PAE", "4-level")
ACCESSES = [kind | implicit for implicit in (0, IMPLICIT) for kind in (READ, WRITE, FETCH)]
ALL_FLAGS = 0x67  # present, writable, user, accessed, dirty


class World:
    def __init__(self):
        self.ram = np.zeros(LOW + HIGH, np.uint8)
        self.flags = np.zeros((LOW + HIGH) // 4096, np.uint8)
        self.stamps = np.zeros((LOW + HIGH) // 4096, np.uint32)
        self.tlb = new_tlb()
        self.record = new_record(PROCESSOR)
        self.cpu = cpu = PROCESSOR.view(host_address(self.record))
        cpu.host_ram, cpu.ram_low, cpu.ram_high = host_address(self.ram), LOW, HIGH
        cpu.host_page_flags, cpu.host_page_stamp = host_address(self.flags), host_address(self.stamps)
        cpu.host_tlb = host_address(self.tlb)
        cpu.device_gpa = -1

    def reset(self):
        """Empty memory; a new TLB context."""
        self.ram[:] = 0
        self.flags[:] = 0
        self.cpu.eptp = self.cpu.vpid = 0
        self.cpu.device_gpa = -1

    # --- memory ---

    def offset(self, physical):
        if physical < LOW:
            return physical
        if HIGH_BASE <= physical < HIGH_BASE + HIGH:
            return LOW + physical - HIGH_BASE
        return None

    def read(self, physical):
        """Eight bytes; all ones outside RAM."""
        at = self.offset(physical)
        return (1 << 64) - 1 if at is None else int.from_bytes(self.ram[at : at + 8].tobytes(), "little")

    def put(self, physical, value, size=8):
        """Store an entry; ignored outside RAM."""
        at = self.offset(physical)
        if at is not None:
            self.ram[at : at + size] = np.frombuffer(
                (value & (1 << 8 * size) - 1).to_bytes(size, "little"), np.uint8
            )

    # --- control registers ---

    def set_mode(self, mode, *, cr3=0, cr0=0, cr4=0, nxe=False, cpl=0, ac=False):
        """Switch to a mode of MODES; cr0 and cr4 are further bits."""
        cpu = self.cpu
        cpu.cr0 = CR0_PE | cr0 | (CR0_PG if mode != "none" else 0)
        cpu.cr4 = cr4 | {"32-bit PSE": CR4_PSE, "PAE": CR4_PAE, "4-level": CR4_PAE}.get(mode, 0)
        cpu.efer = (EFER_NXE if nxe else 0) | (EFER_LME | EFER_LMA if mode == "4-level" else 0)
        cpu.cr3 = cr3
        cpu.rflags = FLAG_AC if ac else 0
        cpu.segments[SS].access = cpl << 5
        update_mode(cpu)

    def state(self):
        """The twin's view of all this."""
        cpu = self.cpu
        names = ("cr0", "cr3", "cr4", "efer", "eptp")
        return twin.State(
            read=self.read,
            cpl=int(cpu.cpl),
            ac=bool(cpu.rflags & FLAG_AC),
            pdptes=tuple(unsigned(cpu.pdpte[i]) for i in range(4)),
            physical_address_bits=PHYSICAL_ADDRESS_BITS,
            **{name: unsigned(getattr(cpu, name)) for name in names},
        )

    # --- translations ---

    def outcome(self, status, linear):
        """What happened, as a tuple that `expected` makes from the twin's result."""
        cpu = self.cpu
        if status == 0:
            assert cpu.fault == 0
            return "ok", unsigned(cpu.walk_gpa), unsigned(cpu.walk_hpa)
        assert status == cpu.fault
        cpu.fault = 0
        if status == FAULT and cpu.fault_vector == GP:
            return "general protection", int(cpu.fault_error)
        if status == FAULT and cpu.fault_vector == PF:
            assert unsigned(cpu.fault_address) == linear
            return "page fault", int(cpu.fault_error)
        assert status == EPT_EXIT and unsigned(cpu.exit_linear) == linear
        kind = {48: "EPT violation", 49: "EPT misconfiguration"}[int(cpu.ept_reason)]
        return kind, unsigned(cpu.exit_physical), int(cpu.ept_qualification)

    @staticmethod
    def expected(result):
        if result.kind == "ok":
            return "ok", result.gpa, result.hpa
        if result.kind in ("page fault", "general protection"):
            return result.kind, result.error_code
        return result.kind, result.gpa, result.qualification

    def translate(self, linear, access):
        return self.outcome(translate(self.cpu, signed(linear), access), linear)

    def check(self, linear, access, cold=False):
        """One translation against the twin: outcome, memory, page flags; after a flush the references too."""
        result = twin.walk(self.state(), linear, access)
        memory = self.ram.copy()
        for physical, size, value in result.writes:
            at = self.offset(physical)
            if at is not None:
                memory[at : at + size] = np.frombuffer(value.to_bytes(size, "little"), np.uint8)
        if cold:
            flush_all(self.cpu)
        before = int(self.cpu.walk_references)
        outcome = self.translate(linear, access)
        assert outcome == self.expected(result), (hex(linear), access, result)
        assert np.array_equal(self.ram, memory), [
            (hex(at), memory[at], self.ram[at]) for at in np.flatnonzero(self.ram != memory)[:4]
        ]
        for physical, _, _ in result.writes:
            at = self.offset(physical)
            assert at is None or self.flags[at >> 12] & 2
        references = int(self.cpu.walk_references) - before
        assert references == result.references if cold else references in (0, result.references)
        return result

    def entry(self, linear, access=READ):
        """The TLB entry that an access would look at, and its tag's match."""
        cpu = self.cpu
        bank = cpu.host_tlb + SUPERVISOR * BANK_BYTES if access & IMPLICIT else cpu.tlb_bank
        entry = TLB_ENTRY.view(bank + (linear >> 12 & 1023) * TLB_ENTRY.size)
        tag = (entry.read, entry.write, entry.fetch)[access & 3]
        return entry, unsigned(tag) == linear & ~0xFFF & (1 << 64) - 1 | int(cpu.tlb_context)

    def hit(self, linear, access=READ):
        """Whether the inline look-up of vmx.mmu.access would succeed."""
        return self.entry(linear, access)[1]

    def check_tags(self, linear):
        """Every tag that matches must stand for an access that the twin allows without writing a flag."""
        for access in ACCESSES:
            entry, matches = self.entry(linear, access)
            if not matches:
                continue
            result = twin.walk(self.state(), linear, access)
            assert result.kind == "ok" and not result.writes, (hex(linear), access, result)
            host = unsigned(entry.host_delta) + linear & (1 << 64) - 1
            assert host == unsigned(self.cpu.host_ram) + self.offset(result.hpa)

    def load(self, linear, size, access=READ):
        """(value, fault status)."""
        value = load_slow(self.cpu, signed(linear), size, access)
        fault, self.cpu.fault = int(self.cpu.fault), 0
        return unsigned(value), fault

    def store(self, linear, size, value, access=WRITE):
        store_slow(self.cpu, signed(linear), size, signed(value), access)
        fault, self.cpu.fault = int(self.cpu.fault), 0
        return fault

    # --- tables ---

    def map_ept(self, *, leaf=4096, accessed_dirty=False, frames=None):
        """EPT for the first LOW bytes of guest-physical memory; `frames[n]`: the frame of page n (else n)."""
        pml4, pdpt, pd, pt = (EPT_TABLES + 4096 * i for i in range(4))
        self.put(pml4, pdpt | 7)
        self.put(pdpt, 0 | 0xB7 if leaf == 1 << 30 else pd | 7)
        self.put(pd, 0 | 0xB7 if leaf == 1 << 21 else pt | 7)
        for page in range(LOW >> 12):
            self.put(pt + 8 * page, (frames[page] if frames else page) << 12 | 0x37)
        self.cpu.eptp = pml4 | 3 << 3 | 6 | (accessed_dirty << 6)
        return pml4, pdpt, pd, pt


def levels_of(mode):
    """(entry bytes, [(high, low) bits of the linear address per level])."""
    return {
        "none": (0, []),
        "32-bit": (4, [(31, 22), (21, 12)]),
        "32-bit PSE": (4, [(31, 22), (21, 12)]),
        "PAE": (8, [(29, 21), (20, 12)]),
        "4-level": (8, [(47, 39), (38, 30), (29, 21), (20, 12)]),
    }[mode]

"""vmx executing cases: a processor record with two MiB of RAM, in 64-bit mode behind real page tables."""

import numpy as np

from tests.oracles.cases import CASE, LAYOUTS, NO_VECTOR, WINDOW
from vmx.cpu.blocks import new_code_cache
from vmx.cpu.decode import DECODED_OK, INVALID, decode
from vmx.cpu.interpreter import _execute, run
from vmx.cpu.native import stub_table
from vmx.cpu.operands import raise_fault
from vmx.mmu.mode import paging_changed
from vmx.mmu.tlb import new_tlb
from vmx.state.flags import get_rflags, set_rflags
from vmx.state.memory import copy_bytes, host_address, load32, store32
from vmx.state.processor import (
    CR0_ET,
    CR0_NE,
    CR0_PE,
    CR0_PG,
    CR0_WP,
    CR4_OSFXSR,
    CR4_PAE,
    CS,
    DECODED,
    EFER_LMA,
    EFER_LME,
    EFER_NXE,
    FAULT,
    FLAG_RF,
    FLAT,
    GP,
    JUMP,
    OK,
    PREFIX_REP,
    PREFIX_REPNE,
    PROCESSOR,
    SS,
    UD,
    Stop,
    new_record,
)
from vmx.state.unit import unit

RAM_BYTES = 2 << 20
CASE_BYTES = CASE.size
MEMORY_AT = CASE.offset("memory")
PAGE_TABLES = 0x1000  # PML4, directory pointers, directory, table
UNEXPECTED = 1000  # added to a status that no user-level instruction returns
STOP_LIMIT = int(Stop.LIMIT)
STATUS_OK, STATUS_JUMP, STATUS_FAULT = int(OK), int(JUMP), int(FAULT)


@unit(PROCESSOR, DECODED, "i64", "i64", "i64", "i64", "i64")
def run_cases(cpu, d, cases, count, data_page, zero_page, code_page):
    """Run `count` cases in place; pages are host addresses of the guest's data and code pages and of zeroes."""
    for i in range(count):
        at = cases + i * CASE_BYTES
        case = CASE.at(at)
        copy_bytes(data_page, zero_page, 4096 - WINDOW)
        copy_bytes(data_page + 4096 - WINDOW, at + MEMORY_AT, WINDOW)
        copy_bytes(code_page + (case.rip & 0xFFF), at, 16)
        for n in range(16):
            cpu.gpr[n] = case.gpr[n]
        set_rflags(cpu, case.rflags)
        cpu.rip = case.rip
        cpu.fault = 0
        decoded = decode(d, code_page + (case.rip & 0xFFF), 15, cpu.code_mode, cpu.features)
        status = STATUS_FAULT
        if decoded == INVALID:
            raise_fault(cpu, UD, 0)
        elif decoded != DECODED_OK:
            raise_fault(cpu, GP, 0)
        else:
            again = 1
            while again:
                cpu.next_rip = cpu.rip + d.length
                status = _execute(cpu, d)
                again = 0
                if status == STATUS_JUMP and cpu.next_rip == cpu.rip:
                    again = 1 if d.prefixes & (PREFIX_REP | PREFIX_REPNE) else 0
        if status == STATUS_OK or status == STATUS_JUMP:
            case.rip = cpu.next_rip
            case.vector = NO_VECTOR
        elif status == STATUS_FAULT:
            case.vector = cpu.fault_vector
            case.error = cpu.fault_error
            case.address = cpu.fault_address
        else:
            case.vector = UNEXPECTED + status
        for n in range(16):
            case.gpr[n] = cpu.gpr[n]
        case.rflags = get_rflags(cpu) & ~FLAG_RF
        copy_bytes(at + MEMORY_AT, data_page + 4096 - WINDOW, WINDOW)
    return 0


@unit(PROCESSOR, "i64", "i64", "i64", "i64", "i64")
def run_loop_cases(cpu, cases, count, data_page, code_page, code_stamp):
    """The same through the run loop: fetch, decoded blocks, hot codes. The instructions must not fault."""
    for i in range(count):
        at = cases + i * CASE_BYTES
        case = CASE.at(at)
        copy_bytes(data_page + 4096 - WINDOW, at + MEMORY_AT, WINDOW)
        copy_bytes(code_page + (case.rip & 0xFFF), at, 16)
        store32(code_stamp, load32(code_stamp) + 1)  # decoded code of the page is stale
        for n in range(16):
            cpu.gpr[n] = case.gpr[n]
        set_rflags(cpu, case.rflags)
        cpu.rip = case.rip
        rip = cpu.rip
        again = 1
        while again:  # a chunk of a REP instruction counts as one
            cpu.limit = cpu.retired + 1
            run(cpu)
            again = 1 if cpu.rip == rip and cpu.stop == STOP_LIMIT and again < 100 else 0
        case.rip = cpu.rip
        case.vector = NO_VECTOR if cpu.stop == STOP_LIMIT else UNEXPECTED + cpu.stop
        for n in range(16):
            case.gpr[n] = cpu.gpr[n]
        case.rflags = get_rflags(cpu) & ~FLAG_RF
        copy_bytes(at + MEMORY_AT, data_page + 4096 - WINDOW, WINDOW)
    return 0


class Model:
    """A processor that runs cases. `mode` is 0 (real mode), 1 (flat 32-bit) or 2 (64-bit); privilege level `cpl`."""

    def __init__(self, mode: int = 2, cpl: int = 3, features: int = 0):
        self.record, self.decoded = new_record(PROCESSOR), new_record(DECODED)
        self.address = host_address(self.record)
        self.view = PROCESSOR.view(self.address)
        self.ram = np.zeros(RAM_BYTES + 4096, np.uint8)
        self.flags = np.zeros(RAM_BYTES >> 12, np.uint8)
        self.stamps = np.zeros(RAM_BYTES >> 12, np.uint32)
        self.tlb = new_tlb()
        self.code_cache = new_code_cache()
        self.zeroes = np.zeros(4096, np.uint8)
        view = self.view
        view.host_ram, view.ram_low = host_address(self.ram), RAM_BYTES
        view.host_page_flags, view.host_page_stamp = host_address(self.flags), host_address(self.stamps)
        view.host_tlb = host_address(self.tlb)
        view.host_code_cache = host_address(self.code_cache)
        view.host_vector_stubs = stub_table()
        view.features = features
        view.limit = view.preemption_deadline = view.interrupt_vector = view.device_gpa = -1
        self.layout = LAYOUTS[mode]
        self._enter(mode, cpl)
        self.ram[self.layout.code : self.layout.code + 4096] = 0xCC

    def _enter(self, mode, cpl):
        view = self.view
        view.cr0 = CR0_ET | CR0_NE
        for n in range(9):
            segment = view.segments[n]
            segment.limit, segment.access = 0xFFFF, 0x93
        for n, base in enumerate(self.layout.bases):
            view.segments[n].base, view.segments[n].selector = base, base >> 4
        view.segments[FLAT].limit = 0xFFFF_FFFF
        if mode == 1:
            view.cr0 = CR0_PE | CR0_ET | CR0_NE
            for n in range(6):
                segment = view.segments[n]
                segment.limit, segment.access = 0xFFFF_FFFF, 0xC09B if n == CS else 0xC093
                segment.selector = 8 if n == CS else 16
        if mode == 2:
            tables = self.ram[PAGE_TABLES : PAGE_TABLES + 4 * 4096].view(np.uint64).reshape(4, 512)
            for level in range(3):
                tables[level, 0] = PAGE_TABLES + (level + 1) * 4096 | 7
            for page in (self.layout.data, self.layout.code):
                tables[3, page >> 12] = page | 7
            view.cr3 = PAGE_TABLES
            view.cr0 = CR0_PE | CR0_ET | CR0_NE | CR0_WP | CR0_PG
            view.cr4 = CR4_PAE | CR4_OSFXSR
            view.efer = EFER_LME | EFER_LMA | EFER_NXE
            view.segments[CS].access = 0xA09B | cpl << 5
            view.segments[CS].selector = 0x30 | cpl
            view.segments[SS].access = 0xC093 | cpl << 5
            view.segments[SS].selector = 0x28 | cpl
        paging_changed(self.address)

    def run_loop(self, cases: np.ndarray) -> np.ndarray:
        """The same through `vmx.cpu.interpreter.run`; for cases that do not fault."""
        after = cases.copy()
        host, page = host_address(self.ram), self.layout.code >> 12
        run_loop_cases(
            self.address,
            host_address(after),
            len(after),
            host + self.layout.data,
            host + self.layout.code,
            host_address(self.stamps) + 4 * page,
        )
        return after

    def run(self, cases: np.ndarray) -> np.ndarray:
        """The cases after their instruction; the argument stays as it is."""
        after = cases.copy()
        host = host_address(self.ram)
        run_cases(
            self.address,
            host_address(self.decoded),
            host_address(after),
            len(after),
            host + self.layout.data,
            host_address(self.zeroes),
            host + self.layout.code,
        )
        return after

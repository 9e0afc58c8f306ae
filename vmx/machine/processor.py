"""A virtual CPU as Python sees it: the processor record, what it points to, and the run call."""

from collections.abc import Iterator

import numpy as np

from vmx.boot.image import InitialState
from vmx.cpu.blocks import new_code_cache
from vmx.cpu.cpuid import cpuid_table
from vmx.cpu.interpreter import run
from vmx.cpu.native import available, stub_table
from vmx.cpu.registers import read_rflags, write_rflags
from vmx.isa.features import feature_mask
from vmx.machine.memory import Memory
from vmx.mmu.mode import update_mode
from vmx.mmu.tlb import new_tlb
from vmx.state.bits import signed, unsigned
from vmx.state.memory import host_address
from vmx.state.processor import ACCESS_UNUSABLE, FLAT, PROCESSOR, Stop, new_record
from vmx.virt.preemption import time_passed

KEPT_BY_RESET = ("retired", "time_base_ns", "limit", "random_state")
REGISTERS = "rax rcx rdx rbx rsp rbp rsi rdi r8 r9 r10 r11 r12 r13 r14 r15".split()
SEGMENTS = "es cs ss ds fs gs ldtr tr".split()
RESET_SIGNATURE_PAT = 0x0007_0406_0007_0406
APIC_BASE_RESET = 0xFEE0_0800
APIC_BASE_BSP = 0x100
WRITE_BACK_BYTES = 0x0606_0606_0606_0606


class VirtualCpu:
    """One virtual CPU. `state` is the processor record (numpy void), `view` the same record by attributes.

    `features` are the instruction sets beyond x86-64-v1 (see vmx.isa.features), `seed` is that of RDRAND and RDSEED.
    """

    def __init__(
        self,
        index: int,
        memory: Memory,
        *,
        cpus: int = 1,
        ns_per_instruction: int = 16,
        features: frozenset[str] = frozenset(),
        seed: int = 0,
        **cpuid_options,
    ):
        self.index, self.memory = index, memory
        self._record = new_record(PROCESSOR)
        self.state = self._record[0]
        self.address = host_address(self._record)
        self.view = PROCESSOR.view(self.address)
        self._tlb = new_tlb()
        self._code_cache = new_code_cache()
        self._cpuid = cpuid_table(cpus=cpus, features=features, **cpuid_options)
        self._features = feature_mask(features)
        self.view.random_state = signed(seed + index)
        self._ns = ns_per_instruction
        self.reset()

    def reset(self) -> None:
        """Power-up state ("Processor State After Reset"); time and counters go on."""
        kept = {name: self.state[name].copy() for name in KEPT_BY_RESET}
        self._record.view(np.uint8)[:] = 0
        state, view = self.state, self.view
        for name, value in kept.items():
            state[name] = value
        view.rip, view.rflags = 0xFFF0, 0
        view.flag_result = 1  # ZF = 0
        view.cr0 = 0x10  # firmware has switched the caches on: VM entry leaves CD and NW as they are
        view.gpr[2] = 0x600  # EDX: family
        view.xcr0 = 1
        view.dr[6], view.dr[7] = 0xFFFF_0FF0, 0x400
        view.features = self._features
        view.pat = RESET_SIGNATURE_PAT
        view.misc_enable, view.feature_control = 0x1801, 1
        view.apic_base = APIC_BASE_RESET | (APIC_BASE_BSP if self.index == 0 else 0)
        view.mtrr_def_type = 0xC06  # as firmware leaves it: enabled, write-back
        for i in range(11):
            view.mtrr_fixed[i] = WRITE_BACK_BYTES
        view.interrupt_vector = -1
        view.preemption_deadline = -1
        view.device_gpa = -1
        view.ns_per_instruction = self._ns
        view.tsc_khz = 1_000_000
        view.cpu_index = view.apic_id = self.index
        for i in range(9):
            segment = view.segments[i]
            segment.limit = 0xFFFF
            segment.access = 0x93
        view.segments[1].selector, view.segments[1].base, view.segments[1].access = 0xF000, 0xFFFF_0000, 0x9B
        view.segments[6].access, view.segments[7].access = 0x82, 0x8B
        view.segments[FLAT].limit = 0xFFFF_FFFF
        view.gdtr_limit = view.idtr_limit = 0xFFFF
        state["fx"][0:2] = (0x7F, 0x03)  # FCW 0x37F
        state["fx"][24:28] = (0x80, 0x1F, 0, 0)  # MXCSR 0x1F80
        state["fx"][28:32] = (0xFF, 0xFF, 0, 0)  # MXCSR_MASK
        view.host_ram = host_address(self.memory.bytes)
        view.ram_low, view.ram_high = self.memory.low, self.memory.high
        view.host_page_flags = host_address(self.memory.page_flags)
        view.host_page_stamp = host_address(self.memory.page_stamps)
        view.host_tlb = host_address(self._tlb)
        view.host_code_cache = host_address(self._code_cache)
        view.host_cpuid = host_address(self._cpuid)
        view.host_vector_stubs = signed(stub_table()) if available() else 0
        self._tlb[...] = 0
        self._flush()

    def _flush(self) -> None:
        from vmx.mmu.tlb import flush_all

        flush_all(self.address)
        update_mode(self.address)

    def load(self, initial: InitialState) -> None:
        """The registers that a boot image starts with, in root operation."""
        view = self.view
        self.load_general(initial)
        view.cr0, view.cr3, view.cr4, view.efer = (
            signed(v) for v in (initial.cr0, initial.cr3, initial.cr4, initial.efer)
        )
        if initial.cr0 >> 31 and initial.efer & 0x100:
            view.efer = initial.efer | 0x400
        view.rip, view.gpr[4] = signed(initial.rip), signed(initial.rsp)
        write_rflags(self.address, initial.rflags)
        view.gdtr_base, view.gdtr_limit = signed(initial.gdt_base), initial.gdt_limit
        view.idtr_base, view.idtr_limit = signed(initial.idt_base), initial.idt_limit
        for i, name in enumerate(SEGMENTS):
            source = initial.segments.get(name)
            segment = view.segments[i]
            if source is None:
                segment.selector, segment.base, segment.limit, segment.access = 0, 0, 0, ACCESS_UNUSABLE
            else:
                segment.selector, segment.base = source[0], signed(source[1])
                segment.limit, segment.access = source[2], source[3]
        self._flush()

    def load_general(self, initial: InitialState) -> None:
        """RAX to R15 of a boot image (RSP is loaded with RIP)."""
        for number, name in enumerate(REGISTERS):
            self.view.gpr[number] = signed(initial.registers.get(name, 0))

    def run(self, limit: int) -> Stop:
        """Run until `retired` reaches `limit` or something needs the host. Releases the GIL."""
        self.view.limit = limit
        return Stop(run(self.address))

    def instruction_at(self, at_ns: int) -> int:
        """The instruction count at which virtual time reaches `at_ns`."""
        return -((int(self.state["time_base_ns"]) - at_ns) // self._ns)

    def advance_to(self, at_ns: int) -> None:
        """Move virtual time forward to `at_ns`; the processor was halted."""
        ahead = at_ns - self.virtual_ns
        if ahead > 0:
            self.view.time_base_ns = int(self.state["time_base_ns"]) + ahead
            time_passed(self.view, ahead)

    # --- inspection -------------------------------------------------------------------------------------

    @property
    def retired(self) -> int:
        """Instructions retired."""
        return int(self.state["retired"])

    @property
    def virtual_ns(self) -> int:
        """Virtual time in ns."""
        return int(self.state["time_base_ns"]) + int(self.state["retired"]) * self._ns

    @property
    def walks(self) -> tuple[int, int]:
        """Page walks made, and the paging-structure references in them (guest's and EPT's)."""
        return int(self.state["guest_walks"]), int(self.state["walk_references"])

    @property
    def registers(self) -> dict[str, int]:
        """The registers that people ask for, unsigned."""
        values = {name: int(self.state["gpr"][i]) for i, name in enumerate(REGISTERS)}
        values["rip"] = int(self.state["rip"])
        values["rflags"] = unsigned(read_rflags(self.address))
        for name in ("cr0", "cr2", "cr3", "cr4", "cr8", "efer", "xcr0"):
            values[name] = int(self.state[name])
        for i, name in enumerate(SEGMENTS):
            values[name] = int(self.state["segments"][i]["selector"])
        return values

    def set_register(self, name: str, value: int) -> None:
        """Write a general register, RIP or RFLAGS. KeyError for another name."""
        if name == "rflags":
            write_rflags(self.address, signed(value))
        elif name == "rip":
            self.view.rip = signed(value)
        else:
            self.view.gpr[REGISTERS.index(name)] = signed(value)

    @property
    def mode(self) -> str:
        """In words: "64-bit", "32-bit protected", "real" and so on."""
        width = (16, 32, 64)[int(self.state["code_mode"])]
        if not int(self.state["cr0"]) & 1:
            return f"real ({width}-bit)"
        if int(self.state["long_mode"]):
            return "64-bit" if width == 64 else f"compatibility ({width}-bit)"
        return f"protected ({width}-bit)"

    def undecoded(self) -> Iterator[tuple[str, int]]:
        """(opcode, times) of opcodes that raised #UD because no instruction is there."""
        maps = ("", "0F ", "0F 38 ", "0F 3A ", "VEX 0F ", "VEX 0F 38 ", "VEX 0F 3A ")
        counts = self.state["undecoded"]
        for key in np.nonzero(counts)[0]:
            yield f"{maps[key >> 8]}{key & 0xFF:02X}", int(counts[key])

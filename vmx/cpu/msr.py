"""Model-specific registers: which exist, what they accept; and the time-stamp counter.

Manual: "Model-Specific Registers (MSRs)", "Time-Stamp Counter", "Memory Type Range Registers". A register
that does not exist raises #GP(0). The local APIC's registers (IA32_APIC_BASE, IA32_TSC_DEADLINE, 0x800-0x8FF)
are the platform's: the host answers a read with two entries of the bus log, 1 and the value, or with one 0
for #GP; a write with one entry, 1 or 0.
"""

import numpy as np

from vmx.cpu.cpuid import reports_vmx
from vmx.cpu.operands import raise_fault
from vmx.mmu.bus import MSR, bus_access
from vmx.mmu.ept import PHYSICAL_ADDRESS_BITS
from vmx.mmu.mode import paging_changed, update_mode
from vmx.state.bits import shr, udiv, urem
from vmx.state.jit import compiled
from vmx.state.memory import load64, store64
from vmx.state.processor import (
    CR0_PG,
    EFER_LMA,
    EFER_LME,
    EFER_NXE,
    FS,
    GP,
    GS,
    OK,
    PROCESSOR,
)
from vmx.state.unit import unit
from vmx.virt.capability import has_vmx_msr, vmx_msr
from vmx.virt.values import DEBUGCTL_BITS, EFER_BITS, is_canonical, is_memory_type_list

TSC, APIC_BASE, FEATURE_CONTROL, TSC_ADJUST = 0x10, 0x1B, 0x3A, 0x3B
PREDICTION_COMMAND, TSC_DEADLINE, EFER = 0x49, 0x6E0, 0xC000_0080
FS_BASE, GS_BASE = 0xC000_0100, 0xC000_0101
FIRST_X2APIC, LAST_X2APIC = 0x800, 0x8FF

# what WRMSR accepts
ANY, CANONICAL, WORD, MEMORY_TYPES, DEBUG_CONTROL, MTRR_DEFAULT, MTRR_BASE, MTRR_MASK, SPECULATION, MISC = (
    range(10)
)
CONSTANT, IGNORED = 10, 11  # a write is #GP; a write does nothing

MTRR_CAPABILITIES = 8 | 1 << 8 | 1 << 10  # eight variable ranges, fixed ranges, write combining
FIXED_MTRRS = (0x250, 0x258, 0x259, *range(0x268, 0x270))
MICROCODE_REVISION = 0x100 << 32
FAST_STRINGS, BTS_UNAVAILABLE, PEBS_UNAVAILABLE = 1, 1 << 11, 1 << 12
MISC_FIXED = BTS_UNAVAILABLE | PEBS_UNAVAILABLE
MISC_WRITABLE = FAST_STRINGS | 1 << 22 | 1 << 34  # limit CPUID, execute-disable off
# IA32_ARCH_CAPABILITIES: there is no speculation in this model, so it has none of its side channels.
NOT_VULNERABLE = sum(1 << i for i in (0, 1, 3, 4, 5, 6, 8, 13, 14, 15, 17, 20, 24, 26, 27, 62))


def _offset(name: str, position: int = 0) -> int:
    return PROCESSOR.offset(name) + 8 * position


# (MSR, offset in the processor record, or the value of a constant, kind)
_ROWS = [
    (0x17, 0, CONSTANT),  # platform id
    (0x48, _offset("spec_ctrl"), SPECULATION),
    (0x8B, MICROCODE_REVISION, IGNORED),
    (0xFE, MTRR_CAPABILITIES, CONSTANT),
    (0x10A, NOT_VULNERABLE, CONSTANT),
    (0x174, _offset("sysenter_cs"), WORD),
    (0x175, _offset("sysenter_esp"), CANONICAL),
    (0x176, _offset("sysenter_eip"), CANONICAL),
    (0x179, 0, CONSTANT),  # no machine-check banks
    (0x17A, 0, IGNORED),
    (0x1A0, _offset("misc_enable"), MISC),
    (0x1D9, _offset("debugctl"), DEBUG_CONTROL),
    *((0x200 + i, _offset("mtrr_variable", i), MTRR_MASK if i & 1 else MTRR_BASE) for i in range(16)),
    *((number, _offset("mtrr_fixed", i), MEMORY_TYPES) for i, number in enumerate(FIXED_MTRRS)),
    (0x277, _offset("pat"), MEMORY_TYPES),
    (0x2FF, _offset("mtrr_def_type"), MTRR_DEFAULT),
    (0xC000_0081, _offset("star"), ANY),
    (0xC000_0082, _offset("lstar"), CANONICAL),
    (0xC000_0083, _offset("cstar"), CANONICAL),
    (0xC000_0084, _offset("fmask"), WORD),
    (0xC000_0102, _offset("kernel_gs_base"), CANONICAL),
    (0xC000_0103, _offset("tsc_aux"), WORD),
]
_COUNT = len(_ROWS)
_INDEX = np.array([row[0] for row in _ROWS], np.int64)
_PLACE = np.array([row[1] for row in _ROWS], np.int64)
_KIND = np.array([row[2] for row in _ROWS], np.int64)

_RESERVED_PHYSICAL = ~((1 << PHYSICAL_ADDRESS_BITS) - 1)

RESET_VALUES = {
    "pat": 0x0007_0406_0007_0406,
    "misc_enable": FAST_STRINGS | MISC_FIXED,
    "feature_control": 1,  # locked, VMX off
    "mtrr_def_type": 0,
}


# --- time ---------------------------------------------------------------------------------------------------


@compiled
def ticks(cpu):
    """TSC ticks of virtual time: ns * tsc_khz / 10^6, exact, in two parts because the product may not fit."""
    ns = cpu.time_base_ns + cpu.retired * cpu.ns_per_instruction
    if cpu.tsc_khz == 1_000_000:
        return ns
    return udiv(ns, 1_000_000) * cpu.tsc_khz + udiv(urem(ns, 1_000_000) * cpu.tsc_khz, 1_000_000)


@compiled
def time_stamp_counter(cpu):
    """What RDTSC returns, the TSC offset of non-root operation included."""
    value = ticks(cpu) + cpu.tsc_base
    return value + cpu.tsc_offset if cpu.non_root else value


# --- RDMSR --------------------------------------------------------------------------------------------------


@compiled
def _is_platform(index):
    """1 for the local APIC's MSRs."""
    x2apic = FIRST_X2APIC <= index and index <= LAST_X2APIC
    return 1 if x2apic or index == APIC_BASE or index == TSC_DEADLINE else 0


@compiled
def _no_such(cpu):
    raise_fault(cpu, GP, 0)
    return 0


@compiled
def _read_platform(cpu, index):
    accepted = bus_access(cpu, MSR, index, 8, 0, 0)
    if cpu.fault:
        return 0
    if not accepted:
        return _no_such(cpu)
    return bus_access(cpu, MSR, index, 8, 0, 0)


@compiled
def _find(index):
    """The row of an MSR, or -1."""
    for i in range(_COUNT):
        if _INDEX[i] == index:
            return i
    return -1


@unit(PROCESSOR, "i64")
def read_msr(cpu, index):
    """The value of an MSR; cpu.fault is set when there is none, or while the platform has not answered."""
    if _is_platform(index):
        return _read_platform(cpu, index)
    if index == TSC:
        return time_stamp_counter(cpu)
    if index == FS_BASE:
        return cpu.segments[FS].base
    if index == GS_BASE:
        return cpu.segments[GS].base
    if index == EFER:
        return cpu.efer
    if index == TSC_ADJUST:
        return cpu.tsc_adjust
    if index == FEATURE_CONTROL:
        return cpu.feature_control
    row = _find(index)
    if row < 0:
        if has_vmx_msr(index) and reports_vmx(cpu):
            return vmx_msr(index)
        return _no_such(cpu)
    if _KIND[row] >= CONSTANT:
        return _PLACE[row]
    return load64(PROCESSOR.address(cpu) + _PLACE[row])


# --- WRMSR --------------------------------------------------------------------------------------------------


@compiled
def _write_platform(cpu, index, value):
    accepted = bus_access(cpu, MSR, index, 8, 1, value)
    if cpu.fault:
        return cpu.fault
    return OK if accepted else raise_fault(cpu, GP, 0)


@compiled
def write_efer(cpu, value):
    """IA32_EFER: LME cannot change while paging is on; LMA is the processor's."""
    changed = value ^ cpu.efer
    if value & ~EFER_BITS or cpu.cr0 & CR0_PG and changed & EFER_LME:
        return raise_fault(cpu, GP, 0)
    cpu.efer = value & ~EFER_LMA | cpu.efer & EFER_LMA
    if changed & EFER_NXE:
        paging_changed(cpu)
    else:
        update_mode(cpu)
    return OK


@compiled
def _move_tsc(cpu, distance):
    """The TSC jumps, and IA32_TSC_ADJUST records it."""
    cpu.tsc_base += distance
    cpu.tsc_adjust += distance
    return OK


@compiled
def _acceptable(kind, value):
    """1 when a register of this kind takes the value."""
    if kind == ANY or kind == IGNORED:
        return 1
    if kind == CANONICAL:
        return is_canonical(value)
    if kind == WORD:
        return 1 if shr(value, 32) == 0 else 0
    if kind == MEMORY_TYPES:
        return is_memory_type_list(value)
    if kind == DEBUG_CONTROL:
        return 1 if value & ~DEBUGCTL_BITS == 0 else 0
    if kind == MTRR_DEFAULT:
        return 1 if value & ~0xCFF == 0 and is_memory_type_list(value & 0xFF) else 0
    if kind == MTRR_BASE:
        return 1 if value & (_RESERVED_PHYSICAL | 0xF00) == 0 and is_memory_type_list(value & 0xFF) else 0
    if kind == MTRR_MASK:
        return 1 if value & (_RESERVED_PHYSICAL | 0x7FF) == 0 else 0
    if kind == SPECULATION:
        return 1 if value & ~1 == 0 else 0
    if kind == MISC:
        return 1 if value & ~(MISC_WRITABLE | MISC_FIXED) == 0 else 0
    return 0


@unit(PROCESSOR, "i64", "i64")
def write_msr(cpu, index, value):
    """Write an MSR. Returns OK or a status."""
    if _is_platform(index):
        return _write_platform(cpu, index, value)
    if index == FS_BASE or index == GS_BASE:
        if not is_canonical(value):
            return raise_fault(cpu, GP, 0)
        cpu.segments[FS if index == FS_BASE else GS].base = value
        return OK
    if index == EFER:
        return write_efer(cpu, value)
    if index == TSC:
        return _move_tsc(cpu, value - time_stamp_counter(cpu))
    if index == TSC_ADJUST:
        return _move_tsc(cpu, value - cpu.tsc_adjust)
    if index == PREDICTION_COMMAND:
        return OK if value & ~1 == 0 else raise_fault(cpu, GP, 0)
    if index == FEATURE_CONTROL:
        if cpu.feature_control & 1 or value & ~7:
            return raise_fault(cpu, GP, 0)
        cpu.feature_control = value
        return OK
    row = _find(index)
    if row < 0 or not _acceptable(_KIND[row], value):
        return raise_fault(cpu, GP, 0)
    kind = _KIND[row]
    if kind == IGNORED:
        return OK
    if kind == MISC:
        value |= MISC_FIXED
    store64(PROCESSOR.address(cpu) + _PLACE[row], value)
    return OK

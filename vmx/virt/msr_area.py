"""The MSR areas of a VMCS: lists of 16-byte entries (index, reserved, value) stored and loaded around VM
exits.

Manual: "VM-Exit Controls for MSRs", "Loading MSRs", "Saving MSRs". MSRs that are plain state of the
processor record can be listed; any other one fails, which the manual leaves to the model.
"""

import numpy as np

from vmx.mmu.physical import host_of
from vmx.state.bits import shr
from vmx.state.jit import compiled
from vmx.state.memory import load32, load64, store64
from vmx.state.processor import CR0_PG, EFER_LMA, EFER_LME, PROCESSOR
from vmx.virt.capability import MSR_LIST_MAXIMUM
from vmx.virt.fields import vmread
from vmx.virt.values import DEBUGCTL_BITS, EFER_BITS, is_canonical, is_memory_type_list

ENTRY_SIZE = 16
_ANY, _CANONICAL, _WORD, _PAT, _EFER, _DEBUGCTL = range(6)  # what a value must be

_MSRS = (
    (0x174, "sysenter_cs", _WORD),
    (0x175, "sysenter_esp", _CANONICAL),
    (0x176, "sysenter_eip", _CANONICAL),
    (0x1D9, "debugctl", _DEBUGCTL),
    (0x277, "pat", _PAT),
    (0xC000_0080, "efer", _EFER),
    (0xC000_0081, "star", _ANY),
    (0xC000_0082, "lstar", _CANONICAL),
    (0xC000_0083, "cstar", _CANONICAL),
    (0xC000_0084, "fmask", _WORD),
    (0xC000_0102, "kernel_gs_base", _CANONICAL),
    (0xC000_0103, "tsc_aux", _WORD),
)
_COUNT = len(_MSRS)
_INDEX = np.array([index for index, _, _ in _MSRS], np.int64)
_OFFSET = np.array([PROCESSOR.offset(name) for _, name, _ in _MSRS], np.int64)
_KIND = np.array([kind for _, _, kind in _MSRS], np.int64)


@compiled
def _find(index):
    """The row of an MSR, or -1."""
    for i in range(_COUNT):
        if _INDEX[i] == index:
            return i
    return -1


@compiled
def _acceptable(cpu, kind, value):
    """1 when WRMSR of the value would not fault."""
    if kind == _CANONICAL:
        return is_canonical(value)
    if kind == _WORD:
        return 1 if shr(value, 32) == 0 else 0
    if kind == _PAT:
        return is_memory_type_list(value)
    if kind == _DEBUGCTL:
        return 1 if value & ~DEBUGCTL_BITS == 0 else 0
    if kind == _EFER:
        if value & ~EFER_BITS:
            return 0
        return 0 if cpu.cr0 & CR0_PG and (value ^ cpu.efer) & EFER_LME else 1
    return 1


@compiled
def load_msrs(cpu, area, count):
    """Load a list of MSRs. Returns 0, or the number (from 1) of the entry that failed."""
    if count > MSR_LIST_MAXIMUM:
        return MSR_LIST_MAXIMUM + 1
    for i in range(count):
        host = host_of(cpu, area + ENTRY_SIZE * i)
        if host == 0 or load32(host + 4) != 0:
            return i + 1
        row = _find(load32(host))
        if row < 0:
            return i + 1
        value = load64(host + 8)
        kind = _KIND[row]
        if not _acceptable(cpu, kind, value):
            return i + 1
        if kind == _EFER:  # LMA is the processor's
            value = value & ~EFER_LMA | cpu.efer & EFER_LMA
        store64(PROCESSOR.address(cpu) + _OFFSET[row], value)
    return 0


@compiled
def store_msrs(cpu, area, count):
    """Store a list of MSRs. Returns 0, or the number (from 1) of the entry that failed."""
    if count > MSR_LIST_MAXIMUM:
        return MSR_LIST_MAXIMUM + 1
    for i in range(count):
        host = host_of(cpu, area + ENTRY_SIZE * i)
        if host == 0 or load32(host + 4) != 0:
            return i + 1
        row = _find(load32(host))
        if row < 0:
            return i + 1
        store64(host + 8, load64(PROCESSOR.address(cpu) + _OFFSET[row]))
    return 0


def msr_entry_text(vmcs, number: int) -> str:
    """For people: which entry of the VM-entry MSR-load area failed (number from 1)."""
    area = vmread(vmcs, "vm_entry_msr_load_address")
    if number > MSR_LIST_MAXIMUM:
        return f"the list has more than {MSR_LIST_MAXIMUM} entries"
    known = ", ".join(f"{index:#x}" for index, _, _ in _MSRS)
    where = f"entry {number} at physical address {area + ENTRY_SIZE * (number - 1):#x}"
    wrong = "is outside RAM, names an MSR that cannot be listed, or holds a value that WRMSR would refuse"
    return f"{where} {wrong} (MSRs that can be listed: {known})"

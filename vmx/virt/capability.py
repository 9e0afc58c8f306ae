"""The VMX capability MSRs 0x480-0x491: they describe exactly what is modelled.

Manual: appendix "VMX Capability Reporting Facility". The MSRs of control words come from `vmx.virt.controls`:
bits 31:0 are the controls that must be 1, bits 63:32 those that may be 1.
"""

import numpy as np

from vmx.state.bits import signed, unsigned
from vmx.state.jit import compiled
from vmx.state.processor import (
    CR0_NE,
    CR0_PE,
    CR0_PG,
    CR4_DE,
    CR4_FSGSBASE,
    CR4_MCE,
    CR4_OSFXSR,
    CR4_OSXMMEXCPT,
    CR4_OSXSAVE,
    CR4_PAE,
    CR4_PCE,
    CR4_PCIDE,
    CR4_PGE,
    CR4_PSE,
    CR4_PVI,
    CR4_SMAP,
    CR4_SMEP,
    CR4_TSD,
    CR4_UMIP,
    CR4_VME,
    CR4_VMXE,
)
from vmx.virt.controls import WORDS
from vmx.virt.fields import HIGHEST_INDEX, VMCS_REVISION, VMCS_SIZE

IA32_VMX_BASIC, IA32_VMX_MISC = 0x480, 0x485
IA32_VMX_CR0_FIXED0, IA32_VMX_CR0_FIXED1, IA32_VMX_CR4_FIXED0, IA32_VMX_CR4_FIXED1 = range(0x486, 0x48A)
IA32_VMX_VMCS_ENUM, IA32_VMX_EPT_VPID_CAP, IA32_VMX_VMFUNC = 0x48A, 0x48C, 0x491
FIRST_VMX_MSR, LAST_VMX_MSR = 0x480, 0x491

# --- IA32_VMX_BASIC and IA32_VMX_MISC -----------------------------------------------------------------------

_WRITE_BACK = 6
_INS_OUTS_INFORMATION, _TRUE_CONTROLS = 1 << 54, 1 << 55
BASIC = VMCS_REVISION | VMCS_SIZE << 32 | _WRITE_BACK << 50 | _INS_OUTS_INFORMATION | _TRUE_CONTROLS

PREEMPTION_TIMER_SHIFT = 5  # the timer counts down when this bit of the TSC changes
CR3_TARGETS = 4
MSR_LIST_MAXIMUM = 512  # recommended maximum of entries, which is enforced here
_STORES_LMA = 1 << 5  # VM exits store EFER.LMA into "IA-32e mode guest"
_ACTIVITY_HLT, _ACTIVITY_WAIT_FOR_SIPI = 1 << 6, 1 << 8
MISC = PREEMPTION_TIMER_SHIFT | _STORES_LMA | _ACTIVITY_HLT | _ACTIVITY_WAIT_FOR_SIPI | CR3_TARGETS << 16

# --- control registers --------------------------------------------------------------------------------------

CR0_FIXED0 = CR0_PE | CR0_NE | CR0_PG
CR0_FIXED1 = 0xFFFF_FFFF
CR4_FIXED0 = CR4_VMXE
CR4_FIXED1 = (
    CR4_VME
    | CR4_PVI
    | CR4_TSD
    | CR4_DE
    | CR4_PSE
    | CR4_PAE
    | CR4_MCE
    | CR4_PGE
    | CR4_PCE
    | CR4_OSFXSR
    | CR4_OSXMMEXCPT
    | CR4_VMXE
    | CR4_FSGSBASE
    | CR4_PCIDE
    | CR4_OSXSAVE
    | CR4_SMEP
    | CR4_SMAP
    | CR4_UMIP
)

# --- EPT and VPID -------------------------------------------------------------------------------------------

_EXECUTE_ONLY, _WALK_LENGTH_4 = 1 << 0, 1 << 6
_UNCACHEABLE_TABLES, _WRITE_BACK_TABLES = 1 << 8, 1 << 14
_PAGES_2M, _PAGES_1G = 1 << 16, 1 << 17
_INVEPT, _ACCESSED_DIRTY, _INVEPT_SINGLE, _INVEPT_ALL = 1 << 20, 1 << 21, 1 << 25, 1 << 26
_INVVPID, _INVVPID_TYPES = 1 << 32, 0xF << 40
EPT_VPID_CAP = (
    _EXECUTE_ONLY
    | _WALK_LENGTH_4
    | _UNCACHEABLE_TABLES
    | _WRITE_BACK_TABLES
    | _PAGES_2M
    | _PAGES_1G
    | _INVEPT
    | _ACCESSED_DIRTY
    | _INVEPT_SINGLE
    | _INVEPT_ALL
    | _INVVPID
    | _INVVPID_TYPES
)


def _control_msrs() -> dict[int, int]:
    msrs = {}
    for word in WORDS.values():
        allowed1 = word.default1 | word.modelled
        msrs[word.msr] = word.default1 | allowed1 << 32
        if word.true_msr:
            msrs[word.true_msr] = word.default1 & ~word.optional_default1 | allowed1 << 32
    return msrs


# MSR number -> value. IA32_VMX_VMFUNC is absent, because "enable VM functions" cannot be 1.
CAPABILITIES: dict[int, int] = {
    IA32_VMX_BASIC: BASIC,
    **_control_msrs(),
    IA32_VMX_MISC: MISC,
    IA32_VMX_CR0_FIXED0: CR0_FIXED0,
    IA32_VMX_CR0_FIXED1: CR0_FIXED1,
    IA32_VMX_CR4_FIXED0: CR4_FIXED0,
    IA32_VMX_CR4_FIXED1: CR4_FIXED1,
    IA32_VMX_VMCS_ENUM: HIGHEST_INDEX << 1,
    IA32_VMX_EPT_VPID_CAP: EPT_VPID_CAP,
}

_TABLE = np.array([signed(CAPABILITIES.get(i, 0)) for i in range(FIRST_VMX_MSR, LAST_VMX_MSR + 1)], np.int64)


@compiled
def has_vmx_msr(index):
    """1 for a VMX capability MSR that exists."""
    return 1 if FIRST_VMX_MSR <= index < IA32_VMX_VMFUNC else 0


@compiled
def vmx_msr(index):
    """The value of a VMX capability MSR; 0 for one that does not exist."""
    return _TABLE[index - FIRST_VMX_MSR] if has_vmx_msr(index) else 0


def allowed(word_name: str) -> tuple[int, int]:
    """The bits of a control word that must be 1 and that may be 1, by the TRUE MSR where there is one."""
    word = WORDS[word_name]
    value = unsigned(CAPABILITIES[word.true_msr or word.msr])
    return value & 0xFFFF_FFFF, value >> 32

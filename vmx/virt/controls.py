"""The VMX control words: the manual's names of their bits, and which of them are modelled.

Manual: "VM-Execution Control Fields", "VM-Exit Control Fields", "VM-Entry Control Fields". A constant holds
the bit itself. Names that several words share begin with the word (EXIT_LOAD_IA32_PAT,
ENTRY_LOAD_IA32_PAT). vmx_controls.tsv beside this file has a second spelling of every bit, tertiary and
secondary exit controls included; people may write either.
"""

import difflib
from collections import Counter
from functools import cache
from pathlib import Path
from typing import NamedTuple

from vmx.errors import ConfigurationError

# --- pin-based VM-execution controls ------------------------------------------------------------------------

EXTERNAL_INTERRUPT_EXITING = 1 << 0
NMI_EXITING = 1 << 3
VIRTUAL_NMIS = 1 << 5
ACTIVATE_VMX_PREEMPTION_TIMER = 1 << 6
PROCESS_POSTED_INTERRUPTS = 1 << 7

# --- primary processor-based VM-execution controls ----------------------------------------------------------

INTERRUPT_WINDOW_EXITING = 1 << 2
USE_TSC_OFFSETTING = 1 << 3
HLT_EXITING = 1 << 7
INVLPG_EXITING = 1 << 9
MWAIT_EXITING = 1 << 10
RDPMC_EXITING = 1 << 11
RDTSC_EXITING = 1 << 12
CR3_LOAD_EXITING = 1 << 15
CR3_STORE_EXITING = 1 << 16
ACTIVATE_TERTIARY_CONTROLS = 1 << 17
CR8_LOAD_EXITING = 1 << 19
CR8_STORE_EXITING = 1 << 20
USE_TPR_SHADOW = 1 << 21
NMI_WINDOW_EXITING = 1 << 22
MOV_DR_EXITING = 1 << 23
UNCONDITIONAL_IO_EXITING = 1 << 24
USE_IO_BITMAPS = 1 << 25
MONITOR_TRAP_FLAG = 1 << 27
USE_MSR_BITMAPS = 1 << 28
MONITOR_EXITING = 1 << 29
PAUSE_EXITING = 1 << 30
ACTIVATE_SECONDARY_CONTROLS = 1 << 31

# --- secondary processor-based VM-execution controls --------------------------------------------------------

VIRTUALIZE_APIC_ACCESSES = 1 << 0
ENABLE_EPT = 1 << 1
DESCRIPTOR_TABLE_EXITING = 1 << 2
ENABLE_RDTSCP = 1 << 3
VIRTUALIZE_X2APIC_MODE = 1 << 4
ENABLE_VPID = 1 << 5
WBINVD_EXITING = 1 << 6
UNRESTRICTED_GUEST = 1 << 7
APIC_REGISTER_VIRTUALIZATION = 1 << 8
VIRTUAL_INTERRUPT_DELIVERY = 1 << 9
PAUSE_LOOP_EXITING = 1 << 10
RDRAND_EXITING = 1 << 11
ENABLE_INVPCID = 1 << 12
ENABLE_VM_FUNCTIONS = 1 << 13
VMCS_SHADOWING = 1 << 14
ENABLE_ENCLS_EXITING = 1 << 15
RDSEED_EXITING = 1 << 16
ENABLE_PML = 1 << 17
EPT_VIOLATION_VE = 1 << 18
CONCEAL_VMX_FROM_PT = 1 << 19
ENABLE_XSAVES_XRSTORS = 1 << 20
MODE_BASED_EXECUTE_CONTROL = 1 << 22
SUB_PAGE_WRITE_PERMISSIONS = 1 << 23
PT_USES_GUEST_PHYSICAL_ADDRESSES = 1 << 24
USE_TSC_SCALING = 1 << 25
ENABLE_USER_WAIT_AND_PAUSE = 1 << 26
ENABLE_PCONFIG = 1 << 27
ENABLE_ENCLV_EXITING = 1 << 28
VMM_BUS_LOCK_DETECTION = 1 << 30
INSTRUCTION_TIMEOUT = 1 << 31

# --- VM-exit controls ---------------------------------------------------------------------------------------

SAVE_DEBUG_CONTROLS = 1 << 2
HOST_ADDRESS_SPACE_SIZE = 1 << 9
EXIT_LOAD_IA32_PERF_GLOBAL_CTRL = 1 << 12
ACKNOWLEDGE_INTERRUPT_ON_EXIT = 1 << 15
SAVE_IA32_PAT = 1 << 18
EXIT_LOAD_IA32_PAT = 1 << 19
SAVE_IA32_EFER = 1 << 20
EXIT_LOAD_IA32_EFER = 1 << 21
SAVE_VMX_PREEMPTION_TIMER = 1 << 22
CLEAR_IA32_BNDCFGS = 1 << 23
EXIT_CONCEAL_VMX_FROM_PT = 1 << 24
CLEAR_IA32_RTIT_CTL = 1 << 25
CLEAR_IA32_LBR_CTL = 1 << 26
CLEAR_UINV = 1 << 27
LOAD_HOST_CET_STATE = 1 << 28
LOAD_HOST_PKRS = 1 << 29
SAVE_IA32_PERF_GLOBAL_CTRL = 1 << 30
ACTIVATE_SECONDARY_EXIT_CONTROLS = 1 << 31

# --- VM-entry controls --------------------------------------------------------------------------------------

LOAD_DEBUG_CONTROLS = 1 << 2
IA32E_MODE_GUEST = 1 << 9
ENTRY_TO_SMM = 1 << 10
DEACTIVATE_DUAL_MONITOR_TREATMENT = 1 << 11
ENTRY_LOAD_IA32_PERF_GLOBAL_CTRL = 1 << 13
ENTRY_LOAD_IA32_PAT = 1 << 14
ENTRY_LOAD_IA32_EFER = 1 << 15
LOAD_IA32_BNDCFGS = 1 << 16
ENTRY_CONCEAL_VMX_FROM_PT = 1 << 17
LOAD_IA32_RTIT_CTL = 1 << 18
LOAD_UINV = 1 << 19
LOAD_GUEST_CET_STATE = 1 << 20
LOAD_GUEST_IA32_LBR_CTL = 1 << 21
LOAD_GUEST_PKRS = 1 << 22
LOAD_GUEST_FRED = 1 << 23
LOAD_GUEST_IA32_SPEC_CTRL = 1 << 24


class ControlWord(NamedTuple):
    """One 32-bit control word of the VMCS."""

    field: str  # its VMCS field
    msr: int  # capability MSR
    true_msr: int  # capability MSR that also lets the early default-1 bits be 0; 0: none
    default1: int  # bits that the MSR reports as 1 although they have no name, or for early software
    optional_default1: int  # those of them that the TRUE MSR allows to be 0
    modelled: int  # bits that may be 1 because vmx models what they do
    names: dict[str, int]


def _bits(first: str, last: str) -> dict[str, int]:
    """The constants of this module from `first` to `last`."""
    names = [name for name in globals() if name.isupper() and not name.startswith("_")]
    return {name: globals()[name] for name in names[names.index(first) : names.index(last) + 1]}


WORDS: dict[str, ControlWord] = {
    "pin": ControlWord(
        "pin_based_controls",
        0x481,
        0x48D,
        0x16,
        0,
        EXTERNAL_INTERRUPT_EXITING | NMI_EXITING | ACTIVATE_VMX_PREEMPTION_TIMER,
        _bits("EXTERNAL_INTERRUPT_EXITING", "PROCESS_POSTED_INTERRUPTS"),
    ),
    "primary": ControlWord(
        "primary_controls",
        0x482,
        0x48E,
        0x0401_E172,
        CR3_LOAD_EXITING | CR3_STORE_EXITING,
        INTERRUPT_WINDOW_EXITING
        | USE_TSC_OFFSETTING
        | HLT_EXITING
        | INVLPG_EXITING
        | MWAIT_EXITING
        | RDPMC_EXITING
        | RDTSC_EXITING
        | CR3_LOAD_EXITING
        | CR3_STORE_EXITING
        | CR8_LOAD_EXITING
        | CR8_STORE_EXITING
        | MOV_DR_EXITING
        | UNCONDITIONAL_IO_EXITING
        | USE_IO_BITMAPS
        | USE_MSR_BITMAPS
        | MONITOR_EXITING
        | PAUSE_EXITING
        | ACTIVATE_SECONDARY_CONTROLS,
        _bits("INTERRUPT_WINDOW_EXITING", "ACTIVATE_SECONDARY_CONTROLS"),
    ),
    "secondary": ControlWord(
        "secondary_controls",
        0x48B,
        0,
        0,
        0,
        ENABLE_EPT
        | DESCRIPTOR_TABLE_EXITING
        | ENABLE_RDTSCP
        | ENABLE_VPID
        | WBINVD_EXITING
        | UNRESTRICTED_GUEST
        | ENABLE_INVPCID,
        _bits("VIRTUALIZE_APIC_ACCESSES", "INSTRUCTION_TIMEOUT"),
    ),
    "exit": ControlWord(
        "vm_exit_controls",
        0x483,
        0x48F,
        0x3_6DFF,
        SAVE_DEBUG_CONTROLS,
        SAVE_DEBUG_CONTROLS
        | HOST_ADDRESS_SPACE_SIZE
        | ACKNOWLEDGE_INTERRUPT_ON_EXIT
        | SAVE_IA32_PAT
        | EXIT_LOAD_IA32_PAT
        | SAVE_IA32_EFER
        | EXIT_LOAD_IA32_EFER
        | SAVE_VMX_PREEMPTION_TIMER,
        _bits("SAVE_DEBUG_CONTROLS", "ACTIVATE_SECONDARY_EXIT_CONTROLS"),
    ),
    "entry": ControlWord(
        "vm_entry_controls",
        0x484,
        0x490,
        0x11FF,
        LOAD_DEBUG_CONTROLS,
        LOAD_DEBUG_CONTROLS | IA32E_MODE_GUEST | ENTRY_LOAD_IA32_PAT | ENTRY_LOAD_IA32_EFER,
        _bits("LOAD_DEBUG_CONTROLS", "LOAD_GUEST_IA32_SPEC_CTRL"),
    ),
}


# The control words as vmx_controls.tsv calls them; the others (proc3, exit2) have no bit that is modelled.
_TABLE_WORDS = {"pin": "pin", "proc1": "primary", "proc2": "secondary", "exit1": "exit", "entry": "entry"}


@cache
def control_bits() -> dict[str, tuple[str, int]]:
    """Control word and bit number by every name that people may write.

    The manual's names (HLT_EXITING), and those of vmx_controls.tsv (HLT_VMEXIT): plain where only one word
    has such a bit, and always with the word in front (exit1.LOAD_EFER_MSR).
    """
    table = (Path(__file__).parent / "vmx_controls.tsv").read_text()
    rows = [line.split("\t")[:3] for line in table.splitlines()[1:]]
    rows = [(_TABLE_WORDS.get(word, word), int(bit), word, name) for word, bit, name in rows]
    uses = Counter(name for *_, name in rows)
    bits = {f"{written}.{name}": (word, bit) for word, bit, written, name in rows}
    bits |= {name: (word, bit) for word, bit, _, name in rows if uses[name] == 1}
    for key, word in WORDS.items():
        bits |= {name: (key, bit.bit_length() - 1) for name, bit in word.names.items()}
    return bits


def find_control(name: str) -> tuple[ControlWord, int]:
    """The word and bit of a control by one of its names, upper or lower case. Raises ConfigurationError."""
    every = {each.upper(): each for each in control_bits()}
    wanted = name.upper()
    if wanted not in every:
        near = difflib.get_close_matches(wanted, every, 1)
        hint = f"; did you mean {every[near[0]]}?" if near else ""
        raise ConfigurationError(f"there is no VMX control {name!r}{hint}")
    key, bit = control_bits()[every[wanted]]
    if key not in WORDS:
        raise ConfigurationError(f"the VMX control {name} cannot be 1: vmx does not model that control word")
    return WORDS[key], 1 << bit


def manual_name(name: str) -> str:
    """The manual's name of a control that is given by any of its names. Raises ConfigurationError."""
    word, bit = find_control(name)
    return control_names(word, bit)[0]


def control_names(word: ControlWord, value: int) -> list[str]:
    """The names of the set bits of a control word; a set bit without a name is given by its number."""
    by_bit = {bit: name for name, bit in word.names.items()}
    set_bits = [1 << i for i in range(32) if value >> i & 1]
    return [by_bit.get(bit, f"bit {bit.bit_length() - 1}") for bit in set_bits]

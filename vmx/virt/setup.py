"""Building a VMCS for the Python hypervisor: control words by name, host state, and a guest's initial
state.

The default takes only the exits that a platform needs: external interrupts, HLT, I/O, MSRs (by bitmap when
there is one) and the task priority; CPUID and XSETBV exit always. Everything else is one name in
`controls`.
"""

from collections.abc import Mapping

import numpy as np

from vmx.errors import ConfigurationError
from vmx.state.processor import (
    CR0_ET,
    CR0_MP,
    CR0_NE,
    CR0_PE,
    CR0_PG,
    CR0_WP,
    CR4_PAE,
    CR4_VMXE,
    EFER_LMA,
    EFER_LME,
    EFER_NXE,
)
from vmx.virt.capability import allowed
from vmx.virt.checks import explain, violations
from vmx.virt.controls import WORDS, find_control, manual_name
from vmx.virt.fields import new_vmcs, vmread, vmwrite

PAT_RESET = 0x0007_0406_0007_0406
DR7_RESET = 0x400
SEGMENTS = ("es", "cs", "ss", "ds", "fs", "gs", "ldtr", "tr")

# Where exits go in the Python hypervisor's VMCS: no code is there, the run loop returns to Python.
HOST_RIP = 0xFFFF_FFFF_8000_0000
HOST_STATE = {
    "host_cr0": CR0_PG | CR0_WP | CR0_NE | CR0_ET | CR0_MP | CR0_PE,
    "host_cr3": 0,
    "host_cr4": CR4_PAE | CR4_VMXE,
    "host_ia32_efer": EFER_LME | EFER_LMA | EFER_NXE,
    "host_ia32_pat": PAT_RESET,
    "host_cs_selector": 0x08,
    "host_ss_selector": 0x10,
    "host_ds_selector": 0x10,
    "host_es_selector": 0x10,
    "host_tr_selector": 0x18,
    "host_rip": HOST_RIP,
}

DEFAULT_CONTROLS = (
    "EXTERNAL_INTERRUPT_EXITING",
    "HLT_EXITING",
    "CR8_LOAD_EXITING",
    "CR8_STORE_EXITING",
    "ACTIVATE_SECONDARY_CONTROLS",
    "ENABLE_EPT",
    "ENABLE_VPID",
    "ENABLE_RDTSCP",
    "ENABLE_INVPCID",
    "UNRESTRICTED_GUEST",
    "HOST_ADDRESS_SPACE_SIZE",
    "SAVE_DEBUG_CONTROLS",
    "SAVE_IA32_PAT",
    "EXIT_LOAD_IA32_PAT",
    "SAVE_IA32_EFER",
    "EXIT_LOAD_IA32_EFER",
    "LOAD_DEBUG_CONTROLS",
    "ENTRY_LOAD_IA32_PAT",
    "ENTRY_LOAD_IA32_EFER",
)


def ept_pointer(root: int, *, accessed_dirty: bool = False) -> int:
    """The EPTP of write-back EPT paging structures with four levels whose root is at a physical address."""
    return root | 6 | 3 << 3 | accessed_dirty << 6


def control_words(names: Mapping[str, bool]) -> dict[str, int]:
    """The control words, by VMCS field: the named controls are 1 or 0, all others as small as possible.

    Raises ConfigurationError for a name that does not exist or a value that the capability MSRs do not allow.
    """
    values = {word.field: allowed(name)[0] for name, word in WORDS.items()}
    word_names = {word.field: name for name, word in WORDS.items()}
    for name, wanted in names.items():
        word, bit = find_control(name)
        must, may = allowed(word_names[word.field])
        msr = f"capability MSR {word.true_msr or word.msr:#x}"
        if wanted and not may & bit:
            raise ConfigurationError(
                f"the VMX control {name.upper()} cannot be 1: vmx does not model it ({msr})"
            )
        if not wanted and must & bit:
            raise ConfigurationError(f"the VMX control {name.upper()} cannot be 0 ({msr})")
        values[word.field] = values[word.field] | bit if wanted else values[word.field] & ~bit
    return values


def named_controls(controls: Mapping[str, bool]) -> dict[str, bool]:
    """Controls by the manual's names, however they are spelt. Raises ConfigurationError for contradictions."""
    spelt: dict[str, str] = {}
    chosen: dict[str, bool] = {}
    for written, value in controls.items():
        name = manual_name(written)
        if chosen.get(name, bool(value)) != bool(value):
            raise ConfigurationError(
                f"{spelt[name]} and {written} are the same VMX control {name}: on or off?"
            )
        spelt[name], chosen[name] = written, bool(value)
    return chosen


def configure(
    vmcs,
    *,
    eptp: int = 0,
    vpid: int = 1,
    controls: Mapping[str, bool] | None = None,
    io_bitmaps: tuple[int, int] | None = None,
    msr_bitmaps: int | None = None,
    exception_bitmap: int = 0,
    tsc_offset: int = 0,
) -> None:
    """Write the control fields and the host state of the Python hypervisor.

    Addresses are physical. Without `io_bitmaps` every I/O instruction exits, without `msr_bitmaps` every
    RDMSR and WRMSR. `controls` switches controls by name (vmx.virt.controls) over the default.
    Raises ConfigurationError.
    """
    chosen = dict.fromkeys(DEFAULT_CONTROLS, True)
    chosen["USE_IO_BITMAPS" if io_bitmaps else "UNCONDITIONAL_IO_EXITING"] = True
    chosen["USE_MSR_BITMAPS"] = msr_bitmaps is not None
    chosen["USE_TSC_OFFSETTING"] = tsc_offset != 0
    chosen |= named_controls(controls or {})
    fields = control_words(chosen)
    fields |= HOST_STATE
    fields |= {"eptp": eptp, "vpid": vpid, "exception_bitmap": exception_bitmap, "tsc_offset": tsc_offset}
    fields["io_bitmap_a"], fields["io_bitmap_b"] = io_bitmaps or (0, 0)
    fields["msr_bitmaps"] = msr_bitmaps or 0
    # The processor is in VMX operation, so CR0.NE and CR4.VMXE stay 1 behind the guest's back.
    fields["cr0_guest_host_mask"] = CR0_NE
    fields["cr4_guest_host_mask"] = CR4_VMXE
    fields["vmcs_link_pointer"] = -1
    for name, value in fields.items():
        vmwrite(vmcs, name, value)


def set_guest_state(vmcs, initial) -> None:
    """Write the guest-state area from an initial state (vmx.boot.image.InitialState, or a mapping).

    The general registers other than RSP are not in a VMCS: they are the processor's.
    """
    get = initial.__getitem__ if isinstance(initial, Mapping) else initial.__getattribute__
    efer = get("efer")
    fields = {
        "guest_rip": get("rip"),
        "guest_rsp": get("rsp"),
        "guest_rflags": get("rflags") | 2,
        "guest_cr0": get("cr0") | CR0_NE,
        "guest_cr3": get("cr3"),
        "guest_cr4": get("cr4") | CR4_VMXE,
        "cr0_read_shadow": get("cr0"),
        "cr4_read_shadow": get("cr4"),
        "guest_ia32_efer": efer,
        "guest_gdtr_base": get("gdt_base"),
        "guest_gdtr_limit": get("gdt_limit"),
        "guest_idtr_base": get("idt_base"),
        "guest_idtr_limit": get("idt_limit"),
        "guest_dr7": DR7_RESET,
        "guest_ia32_pat": PAT_RESET,
        "guest_ia32_debugctl": 0,
        "guest_activity_state": 0,
        "guest_interruptibility_state": 0,
        "guest_pending_debug_exceptions": 0,
    }
    for name in SEGMENTS:
        selector, base, limit, access_rights = get("segments")[name]
        fields[f"guest_{name}_selector"] = selector
        fields[f"guest_{name}_base"] = base
        fields[f"guest_{name}_limit"] = limit
        fields[f"guest_{name}_access_rights"] = access_rights
    for name, value in fields.items():
        vmwrite(vmcs, name, value)
    set_control(vmcs, "IA32E_MODE_GUEST", bool(efer & EFER_LMA))


def set_control(vmcs, name: str, on: bool) -> None:
    """Switch one control of a VMCS by name. Raises ConfigurationError."""
    control_words({name: on})
    word, bit = find_control(name)
    value = vmread(vmcs, word.field)
    vmwrite(vmcs, word.field, value | bit if on else value & ~bit)


def default_vmcs(initial, **options) -> np.ndarray:
    """A VMCS that can be entered: `configure(**options)` and `set_guest_state(initial)`, checked.

    Raises ConfigurationError with the first violated VM-entry check.
    """
    vmcs = new_vmcs()
    configure(vmcs, **options)
    set_guest_state(vmcs, initial)
    violated = violations(vmcs)
    if violated:
        raise ConfigurationError(f"the VMCS cannot be entered: {explain(violated[0].number, vmcs)}")
    return vmcs

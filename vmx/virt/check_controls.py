"""VM-entry checks on the VMX controls: the first group, which fails with VM-instruction error 7.

Manual: "Checks on VMX Controls". A control that is not modelled cannot be 1, which the checks of reserved
bits say; so the manual's checks of what such a control needs do not appear.
"""

from vmx.state.bits import shr
from vmx.state.jit import compiled
from vmx.state.processor import CR0_PE, PROCESSOR, VECTORS_WITH_ERROR_CODE
from vmx.state.unit import unit
from vmx.virt.capability import CR3_TARGETS, allowed
from vmx.virt.check_table import (
    CONTROL_WORD,
    FIRST_CONTROL_CHECK,
    FIRST_HOST_CHECK,
    HOST_WORD,
    Declare,
    clear_violations,
    first_violation,
    violate,
)
from vmx.virt.controls import (
    ACTIVATE_SECONDARY_CONTROLS,
    ACTIVATE_VMX_PREEMPTION_TIMER,
    ENABLE_EPT,
    ENABLE_VPID,
    SAVE_VMX_PREEMPTION_TIMER,
    UNRESTRICTED_GUEST,
    USE_IO_BITMAPS,
    USE_MSR_BITMAPS,
)
from vmx.virt.fields import VMCS
from vmx.virt.interruption import (
    INFO_ERROR_CODE,
    INFO_VALID,
    TYPE_EXCEPTION,
    TYPE_NMI,
    TYPE_OTHER,
    interruption_type,
    is_software_type,
)
from vmx.virt.msr_area import ENTRY_SIZE
from vmx.virt.values import is_physical, is_physical_page

_check = Declare(FIRST_CONTROL_CHECK, FIRST_HOST_CHECK)
_RESERVED = "must have the values in its reserved bits that the capability MSR demands"
_PAGE = "must be 4-KiB-aligned and within the physical-address width"
_MSR_AREA = "must be 16-byte-aligned, with the whole area within the physical-address width"

_check.section("VM-Execution Control Fields")
PIN_RESERVED = _check("pin_based_controls_reserved", "pin_based_controls", _RESERVED)
PRIMARY_RESERVED = _check("primary_controls_reserved", "primary_controls", _RESERVED)
SECONDARY_RESERVED = _check("secondary_controls_reserved", "secondary_controls", _RESERVED)
CR3_TARGET_COUNT = _check("cr3_target_count", "cr3_target_count", f"must not be greater than {CR3_TARGETS}")
IO_BITMAP_A = _check("io_bitmap_a_address", "io_bitmap_a", _PAGE)
IO_BITMAP_B = _check("io_bitmap_b_address", "io_bitmap_b", _PAGE)
MSR_BITMAPS = _check("msr_bitmaps_address", "msr_bitmaps", _PAGE)
VPID_ZERO = _check("vpid_not_zero", "vpid", 'must not be 0 while "enable VPID" is 1')
EPTP_MEMORY_TYPE = _check("eptp_memory_type", "eptp", "must have memory type 0 (UC) or 6 (WB) in bits 2:0")
EPTP_WALK_LENGTH = _check("eptp_walk_length", "eptp", "must have 3 (a walk of 4 levels) in bits 5:3")
EPTP_RESERVED = _check(
    "eptp_reserved", "eptp", "must be 0 in bits 11:7 and beyond the physical-address width"
)
UNRESTRICTED_NEEDS_EPT = _check(
    "unrestricted_guest_needs_ept",
    "secondary_controls",
    'may have "unrestricted guest" only with "enable EPT"',
)

_check.section("VM-Exit Control Fields")
EXIT_RESERVED = _check("vm_exit_controls_reserved", "vm_exit_controls", _RESERVED)
SAVE_TIMER_NEEDS_TIMER = _check(
    "save_timer_needs_timer",
    "vm_exit_controls",
    'may have "save VMX-preemption timer value" only with "activate VMX-preemption timer"',
)
EXIT_MSR_STORE = _check("vm_exit_msr_store_area", "vm_exit_msr_store_address", _MSR_AREA)
EXIT_MSR_LOAD = _check("vm_exit_msr_load_area", "vm_exit_msr_load_address", _MSR_AREA)

_check.section("VM-Entry Control Fields")
ENTRY_RESERVED = _check("vm_entry_controls_reserved", "vm_entry_controls", _RESERVED)
INJECTION_TYPE = _check(
    "injection_type", "vm_entry_interruption_info", "must not have the reserved type 1 or type 7 in bits 10:8"
)
INJECTION_VECTOR = _check(
    "injection_vector",
    "vm_entry_interruption_info",
    "must have vector 2 for an NMI and a vector below 32 for a hardware exception",
)
INJECTION_ERROR_CODE = _check(
    "injection_deliver_error_code",
    "vm_entry_interruption_info",
    "must have bit 11 (deliver error code) exactly for exceptions with an error code in protected mode",
)
INJECTION_RESERVED = _check("injection_reserved", "vm_entry_interruption_info", "must be 0 in bits 30:12")
ERROR_CODE_RESERVED = _check(
    "injection_error_code_reserved", "vm_entry_exception_error_code", "must be 0 in bits 31:16"
)
INJECTION_LENGTH = _check(
    "injection_instruction_length",
    "vm_entry_instruction_length",
    "must be 1 to 15 for a software interrupt or software exception",
)
ENTRY_MSR_LOAD = _check("vm_entry_msr_load_area", "vm_entry_msr_load_address", _MSR_AREA)

_PIN_ONES, _PIN_MAY = allowed("pin")
_PRIMARY_ONES, _PRIMARY_MAY = allowed("primary")
_SECONDARY_ONES, _SECONDARY_MAY = allowed("secondary")
_EXIT_ONES, _EXIT_MAY = allowed("exit")
_ENTRY_ONES, _ENTRY_MAY = allowed("entry")


@compiled
def _reserved_wrong(value, ones, may):
    return value & ones != ones or value & ~may


@compiled
def _check_execution(vmcs):
    """VM-Execution Control Fields."""
    primary = vmcs.primary_controls
    secondary = 0
    if _reserved_wrong(vmcs.pin_based_controls, _PIN_ONES, _PIN_MAY):
        violate(vmcs, PIN_RESERVED)
    if _reserved_wrong(primary, _PRIMARY_ONES, _PRIMARY_MAY):
        violate(vmcs, PRIMARY_RESERVED)
    if primary & ACTIVATE_SECONDARY_CONTROLS:
        secondary = vmcs.secondary_controls
        if _reserved_wrong(secondary, _SECONDARY_ONES, _SECONDARY_MAY):
            violate(vmcs, SECONDARY_RESERVED)
    if vmcs.cr3_target_count > CR3_TARGETS:
        violate(vmcs, CR3_TARGET_COUNT)
    if primary & USE_IO_BITMAPS:
        if not is_physical_page(vmcs.io_bitmap_a):
            violate(vmcs, IO_BITMAP_A)
        if not is_physical_page(vmcs.io_bitmap_b):
            violate(vmcs, IO_BITMAP_B)
    if primary & USE_MSR_BITMAPS and not is_physical_page(vmcs.msr_bitmaps):
        violate(vmcs, MSR_BITMAPS)
    if secondary & ENABLE_VPID and vmcs.vpid == 0:
        violate(vmcs, VPID_ZERO)
    if secondary & ENABLE_EPT:
        _check_eptp(vmcs, vmcs.eptp)
    elif secondary & UNRESTRICTED_GUEST:
        violate(vmcs, UNRESTRICTED_NEEDS_EPT)


@compiled
def _check_eptp(vmcs, eptp):
    memory_type = eptp & 7
    if memory_type != 0 and memory_type != 6:
        violate(vmcs, EPTP_MEMORY_TYPE)
    if eptp & 0x38 != 3 << 3:
        violate(vmcs, EPTP_WALK_LENGTH)
    if eptp & 0xF80 or not is_physical(eptp):
        violate(vmcs, EPTP_RESERVED)


@compiled
def _bad_msr_area(address, count):
    if count == 0:
        return 0
    return (
        1
        if address & 0xF or not is_physical(address) or not is_physical(address + count * ENTRY_SIZE - 1)
        else 0
    )


@compiled
def _check_exit(vmcs):
    """VM-Exit Control Fields."""
    controls = vmcs.vm_exit_controls
    if _reserved_wrong(controls, _EXIT_ONES, _EXIT_MAY):
        violate(vmcs, EXIT_RESERVED)
    if controls & SAVE_VMX_PREEMPTION_TIMER and vmcs.pin_based_controls & ACTIVATE_VMX_PREEMPTION_TIMER == 0:
        violate(vmcs, SAVE_TIMER_NEEDS_TIMER)
    if _bad_msr_area(vmcs.vm_exit_msr_store_address, vmcs.vm_exit_msr_store_count):
        violate(vmcs, EXIT_MSR_STORE)
    if _bad_msr_area(vmcs.vm_exit_msr_load_address, vmcs.vm_exit_msr_load_count):
        violate(vmcs, EXIT_MSR_LOAD)


@compiled
def _has_error_code(vmcs, kind, vector):
    """1 when injecting this exception pushes an error code."""
    if kind != TYPE_EXCEPTION or vmcs.guest_cr0 & CR0_PE == 0 or vector > 31:
        return 0
    return shr(VECTORS_WITH_ERROR_CODE, vector) & 1


@compiled
def _check_injection(vmcs, info):
    kind = interruption_type(info)
    vector = info & 0xFF
    if kind == 1 or kind == TYPE_OTHER:  # type 7 would be a pending MTF exit
        violate(vmcs, INJECTION_TYPE)
    if (kind == TYPE_NMI and vector != 2) or (kind == TYPE_EXCEPTION and vector > 31):
        violate(vmcs, INJECTION_VECTOR)
    if info >> 11 & 1 != _has_error_code(vmcs, kind, vector):
        violate(vmcs, INJECTION_ERROR_CODE)
    if info & 0x7FFF_F000:
        violate(vmcs, INJECTION_RESERVED)
    if info & INFO_ERROR_CODE and vmcs.vm_entry_exception_error_code & ~0xFFFF:
        violate(vmcs, ERROR_CODE_RESERVED)
    if is_software_type(kind):
        length = vmcs.vm_entry_instruction_length
        if length < 1 or length > 15:
            violate(vmcs, INJECTION_LENGTH)


@unit(PROCESSOR, VMCS)
def check_controls(cpu, vmcs):
    """Checks on VMX controls. Returns the number of the first violated one, or 0."""
    clear_violations(vmcs, CONTROL_WORD, HOST_WORD)
    _check_execution(vmcs)
    _check_exit(vmcs)
    if _reserved_wrong(vmcs.vm_entry_controls, _ENTRY_ONES, _ENTRY_MAY):
        violate(vmcs, ENTRY_RESERVED)
    info = vmcs.vm_entry_interruption_info
    if info & INFO_VALID:
        _check_injection(vmcs, info)
    if _bad_msr_area(vmcs.vm_entry_msr_load_address, vmcs.vm_entry_msr_load_count):
        violate(vmcs, ENTRY_MSR_LOAD)
    return first_violation(vmcs, CONTROL_WORD, HOST_WORD)

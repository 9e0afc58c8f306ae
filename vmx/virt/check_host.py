"""VM-entry checks on the host-state area: the second group, which fails with VM-instruction error 8.

Manual: "Checks on Host Control Registers, MSRs, and SSP", "Checks on Host Segment and Descriptor-Table
Registers", "Checks Related to Address-Space Size".
"""

from vmx.state.bits import shr
from vmx.state.jit import compiled
from vmx.state.memory import load64
from vmx.state.processor import CR4_PAE, CR4_PCIDE, EFER_LMA, EFER_LME, PROCESSOR
from vmx.state.unit import unit
from vmx.virt.capability import CR0_FIXED0, CR0_FIXED1, CR4_FIXED0, CR4_FIXED1
from vmx.virt.check_table import (
    FIRST_GUEST_CHECK,
    FIRST_HOST_CHECK,
    GUEST_WORD,
    HOST_WORD,
    SEGMENT_NAMES,
    Declare,
    clear_violations,
    first_violation,
    violate,
)
from vmx.virt.controls import (
    EXIT_LOAD_IA32_EFER,
    EXIT_LOAD_IA32_PAT,
    HOST_ADDRESS_SPACE_SIZE,
    IA32E_MODE_GUEST,
)
from vmx.virt.fields import VMCS
from vmx.virt.values import EFER_BITS, is_canonical, is_memory_type_list, is_physical

_check = Declare(FIRST_HOST_CHECK, FIRST_GUEST_CHECK)
_CANONICAL = "must be canonical"
_SELECTORS = (*SEGMENT_NAMES, "tr")
_BASES = ("fs", "gs", "tr", "gdtr", "idtr")

_check.section("Checks on Host Control Registers, MSRs, and SSP")
CR0 = _check("host_cr0_fixed", "host_cr0", "must have PE, NE and PG set and bits 63:32 clear")
CR4 = _check("host_cr4_fixed", "host_cr4", "must have VMXE set and only bits that the processor supports")
CR3 = _check("host_cr3", "host_cr3", "must be within the physical-address width")
SYSENTER_ESP = _check("host_sysenter_esp", "host_ia32_sysenter_esp", _CANONICAL)
SYSENTER_EIP = _check("host_sysenter_eip", "host_ia32_sysenter_eip", _CANONICAL)
PAT = _check("host_pat", "host_ia32_pat", "must have a memory type of 0, 1, 4, 5, 6 or 7 in each byte")
EFER_RESERVED = _check("host_efer_reserved", "host_ia32_efer", "must be 0 in its reserved bits")
EFER_MODE = _check(
    "host_efer_mode", "host_ia32_efer", 'must have LMA and LME both equal to "host address-space size"'
)

_check.section("Checks on Host Segment and Descriptor-Table Registers")
SELECTOR = _check.each(_SELECTORS, "host_{}_rpl_ti", "host_{}_selector", "must have RPL and TI 0")
CS_NULL = _check("host_cs_null", "host_cs_selector", "must not be 0")
TR_NULL = _check("host_tr_null", "host_tr_selector", "must not be 0")
SS_NULL = _check("host_ss_null", "host_ss_selector", 'must not be 0 while "host address-space size" is 0')
BASE = _check.each(_BASES, "host_{}_base", "host_{}_base", _CANONICAL)

_check.section("Checks Related to Address-Space Size")
SIZE_OUTSIDE_IA32E = _check(
    "host_address_space_size_outside_ia32e_mode",
    "vm_exit_controls",
    'must have "host address-space size" 0, as "IA-32e mode guest", outside IA-32e mode',
)
SIZE_IN_IA32E = _check(
    "host_address_space_size_in_ia32e_mode",
    "vm_exit_controls",
    'must have "host address-space size" 1 when VM entry is made in IA-32e mode',
)
GUEST_IN_NARROW_HOST = _check(
    "ia32e_guest_of_32bit_host",
    "vm_entry_controls",
    'may have "IA-32e mode guest" only with "host address-space size"',
)
PCIDE_IN_NARROW_HOST = _check(
    "host_cr4_pcide", "host_cr4", 'must have PCIDE 0 while "host address-space size" is 0'
)
RIP_IN_NARROW_HOST = _check(
    "host_rip_32bit", "host_rip", 'must be 0 in bits 63:32 while "host address-space size" is 0'
)
PAE_IN_WIDE_HOST = _check("host_cr4_pae", "host_cr4", 'must have PAE set with "host address-space size" 1')
RIP_IN_WIDE_HOST = _check("host_rip_canonical", "host_rip", _CANONICAL)

_SELECTOR_OFFSETS, _SELECTOR_COUNT = VMCS.offset("host_es_selector"), len(_SELECTORS)
_BASE_OFFSETS, _BASE_COUNT = VMCS.offset("host_fs_base"), len(_BASES)


@compiled
def _check_registers(vmcs, wide):
    controls = vmcs.vm_exit_controls
    if vmcs.host_cr0 & CR0_FIXED0 != CR0_FIXED0 or vmcs.host_cr0 & ~CR0_FIXED1:
        violate(vmcs, CR0)
    if vmcs.host_cr4 & CR4_FIXED0 != CR4_FIXED0 or vmcs.host_cr4 & ~CR4_FIXED1:
        violate(vmcs, CR4)
    if not is_physical(vmcs.host_cr3):
        violate(vmcs, CR3)
    if not is_canonical(vmcs.host_ia32_sysenter_esp):
        violate(vmcs, SYSENTER_ESP)
    if not is_canonical(vmcs.host_ia32_sysenter_eip):
        violate(vmcs, SYSENTER_EIP)
    if controls & EXIT_LOAD_IA32_PAT and not is_memory_type_list(vmcs.host_ia32_pat):
        violate(vmcs, PAT)
    if controls & EXIT_LOAD_IA32_EFER:
        efer = vmcs.host_ia32_efer
        if efer & ~EFER_BITS:
            violate(vmcs, EFER_RESERVED)
        if efer & (EFER_LMA | EFER_LME) != (EFER_LMA | EFER_LME if wide else 0):
            violate(vmcs, EFER_MODE)


@compiled
def _check_segments(vmcs, wide):
    region = VMCS.address(vmcs)
    for i in range(_SELECTOR_COUNT):
        if load64(region + _SELECTOR_OFFSETS + 8 * i) & 7:
            violate(vmcs, SELECTOR + i)
    if vmcs.host_cs_selector == 0:
        violate(vmcs, CS_NULL)
    if vmcs.host_tr_selector == 0:
        violate(vmcs, TR_NULL)
    if vmcs.host_ss_selector == 0 and not wide:
        violate(vmcs, SS_NULL)
    for i in range(_BASE_COUNT):
        if not is_canonical(load64(region + _BASE_OFFSETS + 8 * i)):
            violate(vmcs, BASE + i)


@compiled
def _check_address_space(cpu, vmcs, wide):
    """The Python hypervisor counts as 64-bit software, whatever state the processor is in."""
    guest_ia32e = vmcs.vm_entry_controls & IA32E_MODE_GUEST
    if cpu.efer & EFER_LMA or cpu.python_hypervisor:
        if not wide:
            violate(vmcs, SIZE_IN_IA32E)
    elif wide or guest_ia32e:
        violate(vmcs, SIZE_OUTSIDE_IA32E)
    if wide:
        if vmcs.host_cr4 & CR4_PAE == 0:
            violate(vmcs, PAE_IN_WIDE_HOST)
        if not is_canonical(vmcs.host_rip):
            violate(vmcs, RIP_IN_WIDE_HOST)
    else:
        if guest_ia32e:
            violate(vmcs, GUEST_IN_NARROW_HOST)
        if vmcs.host_cr4 & CR4_PCIDE:
            violate(vmcs, PCIDE_IN_NARROW_HOST)
        if shr(vmcs.host_rip, 32):
            violate(vmcs, RIP_IN_NARROW_HOST)


@unit(PROCESSOR, VMCS)
def check_host(cpu, vmcs):
    """Checks on the host-state area. Returns the number of the first violated one, or 0."""
    clear_violations(vmcs, HOST_WORD, GUEST_WORD)
    wide = vmcs.vm_exit_controls & HOST_ADDRESS_SPACE_SIZE
    _check_registers(vmcs, wide)
    _check_segments(vmcs, wide)
    _check_address_space(cpu, vmcs, wide)
    return first_violation(vmcs, HOST_WORD, GUEST_WORD)

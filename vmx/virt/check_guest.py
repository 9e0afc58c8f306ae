"""VM-entry checks on the guest-state area: the third group, which fails with exit reason 33.

Manual: "Checks on the Guest State Area". Segment registers are in check_segments.
"""

from vmx.mmu.physical import host_of
from vmx.state.bits import shr
from vmx.state.jit import compiled
from vmx.state.memory import load32
from vmx.state.processor import (
    ACCESS_L,
    ACTIVE,
    ACTIVITY_HLT,
    ACTIVITY_WAIT_FOR_SIPI,
    CR0_PE,
    CR0_PG,
    CR4_PAE,
    CR4_PCIDE,
    DB,
    EFER_LMA,
    EFER_LME,
    FLAG_IF,
    FLAG_TF,
    FLAG_VM,
    MC,
    PROCESSOR,
    SHADOW_MOV_SS,
    SHADOW_STI,
)
from vmx.state.unit import unit
from vmx.virt import check_segments as segments
from vmx.virt.capability import CR0_FIXED0, CR0_FIXED1, CR4_FIXED0, CR4_FIXED1
from vmx.virt.check_segments import check_segments
from vmx.virt.check_table import (
    END_WORD,
    FIRST_GUEST_CHECK,
    GUEST_WORD,
    Declare,
    clear_violations,
    first_violation,
    violate,
)
from vmx.virt.controls import (
    ACTIVATE_SECONDARY_CONTROLS,
    ENABLE_EPT,
    ENTRY_LOAD_IA32_EFER,
    ENTRY_LOAD_IA32_PAT,
    IA32E_MODE_GUEST,
    LOAD_DEBUG_CONTROLS,
    UNRESTRICTED_GUEST,
)
from vmx.virt.fields import VMCS, VMCS_REVISION
from vmx.virt.interruption import INFO_VALID, TYPE_EXCEPTION, TYPE_EXTERNAL, TYPE_NMI, interruption_type
from vmx.virt.values import (
    DEBUGCTL_BITS,
    DEBUGCTL_BTF,
    EFER_BITS,
    is_canonical,
    is_memory_type_list,
    is_physical,
    is_physical_page,
)

_check = Declare(FIRST_GUEST_CHECK, segments.FIRST)
_CANONICAL = "must be canonical"

_check.section("Checks on Guest Control Registers, Debug Registers, and MSRs")
CR0_FIXED = _check(
    "guest_cr0_fixed",
    "guest_cr0",
    'must have NE set (PE and PG too without "unrestricted guest") and bits 63:32 clear',
)
CR0_PG_NEEDS_PE = _check("guest_cr0_pg", "guest_cr0", "may have PG set only with PE set")
CR4_FIXED = _check(
    "guest_cr4_fixed", "guest_cr4", "must have VMXE set and only bits that the processor supports"
)
DEBUGCTL = _check("guest_debugctl", "guest_ia32_debugctl", "must be 0 in its reserved bits")
IA32E_PAGING = _check("guest_ia32e_paging", "guest_cr0", 'must have PG set while "IA-32e mode guest" is 1')
IA32E_PAE = _check("guest_ia32e_pae", "guest_cr4", 'must have PAE set while "IA-32e mode guest" is 1')
PCIDE = _check("guest_cr4_pcide", "guest_cr4", 'must have PCIDE 0 while "IA-32e mode guest" is 0')
CR3 = _check("guest_cr3", "guest_cr3", "must be within the physical-address width")
DR7 = _check("guest_dr7", "guest_dr7", "must be 0 in bits 63:32")
SYSENTER_ESP = _check("guest_sysenter_esp", "guest_ia32_sysenter_esp", _CANONICAL)
SYSENTER_EIP = _check("guest_sysenter_eip", "guest_ia32_sysenter_eip", _CANONICAL)
PAT = _check("guest_pat", "guest_ia32_pat", "must have a memory type of 0, 1, 4, 5, 6 or 7 in each byte")
EFER_RESERVED = _check("guest_efer_reserved", "guest_ia32_efer", "must be 0 in its reserved bits")
EFER_LMA_MODE = _check("guest_efer_lma", "guest_ia32_efer", 'must have LMA equal to "IA-32e mode guest"')
EFER_LME_LMA = _check("guest_efer_lme", "guest_ia32_efer", "must have LME equal to LMA while CR0.PG is 1")

_check = Declare(segments.END, 64 * END_WORD)
_check.section("Checks on Guest Descriptor-Table Registers")
GDTR_BASE = _check("guest_gdtr_base", "guest_gdtr_base", _CANONICAL)
IDTR_BASE = _check("guest_idtr_base", "guest_idtr_base", _CANONICAL)
GDTR_LIMIT = _check("guest_gdtr_limit", "guest_gdtr_limit", "must be 0 in bits 31:16")
IDTR_LIMIT = _check("guest_idtr_limit", "guest_idtr_limit", "must be 0 in bits 31:16")

_check.section("Checks on Guest RIP, RFLAGS, and SSP")
RIP_HIGH = _check("guest_rip_high", "guest_rip", "must be 0 in bits 63:32 outside 64-bit mode")
RIP_CANONICAL = _check("guest_rip_canonical", "guest_rip", _CANONICAL)
RFLAGS_RESERVED = _check(
    "guest_rflags_reserved", "guest_rflags", "must be 1 in bit 1 and 0 in bits 3, 5, 15 and 63:22"
)
RFLAGS_VM = _check("guest_rflags_vm", "guest_rflags", "must have VM 0 in IA-32e mode and while CR0.PE is 0")
RFLAGS_IF = _check(
    "guest_rflags_if", "guest_rflags", "must have IF set when an external interrupt is injected"
)

_check.section("Checks on Guest Non-Register State")
ACTIVITY = _check(
    "guest_activity", "guest_activity_state", "must be 0 (active), 1 (HLT) or 3 (wait-for-SIPI)"
)
ACTIVITY_DPL = _check(
    "guest_activity_dpl", "guest_activity_state", "must not be 1 (HLT) while SS has a DPL above 0"
)
ACTIVITY_BLOCKING = _check(
    "guest_activity_blocking", "guest_activity_state", "must be 0 (active) while STI or MOV SS blocks events"
)
ACTIVITY_INJECTION = _check(
    "guest_activity_injection",
    "guest_activity_state",
    "must be a state in which the event to inject can be delivered",
)
_INTERRUPTIBILITY = "guest_interruptibility_state"
BLOCKING_RESERVED = _check("guest_interruptibility_reserved", _INTERRUPTIBILITY, "must be 0 in bits 31:4")
BLOCKING_BOTH = _check(
    "guest_blocking_both", _INTERRUPTIBILITY, "must not have both blocking by STI and by MOV SS"
)
BLOCKING_STI_IF = _check(
    "guest_blocking_sti_if", _INTERRUPTIBILITY, "must not have blocking by STI while RFLAGS.IF is 0"
)
BLOCKING_EXTERNAL = _check(
    "guest_blocking_external",
    _INTERRUPTIBILITY,
    "must not have blocking by STI or MOV SS when an external interrupt is injected",
)
BLOCKING_NMI_MOV_SS = _check(
    "guest_blocking_nmi_mov_ss", _INTERRUPTIBILITY, "must not have blocking by MOV SS when an NMI is injected"
)
BLOCKING_SMI = _check("guest_blocking_smi", _INTERRUPTIBILITY, "must not have blocking by SMI outside SMM")
BLOCKING_NMI_STI = _check(
    "guest_blocking_nmi_sti", _INTERRUPTIBILITY, "must not have blocking by STI when an NMI is injected"
)
_PENDING = "guest_pending_debug_exceptions"
PENDING_RESERVED = _check("guest_pending_reserved", _PENDING, "must be 0 in bits 11:4, 13 and 63:15")
PENDING_BS_SET = _check(
    "guest_pending_bs_set", _PENDING, "must have BS (bit 14) set while a single step is held back"
)
PENDING_BS_CLEAR = _check(
    "guest_pending_bs_clear", _PENDING, "must have BS (bit 14) 0 while no single step can be held back"
)
LINK_POINTER = _check(
    "vmcs_link_pointer",
    "vmcs_link_pointer",
    "must be all ones, or 4-KiB-aligned and within the physical-address width",
)
LINK_REVISION = _check(
    "vmcs_link_revision",
    "vmcs_link_pointer",
    "must be all ones, or point to a VMCS with this processor's revision",
)

_check.section("Checks on Guest Page-Directory-Pointer-Table Entries")
PDPTE = _check.each(
    range(4), "guest_pdpte{}", "guest_pdpte{}", "must be 0 in its reserved bits while it is present"
)
PDPTES_IN_MEMORY = _check(
    "guest_pdptes_in_memory", "guest_cr3", "must point to PDPTEs in RAM that are 0 in their reserved bits"
)

# Exit qualifications of reason 33
QUALIFICATION_PDPTE, QUALIFICATION_NMI, QUALIFICATION_LINK_POINTER = 2, 3, 4

_RFLAGS_ZEROS, _RFLAGS_ONES = ~((1 << 22) - 1) | 1 << 15 | 1 << 5 | 1 << 3, 2
_BLOCKING_SMI, _BLOCKING_BITS = 4, 0xF
_PENDING_BS = 1 << 14
_PENDING_ZEROS = ~(0xF | 1 << 12 | _PENDING_BS)
_PDPTE_ZEROS = 0x1E6
_CR0_MODE = CR0_PE | CR0_PG


@compiled
def qualification_of(check):
    """The exit qualification that reports a violated check."""
    if check == BLOCKING_NMI_STI:
        return QUALIFICATION_NMI
    if check == LINK_POINTER or check == LINK_REVISION:
        return QUALIFICATION_LINK_POINTER
    return QUALIFICATION_PDPTE if check >= PDPTE else 0


@compiled
def _check_registers(vmcs, unrestricted):
    """Control registers, debug registers and MSRs."""
    controls = vmcs.vm_entry_controls
    cr0 = vmcs.guest_cr0
    ones = CR0_FIXED0 & ~_CR0_MODE if unrestricted else CR0_FIXED0
    if cr0 & ones != ones or cr0 & ~CR0_FIXED1:
        violate(vmcs, CR0_FIXED)
    if cr0 & CR0_PG and cr0 & CR0_PE == 0:
        violate(vmcs, CR0_PG_NEEDS_PE)
    if vmcs.guest_cr4 & CR4_FIXED0 != CR4_FIXED0 or vmcs.guest_cr4 & ~CR4_FIXED1:
        violate(vmcs, CR4_FIXED)
    if controls & LOAD_DEBUG_CONTROLS:
        if vmcs.guest_ia32_debugctl & ~DEBUGCTL_BITS:
            violate(vmcs, DEBUGCTL)
        if shr(vmcs.guest_dr7, 32):
            violate(vmcs, DR7)
    if controls & IA32E_MODE_GUEST:
        if cr0 & CR0_PG == 0:
            violate(vmcs, IA32E_PAGING)
        if vmcs.guest_cr4 & CR4_PAE == 0:
            violate(vmcs, IA32E_PAE)
    elif vmcs.guest_cr4 & CR4_PCIDE:
        violate(vmcs, PCIDE)
    if not is_physical(vmcs.guest_cr3):
        violate(vmcs, CR3)
    if not is_canonical(vmcs.guest_ia32_sysenter_esp):
        violate(vmcs, SYSENTER_ESP)
    if not is_canonical(vmcs.guest_ia32_sysenter_eip):
        violate(vmcs, SYSENTER_EIP)
    if controls & ENTRY_LOAD_IA32_PAT and not is_memory_type_list(vmcs.guest_ia32_pat):
        violate(vmcs, PAT)
    if controls & ENTRY_LOAD_IA32_EFER:
        _check_efer(vmcs, vmcs.guest_ia32_efer, controls)


@compiled
def _check_efer(vmcs, efer, controls):
    lma = efer & EFER_LMA != 0
    if efer & ~EFER_BITS:
        violate(vmcs, EFER_RESERVED)
    if lma != (controls & IA32E_MODE_GUEST != 0):
        violate(vmcs, EFER_LMA_MODE)
    if vmcs.guest_cr0 & CR0_PG and lma != (efer & EFER_LME != 0):
        violate(vmcs, EFER_LME_LMA)


@compiled
def _check_descriptor_tables(vmcs):
    if not is_canonical(vmcs.guest_gdtr_base):
        violate(vmcs, GDTR_BASE)
    if not is_canonical(vmcs.guest_idtr_base):
        violate(vmcs, IDTR_BASE)
    if vmcs.guest_gdtr_limit & ~0xFFFF:
        violate(vmcs, GDTR_LIMIT)
    if vmcs.guest_idtr_limit & ~0xFFFF:
        violate(vmcs, IDTR_LIMIT)


@compiled
def _check_rip_and_rflags(vmcs, injected):
    """`injected` is the type of the event to inject, or -1."""
    ia32e = vmcs.vm_entry_controls & IA32E_MODE_GUEST
    rflags = vmcs.guest_rflags
    if ia32e and vmcs.guest_cs_access_rights & ACCESS_L:
        if not is_canonical(vmcs.guest_rip):
            violate(vmcs, RIP_CANONICAL)
    elif shr(vmcs.guest_rip, 32):
        violate(vmcs, RIP_HIGH)
    if rflags & _RFLAGS_ZEROS or rflags & _RFLAGS_ONES == 0:
        violate(vmcs, RFLAGS_RESERVED)
    if rflags & FLAG_VM and (ia32e or vmcs.guest_cr0 & CR0_PE == 0):
        violate(vmcs, RFLAGS_VM)
    if injected == TYPE_EXTERNAL and rflags & FLAG_IF == 0:
        violate(vmcs, RFLAGS_IF)


@compiled
def _check_activity(vmcs, injected):
    activity = vmcs.guest_activity_state
    if activity != ACTIVE and activity != ACTIVITY_HLT and activity != ACTIVITY_WAIT_FOR_SIPI:
        violate(vmcs, ACTIVITY)
    if activity == ACTIVITY_HLT and vmcs.guest_ss_access_rights & 0x60:
        violate(vmcs, ACTIVITY_DPL)
    if activity != ACTIVE and vmcs.guest_interruptibility_state & (SHADOW_STI | SHADOW_MOV_SS):
        violate(vmcs, ACTIVITY_BLOCKING)
    if injected < 0:
        return
    if activity == ACTIVITY_HLT:
        vector = vmcs.vm_entry_interruption_info & 0xFF
        wakes = injected == TYPE_EXTERNAL or injected == TYPE_NMI
        if not wakes and not (injected == TYPE_EXCEPTION and (vector == DB or vector == MC)):
            violate(vmcs, ACTIVITY_INJECTION)
    elif activity == ACTIVITY_WAIT_FOR_SIPI:
        violate(vmcs, ACTIVITY_INJECTION)


@compiled
def _check_interruptibility(vmcs, injected):
    state = vmcs.guest_interruptibility_state
    if state & ~_BLOCKING_BITS:
        violate(vmcs, BLOCKING_RESERVED)
    if state & SHADOW_STI and state & SHADOW_MOV_SS:
        violate(vmcs, BLOCKING_BOTH)
    if state & SHADOW_STI and vmcs.guest_rflags & FLAG_IF == 0:
        violate(vmcs, BLOCKING_STI_IF)
    if injected == TYPE_EXTERNAL and state & (SHADOW_STI | SHADOW_MOV_SS):
        violate(vmcs, BLOCKING_EXTERNAL)
    if injected == TYPE_NMI and state & SHADOW_MOV_SS:
        violate(vmcs, BLOCKING_NMI_MOV_SS)
    if state & _BLOCKING_SMI:
        violate(vmcs, BLOCKING_SMI)
    if injected == TYPE_NMI and state & SHADOW_STI:
        violate(vmcs, BLOCKING_NMI_STI)


@compiled
def _check_pending_debug(vmcs):
    pending = vmcs.guest_pending_debug_exceptions
    if pending & _PENDING_ZEROS:
        violate(vmcs, PENDING_RESERVED)
    blocked = vmcs.guest_interruptibility_state & (SHADOW_STI | SHADOW_MOV_SS)
    if blocked or vmcs.guest_activity_state == ACTIVITY_HLT:
        stepping = vmcs.guest_rflags & FLAG_TF and vmcs.guest_ia32_debugctl & DEBUGCTL_BTF == 0
        if stepping and pending & _PENDING_BS == 0:
            violate(vmcs, PENDING_BS_SET)
        if not stepping and pending & _PENDING_BS:
            violate(vmcs, PENDING_BS_CLEAR)


@compiled
def _check_link_pointer(cpu, vmcs):
    pointer = vmcs.vmcs_link_pointer
    if pointer == -1:
        return
    if not is_physical_page(pointer):
        violate(vmcs, LINK_POINTER)
        return
    host = host_of(cpu, pointer)
    if host == 0 or load32(host) != VMCS_REVISION:
        violate(vmcs, LINK_REVISION)


@compiled
def _wrong_pdpte(entry):
    return entry & 1 and (entry & _PDPTE_ZEROS or not is_physical(entry))


@compiled
def _check_pdptes(vmcs):
    """With EPT they come from the VMCS; without it VM entry reads them from memory and checks there."""
    pae = vmcs.guest_cr0 & CR0_PG and vmcs.guest_cr4 & CR4_PAE
    if not pae or vmcs.vm_entry_controls & IA32E_MODE_GUEST:
        return
    if _wrong_pdpte(vmcs.guest_pdpte0):
        violate(vmcs, PDPTE)
    if _wrong_pdpte(vmcs.guest_pdpte1):
        violate(vmcs, PDPTE + 1)
    if _wrong_pdpte(vmcs.guest_pdpte2):
        violate(vmcs, PDPTE + 2)
    if _wrong_pdpte(vmcs.guest_pdpte3):
        violate(vmcs, PDPTE + 3)


@unit(PROCESSOR, VMCS)
def check_guest(cpu, vmcs):
    """Checks on the guest-state area. Returns the number of the first violated one, or 0."""
    clear_violations(vmcs, GUEST_WORD, END_WORD)
    secondary = vmcs.secondary_controls if vmcs.primary_controls & ACTIVATE_SECONDARY_CONTROLS else 0
    unrestricted = secondary & UNRESTRICTED_GUEST
    info = vmcs.vm_entry_interruption_info
    injected = interruption_type(info) if info & INFO_VALID else -1
    _check_registers(vmcs, unrestricted)
    check_segments(vmcs, unrestricted)
    _check_descriptor_tables(vmcs)
    _check_rip_and_rflags(vmcs, injected)
    _check_activity(vmcs, injected)
    _check_interruptibility(vmcs, injected)
    _check_pending_debug(vmcs)
    _check_link_pointer(cpu, vmcs)
    if secondary & ENABLE_EPT:
        _check_pdptes(vmcs)
    return first_violation(vmcs, GUEST_WORD, END_WORD)

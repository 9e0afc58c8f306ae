"""VM entry: check the VMCS, load the guest, stage the event to inject.

Manual: chapter "VM Entries". VMLAUNCH, VMRESUME and the Python hypervisor all enter here; the launch state
and the blocking by MOV SS that the two instructions look at are theirs. An injected event is left in
`cpu.vectoring_info` with `cpu.has_injected`: the processor delivers it before the first instruction.
"""

from vmx.mmu.mode import load_pdptes, update_mode
from vmx.mmu.tlb import flush_all
from vmx.state.flags import set_rflags
from vmx.state.jit import compiled
from vmx.state.memory import load64
from vmx.state.processor import (
    ACTIVE,
    CR0_ET,
    CR0_PG,
    CR4_PAE,
    EFER_LMA,
    EFER_LME,
    NEVER,
    PROCESSOR,
    SHADOW_MOV_SS,
    SHADOW_NMI,
    SHADOW_STI,
    Stop,
)
from vmx.state.unit import unit
from vmx.virt.check_controls import check_controls
from vmx.virt.check_guest import PDPTES_IN_MEMORY, check_guest, qualification_of
from vmx.virt.check_host import check_host
from vmx.virt.controls import (
    ACTIVATE_SECONDARY_CONTROLS,
    ACTIVATE_VMX_PREEMPTION_TIMER,
    ENABLE_EPT,
    ENABLE_VPID,
    ENTRY_LOAD_IA32_EFER,
    ENTRY_LOAD_IA32_PAT,
    IA32E_MODE_GUEST,
    LOAD_DEBUG_CONTROLS,
    USE_TSC_OFFSETTING,
)
from vmx.virt.exit import ACCESS_RIGHTS, BASES, LIMITS, SEGMENT_FIELDS, SELECTORS, forget_cause
from vmx.virt.fields import VMCS
from vmx.virt.host_state import CR0_UNTOUCHED, load_host_state
from vmx.virt.interruption import INFO_ERROR_CODE, INFO_VALID, interruption_type, is_software_type
from vmx.virt.msr_area import load_msrs
from vmx.virt.preemption import preemption_deadline
from vmx.virt.reasons import ExitReason

# What vm_entry returns: 0, a VM-instruction error, or a basic exit reason
ENTERED = 0
ENTRY_INVALID_CONTROLS, ENTRY_INVALID_HOST = 7, 8
ENTRY_INVALID_GUEST = int(ExitReason.VMENTRY_FAILURE_GUEST_STATE)
ENTRY_MSR_LOAD_FAILED = int(ExitReason.VMENTRY_FAILURE_MSR)

ENTRY_ABORTED = 256  # a VMX abort while the host state was loaded

_ENTRY_FAILURE = 1 << 31  # bit of the exit reason
_INJECTED_BITS = INFO_VALID | INFO_ERROR_CODE | 0x7FF
_DR7_ZEROS, _DR7_ONES = 1 << 11 | 1 << 12 | 1 << 14 | 1 << 15, 1 << 10
_STOP_ENTRY_FAILED = int(Stop.ENTRY_FAILED)


@compiled
def _refuse(cpu, error, check):
    """The entry fails like an instruction: VM-instruction error 7 or 8; the host goes on."""
    VMCS.at(cpu.host_vmcs).vm_instruction_error = error
    cpu.stop_detail = check
    if cpu.python_hypervisor:
        cpu.stop = _STOP_ENTRY_FAILED
    return error


@compiled
def _fail(cpu, reason, qualification, check):
    """The entry fails like a VM exit: the host state is loaded, the guest state is not saved."""
    vmcs = VMCS.at(cpu.host_vmcs)
    vmcs.exit_reason = reason | _ENTRY_FAILURE
    vmcs.exit_qualification = qualification
    vmcs.idt_vectoring_info &= ~INFO_VALID
    forget_cause(cpu)
    if load_host_state(cpu):
        return ENTRY_ABORTED  # cpu.stop says SHUTDOWN
    cpu.stop_detail = check
    if cpu.python_hypervisor:
        cpu.stop = _STOP_ENTRY_FAILED
    return reason


@compiled
def _load_controls(cpu, vmcs):
    """Copy the controls to where the processor looks at them."""
    cpu.pin_controls = vmcs.pin_based_controls
    primary = vmcs.primary_controls
    secondary = vmcs.secondary_controls if primary & ACTIVATE_SECONDARY_CONTROLS else 0
    cpu.primary_controls = primary
    cpu.secondary_controls = secondary
    cpu.exception_bitmap = vmcs.exception_bitmap
    cpu.eptp = vmcs.eptp if secondary & ENABLE_EPT else 0
    cpu.vpid = vmcs.vpid if secondary & ENABLE_VPID else 0
    cpu.tsc_offset = vmcs.tsc_offset if primary & USE_TSC_OFFSETTING else 0
    if vmcs.pin_based_controls & ACTIVATE_VMX_PREEMPTION_TIMER:
        cpu.preemption_deadline = preemption_deadline(cpu, vmcs.vmx_preemption_timer_value)
    else:
        cpu.preemption_deadline = NEVER
    cpu.non_root = 1


@compiled
def _load_registers(cpu, vmcs):
    """Control, debug and model-specific registers, RIP, RSP, RFLAGS."""
    controls = vmcs.vm_entry_controls
    cpu.cr0 = vmcs.guest_cr0 & ~CR0_UNTOUCHED | cpu.cr0 & CR0_UNTOUCHED | CR0_ET
    cpu.cr3 = vmcs.guest_cr3
    cpu.cr4 = vmcs.guest_cr4
    if controls & LOAD_DEBUG_CONTROLS:
        cpu.dr[7] = vmcs.guest_dr7 & ~_DR7_ZEROS | _DR7_ONES
        cpu.debugctl = vmcs.guest_ia32_debugctl
    cpu.sysenter_cs = vmcs.guest_ia32_sysenter_cs
    cpu.sysenter_esp = vmcs.guest_ia32_sysenter_esp
    cpu.sysenter_eip = vmcs.guest_ia32_sysenter_eip
    if controls & ENTRY_LOAD_IA32_EFER:
        cpu.efer = vmcs.guest_ia32_efer
    elif controls & IA32E_MODE_GUEST:
        cpu.efer |= EFER_LMA | EFER_LME
    else:
        cpu.efer &= ~EFER_LMA
        if cpu.cr0 & CR0_PG:
            cpu.efer &= ~EFER_LME
    if controls & ENTRY_LOAD_IA32_PAT:
        cpu.pat = vmcs.guest_ia32_pat
    cpu.rip = vmcs.guest_rip
    cpu.next_rip = vmcs.guest_rip
    cpu.gpr[4] = vmcs.guest_rsp
    set_rflags(cpu, vmcs.guest_rflags)


@compiled
def _load_segments(cpu):
    """ES to TR and the descriptor tables."""
    region = cpu.host_vmcs
    for i in range(SEGMENT_FIELDS):
        segment = cpu.segments[i]
        segment.selector = load64(region + SELECTORS + 8 * i)
        segment.limit = load64(region + LIMITS + 8 * i)
        segment.access = load64(region + ACCESS_RIGHTS + 8 * i)
        segment.base = load64(region + BASES + 8 * i)
    vmcs = VMCS.at(region)
    cpu.gdtr_base = vmcs.guest_gdtr_base
    cpu.gdtr_limit = vmcs.guest_gdtr_limit
    cpu.idtr_base = vmcs.guest_idtr_base
    cpu.idtr_limit = vmcs.guest_idtr_limit


@compiled
def _load_pdptes(cpu, vmcs):
    """PAE paging: the PDPTEs, from the VMCS with EPT, else from memory. Returns 0 or a status."""
    if cpu.efer & EFER_LMA or cpu.cr0 & CR0_PG == 0 or cpu.cr4 & CR4_PAE == 0:
        return 0
    if cpu.eptp == 0:
        return load_pdptes(cpu, cpu.cr3)
    cpu.pdpte[0] = vmcs.guest_pdpte0
    cpu.pdpte[1] = vmcs.guest_pdpte1
    cpu.pdpte[2] = vmcs.guest_pdpte2
    cpu.pdpte[3] = vmcs.guest_pdpte3
    return 0


@compiled
def _load_events(cpu, vmcs):
    """Activity, interruptibility, pending debug exceptions and the event to inject."""
    cpu.activity = vmcs.guest_activity_state
    cpu.shadow = vmcs.guest_interruptibility_state & (SHADOW_STI | SHADOW_MOV_SS | SHADOW_NMI)
    cpu.pending_debug = vmcs.guest_pending_debug_exceptions
    info = vmcs.vm_entry_interruption_info
    if info & INFO_VALID == 0:
        return
    cpu.activity = ACTIVE
    cpu.pending_debug = 0
    cpu.has_injected = 1
    cpu.vectoring_info = info & _INJECTED_BITS
    if info & INFO_ERROR_CODE:
        cpu.vectoring_error = vmcs.vm_entry_exception_error_code
    if is_software_type(interruption_type(info)):
        cpu.exit_length = vmcs.vm_entry_instruction_length


@unit(PROCESSOR)
def vm_entry(cpu):
    """Enter non-root operation through the VMCS at `cpu.host_vmcs`.

    Returns ENTERED, or how it failed: ENTRY_INVALID_CONTROLS and ENTRY_INVALID_HOST change nothing but the
    VM-instruction error; ENTRY_INVALID_GUEST and ENTRY_MSR_LOAD_FAILED have loaded the host state.
    `cpu.stop_detail` is the number of the violated check (vmx.virt.checks), or of the MSR entry. After
    ENTRY_ABORTED the processor has shut down, and it is the VMX-abort indicator.
    """
    vmcs = VMCS.at(cpu.host_vmcs)
    check = check_controls(cpu, vmcs)
    if check:
        return _refuse(cpu, ENTRY_INVALID_CONTROLS, check)
    check = check_host(cpu, vmcs)
    if check:
        return _refuse(cpu, ENTRY_INVALID_HOST, check)
    check = check_guest(cpu, vmcs)
    if check:
        return _fail(cpu, ENTRY_INVALID_GUEST, qualification_of(check), check)
    forget_cause(cpu)
    _load_controls(cpu, vmcs)
    _load_registers(cpu, vmcs)
    _load_segments(cpu)
    if _load_pdptes(cpu, vmcs):
        return _fail(cpu, ENTRY_INVALID_GUEST, qualification_of(PDPTES_IN_MEMORY), PDPTES_IN_MEMORY)
    entry = load_msrs(cpu, vmcs.vm_entry_msr_load_address, vmcs.vm_entry_msr_load_count)
    if entry:
        return _fail(cpu, ENTRY_MSR_LOAD_FAILED, entry, entry)
    if cpu.secondary_controls & ENABLE_VPID == 0:
        flush_all(cpu)
    update_mode(cpu)
    _load_events(cpu, vmcs)
    cpu.attention = 1
    return ENTERED

"""VM exit: record why, save the guest, load the host.

Manual: chapter "VM Exits". The cause is staged in `cpu.exit_*` and `cpu.vectoring_*` by whoever calls;
`cpu.rip` is what the guest's RIP field receives, so trap-like exits have advanced it.
"""

from vmx.mmu.bus import forget_bus_answers
from vmx.state.bits import shr
from vmx.state.flags import get_rflags
from vmx.state.jit import compiled
from vmx.state.memory import store64
from vmx.state.processor import (
    ACTIVITY_HLT,
    CR0_PG,
    CR4_PAE,
    DB,
    DF,
    EFER_LMA,
    EXIT,
    FLAG_RF,
    FLAG_TF,
    MC,
    PROCESSOR,
    SHADOW_MOV_SS,
    SHADOW_NMI,
    SHADOW_STI,
    Stop,
)
from vmx.state.unit import unit
from vmx.virt.controls import (
    IA32E_MODE_GUEST,
    SAVE_DEBUG_CONTROLS,
    SAVE_IA32_EFER,
    SAVE_IA32_PAT,
    SAVE_VMX_PREEMPTION_TIMER,
)
from vmx.virt.fields import VMCS
from vmx.virt.host_state import ABORT_SAVE_MSRS, load_host_state, vmx_abort
from vmx.virt.interruption import INFO_VALID, TYPE_EXCEPTION, TYPE_NMI, interruption_type
from vmx.virt.msr_area import store_msrs
from vmx.virt.preemption import preemption_value
from vmx.virt.reasons import ExitReason
from vmx.virt.values import DEBUGCTL_BTF

PENDING_BS = 1 << 14  # pending debug exceptions: a single step
PENDING_BITS = 0xF | 1 << 12 | PENDING_BS

_EXCEPTION_NMI = int(ExitReason.EXCEPTION_NMI)
_TRIPLE_FAULT = int(ExitReason.TRIPLE_FAULT)
_EPT_VIOLATION, _EPT_MISCONFIGURATION = int(ExitReason.EPT_VIOLATION), int(ExitReason.EPT_MISCONFIGURATION)
_STOP_VM_EXIT = int(Stop.VM_EXIT)

# Exits that are not caused by the execution of an instruction leave RF as it was.
_EVENTS = (
    ExitReason.EXCEPTION_NMI,
    ExitReason.EXTERNAL_INTERRUPT,
    ExitReason.TRIPLE_FAULT,
    ExitReason.INIT,
    ExitReason.SIPI,
    ExitReason.INTERRUPT_WINDOW,
    ExitReason.NMI_WINDOW,
    ExitReason.TASK_SWITCH,
    ExitReason.MONITOR_TRAP_FLAG,
    ExitReason.TPR_THRESHOLD,
    ExitReason.EPT_VIOLATION,
    ExitReason.EPT_MISCONFIGURATION,
    ExitReason.VMX_PREEMPTION_TIMER_EXPIRED,
)
_EVENT_REASONS = sum(1 << int(reason) for reason in _EVENTS)

SELECTORS, LIMITS = VMCS.offset("guest_es_selector"), VMCS.offset("guest_es_limit")
ACCESS_RIGHTS, BASES = VMCS.offset("guest_es_access_rights"), VMCS.offset("guest_es_base")
SEGMENT_FIELDS = 8  # ES to TR, in the order of the processor's segments


@compiled
def _saved_rflags(cpu, reason):
    """RFLAGS for the guest-state area; RF as "Saving RIP, RSP, and RFLAGS" says."""
    rflags = get_rflags(cpu)
    if shr(_EVENT_REASONS, reason) & 1 == 0 or reason > 63:
        return rflags & ~FLAG_RF
    if reason == _EPT_VIOLATION or reason == _EPT_MISCONFIGURATION:
        return rflags if cpu.vectoring_info & INFO_VALID else rflags | FLAG_RF
    info = cpu.exit_interruption_info
    if reason == _EXCEPTION_NMI and interruption_type(info) == TYPE_EXCEPTION:
        vector = info & 0xFF
        if vector != DB and vector != DF and vector != MC:
            return rflags | FLAG_RF  # faults are restarted without meeting an instruction breakpoint again
    return rflags


@compiled
def _record_cause(cpu, vmcs, reason, qualification):
    """The VM-exit information fields, from what was staged."""
    vmcs.exit_reason = reason & 0xFFFFFFFF
    vmcs.exit_qualification = qualification
    vmcs.guest_linear_address = cpu.exit_linear
    vmcs.guest_physical_address = cpu.exit_physical
    vmcs.vm_exit_instruction_length = cpu.exit_length
    vmcs.vm_exit_instruction_info = cpu.exit_instruction_info
    info = cpu.exit_interruption_info
    vmcs.vm_exit_interruption_info = info
    vmcs.vm_exit_interruption_error_code = cpu.exit_interruption_error
    # A double or triple fault is not "during the delivery" of the event that led to it.
    double_fault = reason == _EXCEPTION_NMI and info & 0x7FF == (TYPE_EXCEPTION << 8 | DF)
    if double_fault or reason == _TRIPLE_FAULT:
        vmcs.idt_vectoring_info = 0
        vmcs.idt_vectoring_error_code = 0
    else:
        vmcs.idt_vectoring_info = cpu.vectoring_info
        vmcs.idt_vectoring_error_code = cpu.vectoring_error
    vmcs.vm_entry_interruption_info &= ~INFO_VALID


@compiled
def forget_cause(cpu):
    """Clear what was staged for an exit, and the event that was being delivered."""
    cpu.exit_length = 0
    cpu.exit_instruction_info = 0
    cpu.exit_interruption_info = 0
    cpu.exit_interruption_error = 0
    cpu.exit_linear = 0
    cpu.exit_physical = 0
    cpu.vectoring_info = 0
    cpu.vectoring_error = 0
    cpu.has_injected = 0
    cpu.fault = 0
    forget_bus_answers(cpu)


@compiled
def _save_segments(cpu):
    """Selector, limit, access rights and base of ES to TR, and the descriptor tables."""
    region = cpu.host_vmcs
    for i in range(SEGMENT_FIELDS):
        segment = cpu.segments[i]
        store64(region + SELECTORS + 8 * i, segment.selector)
        store64(region + LIMITS + 8 * i, segment.limit)
        store64(region + ACCESS_RIGHTS + 8 * i, segment.access)
        store64(region + BASES + 8 * i, segment.base)
    vmcs = VMCS.at(region)
    vmcs.guest_gdtr_base = cpu.gdtr_base
    vmcs.guest_gdtr_limit = cpu.gdtr_limit
    vmcs.guest_idtr_base = cpu.idtr_base
    vmcs.guest_idtr_limit = cpu.idtr_limit


@compiled
def _save_registers(cpu, vmcs, reason):
    vmcs.guest_cr0 = cpu.cr0
    vmcs.guest_cr3 = cpu.cr3
    vmcs.guest_cr4 = cpu.cr4
    vmcs.guest_rip = cpu.rip
    vmcs.guest_rsp = cpu.gpr[4]
    vmcs.guest_rflags = _saved_rflags(cpu, reason)
    vmcs.guest_ia32_sysenter_cs = cpu.sysenter_cs & 0xFFFFFFFF
    vmcs.guest_ia32_sysenter_esp = cpu.sysenter_esp
    vmcs.guest_ia32_sysenter_eip = cpu.sysenter_eip
    controls = vmcs.vm_exit_controls
    if controls & SAVE_DEBUG_CONTROLS:
        vmcs.guest_dr7 = cpu.dr[7]
        vmcs.guest_ia32_debugctl = cpu.debugctl
    if controls & SAVE_IA32_PAT:
        vmcs.guest_ia32_pat = cpu.pat
    if controls & SAVE_IA32_EFER:
        vmcs.guest_ia32_efer = cpu.efer
    if controls & SAVE_VMX_PREEMPTION_TIMER:
        vmcs.vmx_preemption_timer_value = preemption_value(cpu)
    if cpu.efer & EFER_LMA:
        vmcs.vm_entry_controls |= IA32E_MODE_GUEST
    else:
        vmcs.vm_entry_controls &= ~IA32E_MODE_GUEST
        if cpu.eptp and cpu.cr0 & CR0_PG and cpu.cr4 & CR4_PAE:
            vmcs.guest_pdpte0 = cpu.pdpte[0]
            vmcs.guest_pdpte1 = cpu.pdpte[1]
            vmcs.guest_pdpte2 = cpu.pdpte[2]
            vmcs.guest_pdpte3 = cpu.pdpte[3]


@compiled
def _save_non_register_state(cpu, vmcs):
    """Activity, interruptibility, pending debug exceptions: "Saving Non-Register State"."""
    vmcs.guest_activity_state = cpu.activity
    vmcs.guest_interruptibility_state = cpu.shadow
    pending = cpu.pending_debug & PENDING_BITS
    if cpu.shadow & (SHADOW_STI | SHADOW_MOV_SS) or cpu.activity == ACTIVITY_HLT:
        # VM entry demands that BS tells whether a single step is pending.
        if cpu.rflags & FLAG_TF and cpu.debugctl & DEBUGCTL_BTF == 0:
            pending |= PENDING_BS
        else:
            pending &= ~PENDING_BS
    vmcs.guest_pending_debug_exceptions = pending


@unit(PROCESSOR, "i64", "i64")
def vm_exit(cpu, reason, qualification):
    """Leave non-root operation. Returns EXIT, or STOP after a VMX abort."""
    vmcs = VMCS.at(cpu.host_vmcs)
    _record_cause(cpu, vmcs, reason, qualification)
    _save_registers(cpu, vmcs, reason)
    _save_segments(cpu)
    _save_non_register_state(cpu, vmcs)
    if reason == _EXCEPTION_NMI and interruption_type(cpu.exit_interruption_info) == TYPE_NMI:
        cpu.shadow |= SHADOW_NMI
    forget_cause(cpu)
    if store_msrs(cpu, vmcs.vm_exit_msr_store_address, vmcs.vm_exit_msr_store_count):
        return vmx_abort(cpu, ABORT_SAVE_MSRS)
    status = load_host_state(cpu)
    if status:
        return status
    cpu.vm_exits += 1
    if cpu.python_hypervisor:
        cpu.stop = _STOP_VM_EXIT
    return EXIT

"""Loading the host state: the end of every VM exit, and of every VM entry that fails after its first checks.

Manual: "Loading Host State", "Loading MSRs" in the chapter "VM Exits".
"""

from vmx.mmu.mode import load_pdptes, update_mode
from vmx.mmu.tlb import flush_all
from vmx.state.flags import set_rflags
from vmx.state.jit import compiled
from vmx.state.processor import (
    ACCESS_DB,
    ACCESS_G,
    ACCESS_L,
    ACCESS_P,
    ACCESS_S,
    ACCESS_UNUSABLE,
    ACTIVE,
    CR0_CD,
    CR0_ET,
    CR0_NW,
    CR0_PG,
    CR4_PAE,
    CR4_PCIDE,
    CS,
    DS,
    EFER_LMA,
    EFER_LME,
    ES,
    FS,
    GS,
    LDTR,
    NEVER,
    PROCESSOR,
    SHADOW_NMI,
    SS,
    STOP,
    TR,
    Stop,
)
from vmx.state.unit import unit
from vmx.virt.controls import ENABLE_VPID, EXIT_LOAD_IA32_EFER, EXIT_LOAD_IA32_PAT, HOST_ADDRESS_SPACE_SIZE
from vmx.virt.fields import VMCS
from vmx.virt.msr_area import load_msrs

# CR0 bits that neither entry nor exit modifies: ET, NW, CD and the reserved ones
CR0_UNTOUCHED = CR0_ET | 0xFFC0 | 1 << 17 | 0x3FF << 19 | CR0_NW | CR0_CD

_CODE = 0xB | ACCESS_S | ACCESS_P | ACCESS_G
_DATA = 0x3 | ACCESS_S | ACCESS_P | ACCESS_DB | ACCESS_G
_BUSY_TSS = 0xB | ACCESS_P
_DR7_INITIAL = 0x400
_STOP_SHUTDOWN = int(Stop.SHUTDOWN)

ABORT_SAVE_MSRS, ABORT_HOST_PDPTE, ABORT_LOAD_MSRS = 1, 2, 4  # VMX-abort indicators


@compiled
def _set_segment(cpu, index, selector, base, limit, access):
    segment = cpu.segments[index]
    segment.selector = selector
    segment.base = base
    segment.limit = limit
    segment.access = access


@compiled
def _set_data_segment(cpu, index, selector, base):
    """A flat data segment; a null selector makes it unusable."""
    _set_segment(cpu, index, selector, base, 0xFFFFFFFF, _DATA if selector else _DATA | ACCESS_UNUSABLE)


@compiled
def _load_registers(cpu, vmcs, wide):
    cpu.cr0 = vmcs.host_cr0 & ~CR0_UNTOUCHED | cpu.cr0 & CR0_UNTOUCHED | CR0_ET
    cpu.cr3 = vmcs.host_cr3
    cpu.cr4 = vmcs.host_cr4 | CR4_PAE if wide else vmcs.host_cr4 & ~CR4_PCIDE
    cpu.dr[7] = _DR7_INITIAL
    cpu.debugctl = 0
    cpu.sysenter_cs = vmcs.host_ia32_sysenter_cs
    cpu.sysenter_esp = vmcs.host_ia32_sysenter_esp
    cpu.sysenter_eip = vmcs.host_ia32_sysenter_eip
    if vmcs.vm_exit_controls & EXIT_LOAD_IA32_EFER:
        cpu.efer = vmcs.host_ia32_efer
    elif wide:
        cpu.efer |= EFER_LME | EFER_LMA
    else:
        cpu.efer &= ~(EFER_LME | EFER_LMA)
    if vmcs.vm_exit_controls & EXIT_LOAD_IA32_PAT:
        cpu.pat = vmcs.host_ia32_pat


@compiled
def _load_segments(cpu, vmcs, wide):
    _set_segment(cpu, CS, vmcs.host_cs_selector, 0, 0xFFFFFFFF, _CODE | (ACCESS_L if wide else ACCESS_DB))
    _set_data_segment(cpu, SS, vmcs.host_ss_selector, 0)
    _set_data_segment(cpu, DS, vmcs.host_ds_selector, 0)
    _set_data_segment(cpu, ES, vmcs.host_es_selector, 0)
    _set_data_segment(cpu, FS, vmcs.host_fs_selector, vmcs.host_fs_base)
    _set_data_segment(cpu, GS, vmcs.host_gs_selector, vmcs.host_gs_base)
    _set_segment(cpu, TR, vmcs.host_tr_selector, vmcs.host_tr_base, 0x67, _BUSY_TSS)
    _set_segment(cpu, LDTR, 0, 0, 0, ACCESS_UNUSABLE)
    cpu.gdtr_base = vmcs.host_gdtr_base
    cpu.gdtr_limit = 0xFFFF
    cpu.idtr_base = vmcs.host_idtr_base
    cpu.idtr_limit = 0xFFFF


@compiled
def _leave_non_root(cpu):
    """No control applies in root operation."""
    cpu.non_root = 0
    cpu.pin_controls = 0
    cpu.primary_controls = 0
    cpu.secondary_controls = 0
    cpu.exception_bitmap = 0
    cpu.vpid = 0
    cpu.eptp = 0
    cpu.tsc_offset = 0
    cpu.preemption_deadline = NEVER


@compiled
def vmx_abort(cpu, indicator):
    """An exit that cannot be completed: the processor shuts down."""
    VMCS.at(cpu.host_vmcs).abort_indicator = indicator
    cpu.stop = _STOP_SHUTDOWN
    cpu.stop_detail = indicator
    return STOP


@unit(PROCESSOR)
def load_host_state(cpu):
    """Leave non-root operation with the host state of the VMCS. Returns 0, or STOP after a VMX abort."""
    vmcs = VMCS.at(cpu.host_vmcs)
    wide = vmcs.vm_exit_controls & HOST_ADDRESS_SPACE_SIZE
    tagged = cpu.secondary_controls & ENABLE_VPID
    _leave_non_root(cpu)
    _load_registers(cpu, vmcs, wide)
    _load_segments(cpu, vmcs, wide)
    cpu.rip = vmcs.host_rip
    cpu.next_rip = vmcs.host_rip
    cpu.gpr[4] = vmcs.host_rsp
    set_rflags(cpu, 2)
    cpu.activity = ACTIVE
    cpu.shadow &= SHADOW_NMI
    cpu.pending_debug = 0
    if wide == 0 and cpu.cr0 & CR0_PG and cpu.cr4 & CR4_PAE and load_pdptes(cpu, cpu.cr3):
        return vmx_abort(cpu, ABORT_HOST_PDPTE)
    if load_msrs(cpu, vmcs.vm_exit_msr_load_address, vmcs.vm_exit_msr_load_count):
        return vmx_abort(cpu, ABORT_LOAD_MSRS)
    if tagged == 0:
        flush_all(cpu)
    update_mode(cpu)
    cpu.attention = 1
    return 0

"""Which instructions and events cause VM exits: the decisions, and the exit qualifications that go with
them.

Manual: "VM Exits" in the chapter "VMX Non-Root Operation", "Exit Qualification". Nothing exits in root
operation: the copies of the controls in the processor record are zero there. What the guest reads from and
writes to CR0 and CR4 through guest/host masks is here too.
"""

from vmx.mmu.physical import host_of
from vmx.state.bits import shr
from vmx.state.jit import compiled
from vmx.state.memory import load8
from vmx.state.processor import CR0_PE, CR0_TS, PF
from vmx.virt.controls import (
    ACKNOWLEDGE_INTERRUPT_ON_EXIT,
    CR3_LOAD_EXITING,
    CR3_STORE_EXITING,
    CR8_LOAD_EXITING,
    CR8_STORE_EXITING,
    DESCRIPTOR_TABLE_EXITING,
    ENABLE_INVPCID,
    ENABLE_RDTSCP,
    ENABLE_XSAVES_XRSTORS,
    EXTERNAL_INTERRUPT_EXITING,
    HLT_EXITING,
    INTERRUPT_WINDOW_EXITING,
    INVLPG_EXITING,
    MONITOR_EXITING,
    MOV_DR_EXITING,
    MWAIT_EXITING,
    NMI_EXITING,
    NMI_WINDOW_EXITING,
    PAUSE_EXITING,
    RDPMC_EXITING,
    RDTSC_EXITING,
    UNCONDITIONAL_IO_EXITING,
    USE_IO_BITMAPS,
    USE_MSR_BITMAPS,
    WBINVD_EXITING,
)
from vmx.virt.fields import VMCS


@compiled
def _flag(word, bit):
    return 1 if word & bit else 0


# --- control registers --------------------------------------------------------------------------------------


@compiled
def _masked_write_exits(mask, shadow, value):
    """A write exits when it gives a bit that the host owns a value other than its read shadow."""
    return 1 if (value ^ shadow) & mask else 0


@compiled
def mov_to_cr0(cpu, value):
    """1 when MOV to CR0 of this value exits."""
    if cpu.non_root == 0:
        return 0
    vmcs = VMCS.at(cpu.host_vmcs)
    return _masked_write_exits(vmcs.cr0_guest_host_mask, vmcs.cr0_read_shadow, value)


@compiled
def cr0_write_value(cpu, value):
    """What CR0 becomes when the guest writes `value` without an exit: the host's bits stay."""
    if cpu.non_root == 0:
        return value
    mask = VMCS.at(cpu.host_vmcs).cr0_guest_host_mask
    return value & ~mask | cpu.cr0 & mask


@compiled
def cr0_read(cpu):
    """What MOV from CR0 and SMSW see."""
    if cpu.non_root == 0:
        return cpu.cr0
    vmcs = VMCS.at(cpu.host_vmcs)
    mask = vmcs.cr0_guest_host_mask
    return cpu.cr0 & ~mask | vmcs.cr0_read_shadow & mask


@compiled
def mov_to_cr4(cpu, value):
    """1 when MOV to CR4 of this value exits."""
    if cpu.non_root == 0:
        return 0
    vmcs = VMCS.at(cpu.host_vmcs)
    return _masked_write_exits(vmcs.cr4_guest_host_mask, vmcs.cr4_read_shadow, value)


@compiled
def cr4_write_value(cpu, value):
    """What CR4 becomes when the guest writes `value` without an exit."""
    if cpu.non_root == 0:
        return value
    mask = VMCS.at(cpu.host_vmcs).cr4_guest_host_mask
    return value & ~mask | cpu.cr4 & mask


@compiled
def cr4_read(cpu):
    """What MOV from CR4 sees."""
    if cpu.non_root == 0:
        return cpu.cr4
    vmcs = VMCS.at(cpu.host_vmcs)
    mask = vmcs.cr4_guest_host_mask
    return cpu.cr4 & ~mask | vmcs.cr4_read_shadow & mask


@compiled
def mov_to_cr3_exits(cpu, value):
    """MOV to CR3 exits unless the value is one of the CR3-target values."""
    if cpu.primary_controls & CR3_LOAD_EXITING == 0:
        return 0
    vmcs = VMCS.at(cpu.host_vmcs)
    count = vmcs.cr3_target_count
    if count > 0 and value == vmcs.cr3_target_value_0:
        return 0
    if count > 1 and value == vmcs.cr3_target_value_1:
        return 0
    if count > 2 and value == vmcs.cr3_target_value_2:
        return 0
    if count > 3 and value == vmcs.cr3_target_value_3:
        return 0
    return 1


@compiled
def mov_from_cr3_exits(cpu):
    return _flag(cpu.primary_controls, CR3_STORE_EXITING)


@compiled
def cr8_load_exits(cpu):
    return _flag(cpu.primary_controls, CR8_LOAD_EXITING)


@compiled
def cr8_store_exits(cpu):
    return _flag(cpu.primary_controls, CR8_STORE_EXITING)


@compiled
def clts_action(cpu):
    """CLTS: 0 clears TS, 1 exits, 2 does nothing (the host owns TS and the guest believes it clear)."""
    if cpu.non_root == 0:
        return 0
    vmcs = VMCS.at(cpu.host_vmcs)
    if vmcs.cr0_guest_host_mask & CR0_TS == 0:
        return 0
    return 1 if vmcs.cr0_read_shadow & CR0_TS else 2


@compiled
def lmsw_exits(cpu, value):
    """LMSW writes MP, EM and TS, and can set PE but not clear it."""
    if cpu.non_root == 0:
        return 0
    vmcs = VMCS.at(cpu.host_vmcs)
    mask = vmcs.cr0_guest_host_mask
    shadow = vmcs.cr0_read_shadow
    if mask & value & ~shadow & CR0_PE:
        return 1
    return _masked_write_exits(mask & 0xE, shadow, value)


@compiled
def mov_dr_exits(cpu):
    return _flag(cpu.primary_controls, MOV_DR_EXITING)


# --- input and output, model-specific registers -------------------------------------------------------------


@compiled
def _bitmap_bit(cpu, physical, index):
    """Bit `index` of the 4-KiB bitmap at a physical address; 1 (exit) where there is no RAM."""
    host = host_of(cpu, physical)
    if host == 0:
        return 1
    return load8(host + (index >> 3)) >> (index & 7) & 1


@compiled
def io_exits(cpu, port, size):
    """An I/O instruction on `size` ports from `port`. With bitmaps, wrapping around 0xFFFF exits."""
    if cpu.primary_controls & USE_IO_BITMAPS == 0:
        return _flag(cpu.primary_controls, UNCONDITIONAL_IO_EXITING)
    if port + size > 0x10000:
        return 1
    vmcs = VMCS.at(cpu.host_vmcs)
    for each in range(port, port + size):
        bitmap = vmcs.io_bitmap_b if each & 0x8000 else vmcs.io_bitmap_a
        if _bitmap_bit(cpu, bitmap, each & 0x7FFF):
            return 1
    return 0


@compiled
def _msr_exits(cpu, index, quarter):
    """MSR bitmaps: quarters 0 read low, 1 read high, 2 write low, 3 write high MSRs."""
    if cpu.non_root == 0 or cpu.passing:
        return 0
    if cpu.primary_controls & USE_MSR_BITMAPS == 0:
        return 1
    if index & ~0x1FFF == 0xC000_0000:
        quarter += 1
    elif index & ~0x1FFF:
        return 1
    return _bitmap_bit(cpu, VMCS.at(cpu.host_vmcs).msr_bitmaps, quarter << 13 | index & 0x1FFF)


@compiled
def rdmsr_exits(cpu, index):
    """RDMSR of the MSR `index` (ECX, zero-extended)."""
    return _msr_exits(cpu, index, 0)


@compiled
def wrmsr_exits(cpu, index):
    """WRMSR of the MSR `index` (ECX, zero-extended)."""
    return _msr_exits(cpu, index, 2)


# --- events -------------------------------------------------------------------------------------------------


@compiled
def exception_exits(cpu, vector, error):
    """An exception exits by its bit in the bitmap; for #PF, error-code mask and match may invert it."""
    chosen = shr(cpu.exception_bitmap, vector) & 1
    if vector == PF and cpu.non_root:
        vmcs = VMCS.at(cpu.host_vmcs)
        if error & vmcs.page_fault_error_code_mask != vmcs.page_fault_error_code_match:
            chosen ^= 1
    return chosen


@compiled
def external_interrupt_exits(cpu):
    return _flag(cpu.pin_controls, EXTERNAL_INTERRUPT_EXITING)


@compiled
def nmi_exiting(cpu):
    return _flag(cpu.pin_controls, NMI_EXITING)


@compiled
def interrupt_window_exiting(cpu):
    """The control alone: the exit happens once RFLAGS.IF is 1 and nothing blocks interrupts."""
    return _flag(cpu.primary_controls, INTERRUPT_WINDOW_EXITING)


@compiled
def nmi_window_exiting(cpu):
    return _flag(cpu.primary_controls, NMI_WINDOW_EXITING)


@compiled
def acknowledge_on_exit(cpu):
    """An exit for an external interrupt acknowledges it and reports the vector."""
    if cpu.non_root == 0:
        return 0
    return _flag(VMCS.at(cpu.host_vmcs).vm_exit_controls, ACKNOWLEDGE_INTERRUPT_ON_EXIT)


# --- other instructions -------------------------------------------------------------------------------------


@compiled
def hlt_exits(cpu):
    return _flag(cpu.primary_controls, HLT_EXITING)


@compiled
def invlpg_exits(cpu):
    """Also INVPCID, which exits by the same control."""
    return _flag(cpu.primary_controls, INVLPG_EXITING)


@compiled
def rdtsc_exits(cpu):
    """RDTSC and RDTSCP."""
    return _flag(cpu.primary_controls, RDTSC_EXITING)


@compiled
def rdpmc_exits(cpu):
    return _flag(cpu.primary_controls, RDPMC_EXITING)


@compiled
def pause_exits(cpu):
    return _flag(cpu.primary_controls, PAUSE_EXITING)


@compiled
def monitor_exits(cpu):
    return _flag(cpu.primary_controls, MONITOR_EXITING)


@compiled
def mwait_exits(cpu):
    return _flag(cpu.primary_controls, MWAIT_EXITING)


@compiled
def wbinvd_exits(cpu):
    return _flag(cpu.secondary_controls, WBINVD_EXITING)


@compiled
def descriptor_table_exiting(cpu):
    """LGDT, LIDT, LLDT, LTR, SGDT, SIDT, SLDT, STR."""
    return _flag(cpu.secondary_controls, DESCRIPTOR_TABLE_EXITING)


@compiled
def _enabled(cpu, bit):
    """In root operation an instruction needs no control to exist."""
    return 1 if cpu.non_root == 0 or cpu.secondary_controls & bit else 0


@compiled
def rdtscp_enabled(cpu):
    """0: RDTSCP (and RDPID) raise #UD in the guest."""
    return _enabled(cpu, ENABLE_RDTSCP)


@compiled
def invpcid_enabled(cpu):
    """0: INVPCID raises #UD in the guest."""
    return _enabled(cpu, ENABLE_INVPCID)


@compiled
def xsaves_enabled(cpu):
    """0: XSAVES and XRSTORS raise #UD in the guest."""
    return _enabled(cpu, ENABLE_XSAVES_XRSTORS)


# --- exit qualifications ------------------------------------------------------------------------------------

CR_MOV_TO, CR_MOV_FROM, CR_CLTS, CR_LMSW = range(4)  # access types of "Exit Qualification for CR Accesses"


@compiled
def cr_qualification(cr, access_type, gpr, lmsw_memory, lmsw_source):
    """Control-register accesses; `lmsw_memory` is 1 for a memory operand of LMSW."""
    return cr | access_type << 4 | lmsw_memory << 6 | gpr << 8 | (lmsw_source & 0xFFFF) << 16


@compiled
def dr_qualification(dr, direction, gpr):
    """MOV DR; `direction` is 1 for MOV from DR."""
    return dr | direction << 4 | gpr << 8


@compiled
def io_qualification(size, is_in, string, rep, immediate, port):
    """I/O instructions; `size` in bytes, `immediate` is 1 when the port is an immediate operand."""
    return size - 1 | is_in << 3 | string << 4 | rep << 5 | immediate << 6 | port << 16

"""The VMX instructions: VMXON to VMXOFF, VMREAD and VMWRITE, VMLAUNCH and VMRESUME, VMCALL, INVEPT, INVVPID.

Manual: chapter "VMX Instruction Reference"; "Conventions" there names the three ways to end: VMsucceed,
VMfailInvalid and VMfailValid. In non-root operation they cause VM exits, whose instruction information is that
of the tables in "Information for VM Exits Due to Instruction Execution".

A VMCS region is a page of guest RAM, used in place: `cpu.vmcs_pointer` is its physical address (all ones: none),
`cpu.host_vmcs` the same page in the host's memory (0: none).
"""

from vmx.cpu.operands import gpr_read, gpr_write, linear_address, plus, raise_fault, read_memory, write_memory
from vmx.isa.operations import OPERATION
from vmx.mmu.access import load, load_physical
from vmx.mmu.physical import host_of, mark_written
from vmx.mmu.tlb import invept, invvpid
from vmx.state.bits import shr
from vmx.state.flags import set_status_flags
from vmx.state.jit import compiled
from vmx.state.processor import (
    CR0_PE,
    CR4_VMXE,
    DECODED,
    DS,
    FLAG_CF,
    FLAG_VM,
    FLAG_ZF,
    FLAT,
    GP,
    JUMP,
    NEVER,
    NO_REGISTER,
    OK,
    PROCESSOR,
    RIP_REGISTER,
    SHADOW_MOV_SS,
    SS,
    STOP,
    UD,
)
from vmx.state.unit import unit
from vmx.virt.capability import CR0_FIXED0, CR4_FIXED0, CR4_FIXED1
from vmx.virt.entry import ENTERED, ENTRY_ABORTED, ENTRY_INVALID_CONTROLS, ENTRY_INVALID_HOST, vm_entry
from vmx.virt.exit import vm_exit
from vmx.virt.fields import (
    LAUNCH_CLEAR,
    LAUNCH_LAUNCHED,
    VMCS,
    VMCS_REVISION,
    field_error,
    vmread_field,
    vmwrite_field,
)
from vmx.virt.reasons import ExitReason
from vmx.virt.values import is_canonical, is_physical, is_physical_page

NO_POINTER = -1  # the current-VMCS pointer while there is none
FEATURE_LOCKED, FEATURE_VMX_OUTSIDE_SMX = 1, 4  # IA32_FEATURE_CONTROL
VMX_FEATURE_CONTROL = FEATURE_LOCKED | FEATURE_VMX_OUTSIDE_SMX  # as firmware leaves it where there is VMX

# VM-instruction error numbers
VMCALL_IN_ROOT, VMCLEAR_ADDRESS, VMCLEAR_VMXON_POINTER = 1, 2, 3
VMLAUNCH_NOT_CLEAR, VMRESUME_NOT_LAUNCHED = 4, 5
VMPTRLD_ADDRESS, VMPTRLD_VMXON_POINTER, VMPTRLD_REVISION = 9, 10, 11
VMXON_IN_ROOT, ENTRY_BLOCKED_BY_MOV_SS, INVALIDATION_OPERAND = 15, 26, 28

# By the table's constant, which is the exit reason. VMCALL has an operation of its own.
(
    X_VMCALL, X_VMCLEAR, X_VMLAUNCH, X_VMPTRLD, X_VMPTRST, X_VMREAD, X_VMRESUME, X_VMWRITE, X_VMXOFF, X_VMXON,
    X_INVEPT, X_INVVPID,
) = (
    int(reason) for reason in (
        ExitReason.VMCALL, ExitReason.VMCLEAR, ExitReason.VMLAUNCH, ExitReason.VMPTRLD, ExitReason.VMPTRST,
        ExitReason.VMREAD, ExitReason.VMRESUME, ExitReason.VMWRITE, ExitReason.VMXOFF, ExitReason.VMXON,
        ExitReason.INVEPT, ExitReason.INVVPID,
    )
)  # fmt: skip
VMCALL = OPERATION["VMCALL"]


# --- conventions --------------------------------------------------------------------------------------------


@compiled
def _succeed(cpu):
    set_status_flags(cpu, 0)
    return OK


@compiled
def _fail_invalid(cpu):
    set_status_flags(cpu, FLAG_CF)
    return OK


@compiled
def _fail(cpu, error):
    """VMfail: VMfailValid where there is a current VMCS to hold the error number, else VMfailInvalid."""
    if cpu.host_vmcs == 0:
        return _fail_invalid(cpu)
    VMCS.at(cpu.host_vmcs).vm_instruction_error = error
    set_status_flags(cpu, FLAG_ZF)
    return OK


@compiled
def _wrong_mode(cpu):
    """1 in real-address, virtual-8086 and compatibility mode."""
    return 1 if cpu.cr0 & CR0_PE == 0 or cpu.rflags & FLAG_VM or cpu.long_mode and cpu.code_mode != 2 else 0


@compiled
def _register_size(cpu):
    """Bytes of the register operands, whatever the operand size."""
    return 8 if cpu.code_mode == 2 else 4


# --- VM exits from non-root operation -----------------------------------------------------------------------


@compiled
def _memory_information(d):
    """Bits 27:0 for a memory operand: scaling, address size, segment, index and base register."""
    info = d.scale | (0 if d.address_size == 2 else 1 if d.address_size == 4 else 2) << 7
    segment = d.segment
    if segment == FLAT:  # 64-bit code: the default segment, although its base is not used
        segment = SS if d.base == 4 or d.base == 5 else DS
    info |= segment << 15
    info |= 1 << 22 if d.index == NO_REGISTER else d.index << 18
    if d.base == NO_REGISTER or d.base == RIP_REGISTER:
        return info | 1 << 27
    return info | d.base << 23


@compiled
def _exit(cpu, d, reason):
    """The instruction exits, with the manual's information where it has operands."""
    qualification = 0
    in_memory = d.modrm < 0xC0  # VMCALL and the others without operands have 0xC0 and above
    if reason == X_VMREAD or reason == X_VMWRITE or reason == X_INVEPT or reason == X_INVVPID:
        other = d.dst if reason == X_VMREAD else d.src  # what ModRM.rm says; Reg2 is ModRM.reg
        info = _memory_information(d) if in_memory else 1 << 10 | other << 3
        cpu.exit_instruction_info = info | d.reg << 28
    elif in_memory:
        cpu.exit_instruction_info = _memory_information(d)
    if in_memory:
        qualification = d.displacement
        if d.base == RIP_REGISTER:
            qualification += cpu.next_rip
    cpu.exit_length = d.length
    return vm_exit(cpu, reason, qualification)


# --- VMX operation ------------------------------------------------------------------------------------------


@compiled
def _may_not_enter_vmx(cpu):
    """1 when VMXON is #GP(0): privilege, fixed bits of CR0 and CR4, IA32_FEATURE_CONTROL."""
    if cpu.cpl != 0 or cpu.cr0 & CR0_FIXED0 != CR0_FIXED0:
        return 1
    if cpu.cr4 & CR4_FIXED0 != CR4_FIXED0 or cpu.cr4 & ~CR4_FIXED1:
        return 1
    return 1 if cpu.feature_control & VMX_FEATURE_CONTROL != VMX_FEATURE_CONTROL else 0


@compiled
def _vmxon(cpu, d):
    if _wrong_mode(cpu) or cpu.cr4 & CR4_VMXE == 0:
        return raise_fault(cpu, UD, 0)
    if cpu.non_root:
        return _exit(cpu, d, X_VMXON)
    if cpu.vmx_on:
        return raise_fault(cpu, GP, 0) if cpu.cpl != 0 else _fail(cpu, VMXON_IN_ROOT)
    if _may_not_enter_vmx(cpu):
        return raise_fault(cpu, GP, 0)
    region = read_memory(cpu, d, 8)
    if cpu.fault:
        return cpu.fault
    if not is_physical_page(region) or load_physical(cpu, region, 4) != VMCS_REVISION:
        return _fail_invalid(cpu)
    cpu.vmx_on = 1
    cpu.vmxon_pointer = region
    _no_current_vmcs(cpu)
    return _succeed(cpu)


@compiled
def _vmxoff(cpu):
    cpu.vmx_on = 0
    _no_current_vmcs(cpu)
    return _succeed(cpu)


# --- VMCS regions -------------------------------------------------------------------------------------------


@compiled
def _no_current_vmcs(cpu):
    cpu.vmcs_pointer = NO_POINTER
    cpu.host_vmcs = 0


@compiled
def _written(cpu, pointer):
    """The processor writes to this region from now on: for observers of RAM, and for code that was there."""
    if mark_written(cpu, pointer):
        cpu.code_changed = 1


@compiled
def _vmclear(cpu, d):
    pointer = read_memory(cpu, d, 8)
    if cpu.fault:
        return cpu.fault
    if not is_physical_page(pointer):
        return _fail(cpu, VMCLEAR_ADDRESS)
    if pointer == cpu.vmxon_pointer:
        return _fail(cpu, VMCLEAR_VMXON_POINTER)
    host = host_of(cpu, pointer)
    if host != 0:  # what is written where there is no RAM is lost
        _written(cpu, pointer)
        VMCS.at(host).launch_state = LAUNCH_CLEAR
    if pointer == cpu.vmcs_pointer:
        _no_current_vmcs(cpu)
    return _succeed(cpu)


@compiled
def _vmptrld(cpu, d):
    pointer = read_memory(cpu, d, 8)
    if cpu.fault:
        return cpu.fault
    if not is_physical_page(pointer):
        return _fail(cpu, VMPTRLD_ADDRESS)
    if pointer == cpu.vmxon_pointer:
        return _fail(cpu, VMPTRLD_VMXON_POINTER)
    if load_physical(cpu, pointer, 4) != VMCS_REVISION:  # all ones where there is no RAM
        return _fail(cpu, VMPTRLD_REVISION)
    _written(cpu, pointer)
    cpu.vmcs_pointer = pointer
    cpu.host_vmcs = host_of(cpu, pointer)
    return _succeed(cpu)


@compiled
def _vmptrst(cpu, d):
    write_memory(cpu, d, 8, cpu.vmcs_pointer)
    return cpu.fault if cpu.fault else _succeed(cpu)


@compiled
def _vmread(cpu, d):
    if cpu.host_vmcs == 0:
        return _fail_invalid(cpu)
    size = _register_size(cpu)
    encoding = gpr_read(cpu, d.src, size)
    error = field_error(encoding, 0)
    if error:
        return _fail(cpu, error)
    value = vmread_field(cpu, encoding)
    if d.modrm >= 0xC0:
        gpr_write(cpu, d.dst, size, value)
    else:
        write_memory(cpu, d, size, value)
        if cpu.fault:
            return cpu.fault
    return _succeed(cpu)


@compiled
def _vmwrite(cpu, d):
    if cpu.host_vmcs == 0:
        return _fail_invalid(cpu)
    size = _register_size(cpu)
    value = gpr_read(cpu, d.src, size) if d.modrm >= 0xC0 else read_memory(cpu, d, size)
    if cpu.fault:
        return cpu.fault
    error = vmwrite_field(cpu, gpr_read(cpu, d.dst, size), value)
    return _fail(cpu, error) if error else _succeed(cpu)


# --- VM entry -----------------------------------------------------------------------------------------------


@compiled
def _enter(cpu, launch):
    """VMLAUNCH and VMRESUME."""
    if cpu.host_vmcs == 0:
        return _fail_invalid(cpu)
    if cpu.shadow & SHADOW_MOV_SS:
        return _fail(cpu, ENTRY_BLOCKED_BY_MOV_SS)
    vmcs = VMCS.at(cpu.host_vmcs)
    if launch and vmcs.launch_state != LAUNCH_CLEAR:
        return _fail(cpu, VMLAUNCH_NOT_CLEAR)
    if launch == 0 and vmcs.launch_state != LAUNCH_LAUNCHED:
        return _fail(cpu, VMRESUME_NOT_LAUNCHED)
    result = vm_entry(cpu)
    if result == ENTRY_INVALID_CONTROLS or result == ENTRY_INVALID_HOST:
        return _fail(cpu, result)
    # The guest, or the host at HOST_RIP, comes next: a blocking or a single step of this instruction is not theirs.
    cpu.step_shadow = 0
    cpu.step_trap = 0
    if result == ENTRY_ABORTED:
        return STOP
    if result == ENTERED:
        vmcs.launch_state = LAUNCH_LAUNCHED
        if cpu.preemption_deadline != NEVER:
            cpu.preemption_deadline += 1  # it was computed before this instruction retires
    return JUMP


# --- INVEPT, INVVPID ----------------------------------------------------------------------------------------


@compiled
def _is_eptp(eptp):
    """1 when VM entry would accept the EPTP."""
    memory_type = eptp & 7
    if memory_type != 0 and memory_type != 6:
        return 0
    return 1 if eptp & 0xFF8 & ~0x40 == 3 << 3 and is_physical(eptp) else 0


@compiled
def _invalidate(cpu, d, ept):
    """The operands of both; the memory operand is read even where its contents do not matter."""
    kind = gpr_read(cpu, d.dst, _register_size(cpu))
    if shr(kind, 2) or ept and (kind == 0 or kind == 3):
        return _fail(cpu, INVALIDATION_OPERAND)
    linear = linear_address(cpu, d, 16, 0)
    if cpu.fault:
        return cpu.fault
    low = load(cpu, linear, 8)
    if cpu.fault:
        return cpu.fault
    high = load(cpu, plus(cpu, linear, 8), 8)
    if cpu.fault:
        return cpu.fault
    if ept:
        if kind == 1 and not _is_eptp(low):
            return _fail(cpu, INVALIDATION_OPERAND)
        invept(cpu, kind, low)
    else:
        if shr(low, 16) or kind != 2 and low == 0 or kind == 0 and not is_canonical(high):
            return _fail(cpu, INVALIDATION_OPERAND)
        invvpid(cpu, kind, low, high)
    _succeed(cpu)
    return JUMP


# --- dispatch -----------------------------------------------------------------------------------------------


@unit(PROCESSOR, DECODED)
def group_vmx(cpu, d):
    """Execute a VMX instruction: VMCALL and the operation VMX_OTHER."""
    reason = X_VMCALL if d.op == VMCALL else d.immediate
    if reason == X_VMXON:
        return _vmxon(cpu, d)
    if reason == X_VMCALL and cpu.non_root:  # in every mode
        return _exit(cpu, d, reason)
    if cpu.vmx_on == 0 and cpu.non_root == 0 or _wrong_mode(cpu):
        return raise_fault(cpu, UD, 0)
    if cpu.non_root:
        return _exit(cpu, d, reason)
    if cpu.cpl != 0:
        return raise_fault(cpu, GP, 0)
    if reason == X_VMREAD:
        return _vmread(cpu, d)
    if reason == X_VMWRITE:
        return _vmwrite(cpu, d)
    if reason == X_VMLAUNCH:
        return _enter(cpu, 1)
    if reason == X_VMRESUME:
        return _enter(cpu, 0)
    if reason == X_VMPTRLD:
        return _vmptrld(cpu, d)
    if reason == X_VMPTRST:
        return _vmptrst(cpu, d)
    if reason == X_VMCLEAR:
        return _vmclear(cpu, d)
    if reason == X_VMXOFF:
        return _vmxoff(cpu)
    if reason == X_INVEPT:
        return _invalidate(cpu, d, 1)
    if reason == X_INVVPID:
        return _invalidate(cpu, d, 0)
    return _fail(cpu, VMCALL_IN_ROOT)  # VMCALL without dual-monitor treatment of SMIs

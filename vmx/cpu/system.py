"""System instructions: control and debug registers, MSRs, time, halting, TLB and cache management, CPUID.

Manual: the instructions' sections, "Control Registers", "Relative Priority of Faults and VM Exits" (#UD and
faults by privilege come first, then the VM exit, then everything else).
"""

from vmx.cpu.cpuid import cpuid, reports_vmx
from vmx.cpu.descriptor import exit_displacement, instruction_information, store_word, user_mode_prevented
from vmx.cpu.msr import read_msr, time_stamp_counter, write_msr
from vmx.cpu.operands import gpr_read, linear_address, plus, raise_fault, read_operand
from vmx.cpu.segmentation import canonical
from vmx.cpu.virtual8086 import has_virtual_flag
from vmx.cpu.vmx_instructions import group_vmx
from vmx.mmu.access import load
from vmx.mmu.ept import PHYSICAL_ADDRESS_BITS
from vmx.mmu.mode import load_pdptes, paging_changed, update_mode, update_privilege
from vmx.mmu.tlb import flush_context, invalidate_page, invpcid, select_context
from vmx.state.bits import MIN64, shr
from vmx.state.jit import compiled
from vmx.state.processor import (
    ACCESS_L,
    ACTIVITY_HLT,
    CR0_AM,
    CR0_CD,
    CR0_EM,
    CR0_ET,
    CR0_MP,
    CR0_NE,
    CR0_NW,
    CR0_PE,
    CR0_PG,
    CR0_TS,
    CR0_WP,
    CR4_DE,
    CR4_OSXSAVE,
    CR4_PAE,
    CR4_PCE,
    CR4_PCIDE,
    CR4_PGE,
    CR4_PSE,
    CR4_SMAP,
    CR4_SMEP,
    CR4_TSD,
    CR4_VMXE,
    CS,
    DB,
    DECODED,
    EFER_LMA,
    EFER_LME,
    FLAG_AC,
    FLAG_IF,
    FLAG_VIF,
    FLAG_VIP,
    GP,
    JUMP,
    OK,
    OPERAND_MEMORY,
    PROCESSOR,
    RAX,
    RCX,
    RDX,
    SHADOW_STI,
    STOP,
    UD,
    Stop,
)
from vmx.state.unit import unit
from vmx.virt import conditions
from vmx.virt.capability import CR0_FIXED0, CR4_FIXED1
from vmx.virt.controls import UNRESTRICTED_GUEST
from vmx.virt.exit import vm_exit
from vmx.virt.reasons import ExitReason

MASK32 = 0xFFFF_FFFF
TASK_PRIORITY = int(Stop.TASK_PRIORITY)
(
    X_CPUID, X_HLT, X_INVD, X_INVLPG, X_RDPMC, X_RDTSC, X_RDTSCP, X_CR, X_DR, X_RDMSR, X_WRMSR,
    X_MWAIT, X_MONITOR, X_PAUSE, X_WBINVD, X_XSETBV, X_INVPCID,
) = (
    int(reason) for reason in (
        ExitReason.CPUID, ExitReason.HLT, ExitReason.INVD, ExitReason.INVLPG, ExitReason.RDPMC,
        ExitReason.RDTSC, ExitReason.RDTSCP, ExitReason.CR_ACCESS, ExitReason.DR_ACCESS,
        ExitReason.RDMSR, ExitReason.WRMSR, ExitReason.MWAIT, ExitReason.MONITOR, ExitReason.PAUSE,
        ExitReason.WBINVD, ExitReason.XSETBV, ExitReason.INVPCID,
    )
)  # fmt: skip

CR0_WRITABLE = CR0_PE | CR0_MP | CR0_EM | CR0_TS | CR0_NE | CR0_WP | CR0_AM | CR0_NW | CR0_CD | CR0_PG
CR4_WRITABLE = CR4_FIXED1 & ~CR4_VMXE
CR4_TRANSLATION = CR4_PSE | CR4_PAE | CR4_PGE | CR4_PCIDE | CR4_SMEP
XCR0_SUPPORTED = 3  # x87 and SSE
DR6_ONES, DR6_WRITABLE, DR7_ONES, DR7_WRITABLE = 0xFFFF_0FF0, 0xE00F, 0x400, 0xFFFF_2BFF
DR7_GD, PENDING_BD = 1 << 13, 1 << 13


@compiled
def leave(cpu, d, reason, qualification):
    """A VM exit by the instruction: it is not completed."""
    cpu.exit_length = d.length
    return vm_exit(cpu, reason, qualification)


@compiled
def put_pair(cpu, value):
    """EDX:EAX."""
    cpu.gpr[RAX] = value & MASK32
    cpu.gpr[RDX] = shr(value, 32)


@compiled
def pair(cpu):
    """The value of EDX:EAX."""
    return cpu.gpr[RAX] & MASK32 | cpu.gpr[RDX] << 32


@compiled
def register_size(cpu):
    """Bytes of the general register of MOV CR and MOV DR: the operand size does not matter."""
    return 8 if cpu.code_mode == 2 else 4


# --- CR0, CR3, CR4, CR8 -------------------------------------------------------------------------------------


@compiled
def write_cr0(cpu, value):
    """Set CR0 after VM exits have been considered: checks, EFER.LMA, PDPTEs, TLB."""
    if shr(value, 32):
        return raise_fault(cpu, GP, 0)
    value = value & CR0_WRITABLE | CR0_ET
    old = cpu.cr0
    paging = value & CR0_PG
    if paging and value & CR0_PE == 0 or value & CR0_NW and value & CR0_CD == 0:
        return raise_fault(cpu, GP, 0)
    if cpu.vmx_on or cpu.non_root:
        fixed = CR0_FIXED0
        if cpu.non_root and cpu.secondary_controls & UNRESTRICTED_GUEST:
            fixed &= ~(CR0_PE | CR0_PG)
        if value & fixed != fixed:
            return raise_fault(cpu, GP, 0)
    efer = cpu.efer
    if paging and old & CR0_PG == 0 and efer & EFER_LME:
        if cpu.cr4 & CR4_PAE == 0 or cpu.segments[CS].access & ACCESS_L:
            return raise_fault(cpu, GP, 0)
        efer |= EFER_LMA
    if paging == 0 and old & CR0_PG:
        if cpu.cr4 & CR4_PCIDE or cpu.code_mode == 2:
            return raise_fault(cpu, GP, 0)
        efer &= ~EFER_LMA
    if paging and cpu.cr4 & CR4_PAE and efer & EFER_LMA == 0 and (value ^ old) & (CR0_PG | CR0_CD | CR0_NW):
        if load_pdptes(cpu, cpu.cr3):
            return cpu.fault
    cpu.cr0 = value
    cpu.efer = efer
    if (value ^ old) & CR0_PG:
        paging_changed(cpu)
    else:
        update_mode(cpu)
    return JUMP


@compiled
def write_cr3(cpu, value):
    """Set CR3: translations of the new PCID are dropped unless bit 63 keeps them."""
    keep = 0
    if cpu.cr4 & CR4_PCIDE:
        keep = value & MIN64
        value &= ~MIN64
    if cpu.long_mode:
        if shr(value, PHYSICAL_ADDRESS_BITS):
            return raise_fault(cpu, GP, 0)
    else:
        value &= MASK32
        if cpu.paging_mode == 2:
            if load_pdptes(cpu, value):
                return cpu.fault
    cpu.cr3 = value
    select_context(cpu)
    if keep == 0:
        flush_context(cpu, 1)
    return JUMP


@compiled
def write_cr4(cpu, value):
    """Set CR4 after VM exits have been considered."""
    old = cpu.cr4
    required = CR4_VMXE if cpu.vmx_on or cpu.non_root else 0
    writable = CR4_WRITABLE | required
    if value & CR4_VMXE and reports_vmx(cpu):
        writable |= CR4_VMXE
    if value & ~writable or value & required != required:
        return raise_fault(cpu, GP, 0)
    changed = value ^ old
    if cpu.long_mode and value & CR4_PAE == 0:
        return raise_fault(cpu, GP, 0)
    if changed & value & CR4_PCIDE and (cpu.long_mode == 0 or cpu.cr3 & 0xFFF):
        return raise_fault(cpu, GP, 0)
    legacy_pae = cpu.cr0 & CR0_PG and value & CR4_PAE and cpu.long_mode == 0
    if legacy_pae and changed & (CR4_PAE | CR4_PGE | CR4_PSE | CR4_SMEP):
        if load_pdptes(cpu, cpu.cr3):
            return cpu.fault
    cpu.cr4 = value
    if changed & CR4_TRANSLATION:
        paging_changed(cpu)
    else:
        update_mode(cpu)
    return JUMP


@compiled
def _write_cr8(cpu, value):
    """The task priority. A change stops once: the platform looks at its interrupt lines again."""
    if value & ~0xF:
        return raise_fault(cpu, GP, 0)
    if value == cpu.cr8:
        return JUMP
    cpu.cr8 = value
    cpu.stop = TASK_PRIORITY
    cpu.fault = STOP
    return STOP


@compiled
def _mov_to_cr(cpu, d):
    number = d.reg
    if number > 8 or number == 1 or number >= 5 and number < 8:
        return raise_fault(cpu, UD, 0)
    if cpu.cpl != 0:
        return raise_fault(cpu, GP, 0)
    value = gpr_read(cpu, d.src, register_size(cpu))
    exits = 0
    if number == 0:
        exits = conditions.mov_to_cr0(cpu, value)
    elif number == 3:
        exits = conditions.mov_to_cr3_exits(cpu, value)
    elif number == 4:
        exits = conditions.mov_to_cr4(cpu, value)
    elif number == 8:
        exits = conditions.cr8_load_exits(cpu)
    if exits:
        return leave(cpu, d, X_CR, conditions.cr_qualification(number, 0, d.src, 0, 0))
    if number == 0:
        return write_cr0(cpu, conditions.cr0_write_value(cpu, value))
    elif number == 2:
        cpu.cr2 = value
        return OK
    elif number == 3:
        return write_cr3(cpu, value)
    elif number == 4:
        return write_cr4(cpu, conditions.cr4_write_value(cpu, value))
    return _write_cr8(cpu, value)


@compiled
def _mov_from_cr(cpu, d):
    number = d.reg
    if number > 8 or number == 1 or number >= 5 and number < 8:
        return raise_fault(cpu, UD, 0)
    if cpu.cpl != 0:
        return raise_fault(cpu, GP, 0)
    value = cpu.cr8
    if number == 3 and conditions.mov_from_cr3_exits(cpu) or number == 8 and conditions.cr8_store_exits(cpu):
        return leave(cpu, d, X_CR, conditions.cr_qualification(number, 1, d.dst, 0, 0))
    if number == 0:
        value = conditions.cr0_read(cpu)
    elif number == 2:
        value = cpu.cr2
    elif number == 3:
        value = cpu.cr3
    elif number == 4:
        value = conditions.cr4_read(cpu)
    cpu.gpr[d.dst] = value if cpu.code_mode == 2 else value & MASK32
    return OK


@compiled
def _clts(cpu, d):
    if cpu.cpl != 0:
        return raise_fault(cpu, GP, 0)
    action = conditions.clts_action(cpu)
    if action == 1:
        return leave(cpu, d, X_CR, conditions.cr_qualification(0, 2, 0, 0, 0))
    if action == 0:
        cpu.cr0 &= ~CR0_TS
    return JUMP


@compiled
def _lmsw(cpu, d):
    """LMSW: MP, EM and TS; PE can be set but not cleared."""
    if cpu.cpl != 0:
        return raise_fault(cpu, GP, 0)
    value = read_operand(cpu, d, d.dst) & 0xFFFF
    if cpu.fault:
        return cpu.fault
    if conditions.lmsw_exits(cpu, value):
        in_memory = 1 if d.dst == OPERAND_MEMORY else 0
        if in_memory:
            cpu.exit_linear = linear_address(cpu, d, 2, 0)
        return leave(cpu, d, X_CR, conditions.cr_qualification(0, 3, 0, in_memory, value))
    wanted = cpu.cr0 & ~(CR0_MP | CR0_EM | CR0_TS) | value & 0xF
    return write_cr0(cpu, conditions.cr0_write_value(cpu, wanted))


# --- debug registers ----------------------------------------------------------------------------------------


@compiled
def _check_dr(cpu, d):
    """The number of the debug register (DR4 and DR5 are DR6 and DR7), or -1 with cpu.fault set."""
    number = d.reg
    if number > 7 or cpu.cr4 & CR4_DE and (number == 4 or number == 5):
        raise_fault(cpu, UD, 0)
        return -1
    if cpu.cpl != 0:
        raise_fault(cpu, GP, 0)
        return -1
    return number + 2 if number == 4 or number == 5 else number


@compiled
def _general_detect(cpu):
    """DR7.GD: #DB before the access."""
    if cpu.dr[7] & DR7_GD == 0:
        return OK
    cpu.pending_debug |= PENDING_BD
    return raise_fault(cpu, DB, 0)


@compiled
def _mov_from_dr(cpu, d):
    number = _check_dr(cpu, d)
    if number < 0:
        return cpu.fault
    if conditions.mov_dr_exits(cpu):
        return leave(cpu, d, X_DR, conditions.dr_qualification(d.reg, 1, d.dst))
    if _general_detect(cpu):
        return cpu.fault
    value = cpu.dr[number]
    if number == 6:
        value |= DR6_ONES
    elif number == 7:
        value |= DR7_ONES
    cpu.gpr[d.dst] = value if cpu.code_mode == 2 else value & MASK32
    return OK


@compiled
def _mov_to_dr(cpu, d):
    number = _check_dr(cpu, d)
    if number < 0:
        return cpu.fault
    if conditions.mov_dr_exits(cpu):
        return leave(cpu, d, X_DR, conditions.dr_qualification(d.reg, 0, d.src))
    if _general_detect(cpu):
        return cpu.fault
    value = gpr_read(cpu, d.src, register_size(cpu))
    if number >= 6 and shr(value, 32):
        return raise_fault(cpu, GP, 0)
    if number == 6:
        value = value & DR6_WRITABLE | DR6_ONES
    elif number == 7:
        value = value & DR7_WRITABLE | DR7_ONES
    cpu.dr[number] = value
    if number != 7:
        return OK
    update_privilege(cpu)
    cpu.attention = 1
    return JUMP


# --- MSRs and counters --------------------------------------------------------------------------------------


@compiled
def _rdmsr(cpu, d):
    if cpu.cpl != 0:
        return raise_fault(cpu, GP, 0)
    index = cpu.gpr[RCX] & MASK32
    if conditions.rdmsr_exits(cpu, index):
        return leave(cpu, d, X_RDMSR, 0)
    value = read_msr(cpu, index)
    if cpu.fault == 0:
        put_pair(cpu, value)
    return cpu.fault


@compiled
def _wrmsr(cpu, d):
    if cpu.cpl != 0:
        return raise_fault(cpu, GP, 0)
    index = cpu.gpr[RCX] & MASK32
    if conditions.wrmsr_exits(cpu, index):
        return leave(cpu, d, X_WRMSR, 0)
    status = write_msr(cpu, index, pair(cpu))
    return JUMP if status == OK else status


@compiled
def _rdtsc(cpu, d, with_aux):
    """RDTSC and RDTSCP."""
    if with_aux and not conditions.rdtscp_enabled(cpu):
        return raise_fault(cpu, UD, 0)
    if cpu.cr4 & CR4_TSD and cpu.cpl != 0:
        return raise_fault(cpu, GP, 0)
    if conditions.rdtsc_exits(cpu):
        return leave(cpu, d, X_RDTSCP if with_aux else X_RDTSC, 0)
    put_pair(cpu, time_stamp_counter(cpu))
    if with_aux:
        cpu.gpr[RCX] = cpu.tsc_aux & MASK32
    return OK


@compiled
def _rdpmc(cpu, d):
    """There are no performance counters: every index is #GP(0)."""
    if cpu.cr4 & CR4_PCE == 0 and cpu.cpl != 0:
        return raise_fault(cpu, GP, 0)
    if conditions.rdpmc_exits(cpu):
        return leave(cpu, d, X_RDPMC, 0)
    return raise_fault(cpu, GP, 0)


# --- translations, interrupt flag, halting ------------------------------------------------------------------


@compiled
def _invlpg(cpu, d):
    if cpu.cpl != 0:
        return raise_fault(cpu, GP, 0)
    linear = linear_address(cpu, d, 1, 0)
    if conditions.invlpg_exits(cpu):
        cpu.fault = 0
        return leave(cpu, d, X_INVLPG, linear)
    if cpu.fault:
        return cpu.fault
    if canonical(linear):
        invalidate_page(cpu, linear)
    return JUMP


@compiled
def _invpcid(cpu, d):
    if not conditions.invpcid_enabled(cpu):
        return raise_fault(cpu, UD, 0)
    if cpu.cpl != 0:
        return raise_fault(cpu, GP, 0)
    if conditions.invlpg_exits(cpu):
        cpu.exit_instruction_info = instruction_information(d, 0) | d.dst << 28
        return leave(cpu, d, X_INVPCID, exit_displacement(cpu, d))
    linear = linear_address(cpu, d, 16, 0)
    if cpu.fault:
        return cpu.fault
    pcid = load(cpu, linear, 8)
    if cpu.fault:
        return cpu.fault
    address = load(cpu, plus(cpu, linear, 8), 8)
    if cpu.fault:
        return cpu.fault
    kind = gpr_read(cpu, d.dst, register_size(cpu))
    bad = kind & ~3 != 0 or pcid & ~0xFFF != 0
    if kind < 2 and pcid != 0 and cpu.cr4 & CR4_PCIDE == 0:
        bad = True
    if bad or kind == 0 and not canonical(address):
        return raise_fault(cpu, GP, 0)
    invpcid(cpu, kind, pcid, address)
    return JUMP


@compiled
def _flag_privileged(cpu):
    """1 when CPL lets CLI and STI change IF (in virtual-8086 mode it is 3)."""
    return 1 if cpu.cr0 & CR0_PE == 0 or cpu.cpl <= shr(cpu.rflags, 12) & 3 else 0


@compiled
def _cli(cpu, d):
    if not _flag_privileged(cpu):
        if has_virtual_flag(cpu):
            cpu.rflags &= ~FLAG_VIF
            return OK
        return raise_fault(cpu, GP, 0)
    cpu.rflags &= ~FLAG_IF
    return JUMP


@compiled
def _sti(cpu, d):
    """Interrupts stay blocked for one more instruction."""
    if not _flag_privileged(cpu):
        if has_virtual_flag(cpu) and cpu.rflags & FLAG_VIP == 0:
            cpu.rflags |= FLAG_VIF
            return OK
        return raise_fault(cpu, GP, 0)
    if cpu.rflags & FLAG_IF == 0:
        cpu.rflags |= FLAG_IF
        cpu.shadow |= SHADOW_STI
    cpu.attention = 1
    return JUMP


@compiled
def _set_ac(cpu, value):
    """CLAC, STAC."""
    if cpu.cr4 & CR4_SMAP == 0 or cpu.cpl != 0:
        return raise_fault(cpu, UD, 0)
    cpu.rflags = cpu.rflags & ~FLAG_AC | value
    update_privilege(cpu)
    return JUMP


@compiled
def _hlt(cpu, d):
    if cpu.cpl != 0:
        return raise_fault(cpu, GP, 0)
    if conditions.hlt_exits(cpu):
        return leave(cpu, d, X_HLT, 0)
    cpu.activity = ACTIVITY_HLT
    cpu.attention = 1
    return JUMP


@compiled
def _monitor(cpu, d):
    """MONITOR: CPUID does not report it, yet hypervisors may intercept it. Nothing is armed."""
    if cpu.cpl != 0:
        return raise_fault(cpu, UD, 0)
    if conditions.monitor_exits(cpu):
        return leave(cpu, d, X_MONITOR, 0)
    if cpu.gpr[RCX] & MASK32:
        return raise_fault(cpu, GP, 0)
    return OK


@compiled
def _mwait(cpu, d):
    """MWAIT: nothing is ever armed, so it does not wait."""
    if cpu.cpl != 0:
        return raise_fault(cpu, UD, 0)
    if conditions.mwait_exits(cpu):
        return leave(cpu, d, X_MWAIT, 0)
    if cpu.gpr[RCX] & MASK32 & ~1:
        return raise_fault(cpu, GP, 0)
    return OK


@compiled
def _cache(cpu, d, reason, exits):
    """INVD, WBINVD: there are no caches."""
    if cpu.cpl != 0:
        return raise_fault(cpu, GP, 0)
    if exits:
        return leave(cpu, d, reason, 0)
    return OK


# --- extended control register ------------------------------------------------------------------------------


@compiled
def _xsetbv(cpu, d):
    if cpu.cr4 & CR4_OSXSAVE == 0:
        return raise_fault(cpu, UD, 0)
    if cpu.cpl != 0:
        return raise_fault(cpu, GP, 0)
    if cpu.non_root:
        return leave(cpu, d, X_XSETBV, 0)
    value = pair(cpu)
    if cpu.gpr[RCX] & MASK32 or value & 1 == 0 or value & ~XCR0_SUPPORTED:
        return raise_fault(cpu, GP, 0)
    cpu.xcr0 = value
    return JUMP


@compiled
def _xgetbv(cpu, d):
    if cpu.cr4 & CR4_OSXSAVE == 0:
        return raise_fault(cpu, UD, 0)
    if cpu.gpr[RCX] & MASK32:
        return raise_fault(cpu, GP, 0)
    put_pair(cpu, cpu.xcr0)
    return OK


@unit(PROCESSOR, DECODED)
def group_registers(cpu, d):
    """Control and debug registers: positions 0 to 6 of the SYSTEM group."""
    op = d.op & 31
    if op == 0:
        return _mov_from_cr(cpu, d)
    elif op == 1:
        return _mov_to_cr(cpu, d)
    elif op == 2:
        return _mov_from_dr(cpu, d)
    elif op == 3:
        return _mov_to_dr(cpu, d)
    elif op == 4:
        return _clts(cpu, d)
    elif op == 5:
        return _lmsw(cpu, d)
    if user_mode_prevented(cpu):
        return raise_fault(cpu, GP, 0)
    return store_word(cpu, d, conditions.cr0_read(cpu))


@unit(PROCESSOR, DECODED)
def group_system(cpu, d):
    """Execute an instruction of the SYSTEM group."""
    op = d.op & 31
    if op < 7:
        return group_registers(cpu, d)
    elif op == 7:
        return _rdmsr(cpu, d)
    elif op == 8:
        return _wrmsr(cpu, d)
    elif op == 9:
        return _rdtsc(cpu, d, 0)
    elif op == 10:
        return _rdtsc(cpu, d, 1)
    elif op == 11:
        return _rdpmc(cpu, d)
    elif op == 12:
        if cpu.non_root:
            return leave(cpu, d, X_CPUID, 0)
        return cpuid(cpu)
    elif op == 13:
        return _hlt(cpu, d)
    elif op == 14:
        return _invlpg(cpu, d)
    elif op == 15:
        return _invpcid(cpu, d)
    elif op == 16:
        return _cache(cpu, d, X_INVD, cpu.non_root)
    elif op == 17:
        return _cache(cpu, d, X_WBINVD, conditions.wbinvd_exits(cpu))
    elif op == 18:
        return _cli(cpu, d)
    elif op == 19:
        return _sti(cpu, d)
    elif op == 20:
        return _set_ac(cpu, 0)
    elif op == 21:
        return _set_ac(cpu, FLAG_AC)
    elif op == 22:
        return _monitor(cpu, d)
    elif op == 23:
        return _mwait(cpu, d)
    elif op == 24:
        if conditions.pause_exits(cpu):
            return leave(cpu, d, X_PAUSE, 0)
        return OK
    elif op == 25:
        return _xsetbv(cpu, d)
    elif op == 26:
        return _xgetbv(cpu, d)
    elif op == 27 or op == 28:
        return group_vmx(cpu, d)
    return raise_fault(cpu, UD, 0)  # RSM outside system-management mode

"""Descriptor tables and questions about descriptors: LGDT ... STR, LAR, LSL, VERR, VERW, ARPL.

Manual: the instructions' sections; "Memory-Management Registers"; VM exits by "descriptor-table exiting".
"""

from vmx.cpu.operands import (
    gpr_read,
    gpr_write,
    linear_address,
    plus,
    raise_fault,
    read_for_update,
    read_operand,
    write_memory,
    write_operand,
)
from vmx.cpu.segmentation import (
    CALL_GATE,
    CALL_GATE_16,
    LDT,
    TASK_GATE,
    TSS_16_AVAILABLE,
    TSS_16_BUSY,
    TSS_AVAILABLE,
    TSS_BUSY,
    TYPE_CODE,
    TYPE_CONFORMING,
    TYPE_READABLE,
    TYPE_WRITABLE,
    base_of,
    canonical,
    descriptor_address,
    dpl_of,
    limit_of,
    real_addressing,
    rights_of,
    set_descriptor_type,
    table_holds,
)
from vmx.mmu.access import load, load_system, store
from vmx.state.bits import shr
from vmx.state.flags import set_status_flags, status_flags
from vmx.state.jit import compiled
from vmx.state.processor import (
    ACCESS_P,
    ACCESS_S,
    ACCESS_UNUSABLE,
    CR0_PE,
    CR4_UMIP,
    DECODED,
    DS,
    FLAG_ZF,
    FLAT,
    GP,
    JUMP,
    LDTR,
    NO_REGISTER,
    NP,
    OK,
    OPERAND_MEMORY,
    PROCESSOR,
    RIP_REGISTER,
    TR,
    UD,
)
from vmx.state.unit import unit
from vmx.virt.conditions import descriptor_table_exiting
from vmx.virt.exit import vm_exit
from vmx.virt.reasons import ExitReason

GDTR_IDTR_ACCESS, LDTR_TR_ACCESS = int(ExitReason.GDTR_IDTR_ACCESS), int(ExitReason.LDTR_TR_ACCESS)
MASK24, MASK32 = 0xFF_FFFF, 0xFFFF_FFFF


# --- VM exits -----------------------------------------------------------------------------------------------


@compiled
def instruction_information(d, identity):
    """ "VM-Exit Instruction-Information Field" of these instructions; `identity` is bits 29:28."""
    info = d.scale | (0 if d.address_size == 2 else 1 if d.address_size == 4 else 2) << 7
    info |= (0 if d.size == 2 else 1) << 11 | identity << 28
    info |= (DS if d.segment == FLAT else d.segment) << 15
    if d.dst != OPERAND_MEMORY and d.modrm >= 0xC0:
        return info | 1 << 10 | d.dst << 3
    info |= 1 << 22 if d.index == NO_REGISTER else d.index << 18
    if d.base == NO_REGISTER or d.base == RIP_REGISTER:
        return info | 1 << 27
    return info | d.base << 23


@compiled
def exit_displacement(cpu, d):
    """The exit qualification: the displacement of the memory operand, RIP-relative ones with RIP added."""
    if d.base == RIP_REGISTER:
        return d.displacement + cpu.next_rip
    return d.displacement


@compiled
def _table_exit(cpu, d, reason, identity):
    cpu.exit_length = d.length
    cpu.exit_instruction_info = instruction_information(d, identity)
    return vm_exit(cpu, reason, exit_displacement(cpu, d))


# --- table registers ----------------------------------------------------------------------------------------


@compiled
def _load_table(cpu, d, is_idt):
    """LGDT, LIDT: a 16-bit limit, then a base of 24, 32 or 64 bits."""
    wide = cpu.code_mode == 2
    linear = linear_address(cpu, d, 10 if wide else 6, 0)
    if cpu.fault:
        return cpu.fault
    limit = load(cpu, linear, 2)
    if cpu.fault:
        return cpu.fault
    base = load(cpu, plus(cpu, linear, 2), 8 if wide else 4)
    if cpu.fault:
        return cpu.fault
    if wide and not canonical(base):
        return raise_fault(cpu, GP, 0)
    if not wide and d.size == 2:
        base &= MASK24
    if is_idt:
        cpu.idtr_base = base
        cpu.idtr_limit = limit
    else:
        cpu.gdtr_base = base
        cpu.gdtr_limit = limit
    return JUMP


@compiled
def _store_table(cpu, d, base, limit):
    """SGDT, SIDT."""
    wide = cpu.code_mode == 2
    linear = linear_address(cpu, d, 10 if wide else 6, 1)
    if cpu.fault:
        return cpu.fault
    store(cpu, linear, 2, limit)
    if cpu.fault:
        return cpu.fault
    store(cpu, plus(cpu, linear, 2), 8 if wide else 4, base)
    return cpu.fault


@compiled
def _put_system_segment(cpu, register, selector, raw, high):
    segment = cpu.segments[register]
    segment.selector = selector
    segment.base = base_of(raw) | high << 32
    segment.limit = limit_of(raw)
    segment.access = rights_of(raw)


@compiled
def _system_descriptor_high(cpu, selector):
    """Bits 63:32 of a system segment's base in IA-32e mode; 0 otherwise."""
    if not cpu.long_mode:
        return 0
    if not table_holds(cpu, selector, 16):
        raise_fault(cpu, GP, selector & 0xFFFC)
        return 0
    high = load_system(cpu, descriptor_address(cpu, selector) + 8, 8)
    if cpu.fault == 0 and (shr(high, 40) & 0x1F or not canonical(high << 32)):
        raise_fault(cpu, GP, selector & 0xFFFC)
    return high & MASK32


@compiled
def _load_system_segment(cpu, d, is_task):
    """LLDT, LTR."""
    selector = read_operand(cpu, d, d.dst) & 0xFFFF
    if cpu.fault:
        return cpu.fault
    if selector & 0xFFFC == 0:
        if is_task:
            return raise_fault(cpu, GP, 0)
        segment = cpu.segments[LDTR]
        segment.selector = selector
        segment.access = ACCESS_UNUSABLE
        return OK
    if selector & 4 or not table_holds(cpu, selector, 8):
        return raise_fault(cpu, GP, selector & 0xFFFC)
    raw = load_system(cpu, descriptor_address(cpu, selector), 8)
    if cpu.fault:
        return cpu.fault
    access = rights_of(raw)
    kind = access & 0x1F
    if is_task:
        good = kind == TSS_AVAILABLE or kind == TSS_16_AVAILABLE and cpu.long_mode == 0
    else:
        good = kind == LDT
    if not good:
        return raise_fault(cpu, GP, selector & 0xFFFC)
    if not access & ACCESS_P:
        return raise_fault(cpu, NP, selector & 0xFFFC)
    high = _system_descriptor_high(cpu, selector)
    if cpu.fault:
        return cpu.fault
    if not is_task:
        _put_system_segment(cpu, LDTR, selector, raw, high)
        return OK
    if set_descriptor_type(cpu, selector, 2):
        return cpu.fault
    _put_system_segment(cpu, TR, selector, raw, high)
    cpu.segments[TR].access = access | 2  # busy
    return OK


@compiled
def user_mode_prevented(cpu):
    """1 when CR4.UMIP keeps SGDT, SIDT, SLDT, SMSW and STR from code outside privilege level 0."""
    return 1 if cpu.cr4 & CR4_UMIP and cpu.cpl != 0 else 0


@compiled
def store_word(cpu, d, value):
    """SLDT, STR, SMSW: 16 bits in memory; a register takes the operand size."""
    if d.dst == OPERAND_MEMORY:
        write_memory(cpu, d, 2, value)
        return cpu.fault
    gpr_write(cpu, d.dst, d.size, value)
    return OK


# --- questions ----------------------------------------------------------------------------------------------


@compiled
def _answer(cpu, yes):
    """Set ZF and nothing else."""
    flags = status_flags(cpu)
    set_status_flags(cpu, flags | FLAG_ZF if yes else flags & ~FLAG_ZF)
    return OK


@compiled
def _selector_operand(cpu, d, code):
    """A 16-bit selector in a register or in memory, whatever the operand size."""
    if code != OPERAND_MEMORY:
        return gpr_read(cpu, code, 2)
    linear = linear_address(cpu, d, 2, 0)
    if cpu.fault:
        return 0
    return load(cpu, linear, 2)


@compiled
def _visible(cpu, selector, access):
    """1 when DPL lets CPL and RPL see a descriptor; conforming code is visible to all."""
    if access & ACCESS_S and access & (TYPE_CODE | TYPE_CONFORMING) == (TYPE_CODE | TYPE_CONFORMING):
        return 1
    dpl = dpl_of(access)
    return 0 if cpu.cpl > dpl or selector & 3 > dpl else 1


@compiled
def _has_limit(cpu, kind):
    """System descriptors that LSL answers for; LAR's list contains gates too."""
    if kind == LDT or kind == TSS_AVAILABLE or kind == TSS_BUSY:
        return 1
    return 1 if cpu.long_mode == 0 and (kind == TSS_16_AVAILABLE or kind == TSS_16_BUSY) else 0


@compiled
def _has_rights(cpu, kind):
    if _has_limit(cpu, kind) or kind == CALL_GATE:
        return 1
    return 1 if cpu.long_mode == 0 and (kind == CALL_GATE_16 or kind == TASK_GATE) else 0


@compiled
def _load_about(cpu, d, wants_limit):
    """LAR, LSL."""
    selector = _selector_operand(cpu, d, d.src)
    if cpu.fault:
        return cpu.fault
    if selector & 0xFFFC == 0 or not table_holds(cpu, selector, 8):
        return _answer(cpu, 0)
    raw = load_system(cpu, descriptor_address(cpu, selector), 8)
    if cpu.fault:
        return cpu.fault
    access = rights_of(raw)
    if not access & ACCESS_S:
        known = _has_limit(cpu, access & 0xF) if wants_limit else _has_rights(cpu, access & 0xF)
        if not known:
            return _answer(cpu, 0)
    if not _visible(cpu, selector, access):
        return _answer(cpu, 0)
    value = limit_of(raw) if wants_limit else shr(raw, 32) & 0xF0_FF00
    gpr_write(cpu, d.dst, d.size, value)
    return _answer(cpu, 1)


@compiled
def _verify(cpu, d, writing):
    """VERR, VERW."""
    selector = _selector_operand(cpu, d, d.dst)
    if cpu.fault:
        return cpu.fault
    if selector & 0xFFFC == 0 or not table_holds(cpu, selector, 8):
        return _answer(cpu, 0)
    raw = load_system(cpu, descriptor_address(cpu, selector), 8)
    if cpu.fault:
        return cpu.fault
    access = rights_of(raw)
    if not access & ACCESS_S or not _visible(cpu, selector, access):
        return _answer(cpu, 0)
    if writing:
        return _answer(cpu, access & (TYPE_CODE | TYPE_WRITABLE) == TYPE_WRITABLE)
    return _answer(cpu, access & (TYPE_CODE | TYPE_READABLE) != TYPE_CODE)


@compiled
def _arpl(cpu, d):
    """ARPL: raise the RPL of the destination to that of the source."""
    old = read_for_update(cpu, d, d.dst)
    if cpu.fault:
        return cpu.fault
    wanted = gpr_read(cpu, d.src, 2) & 3
    if old & 3 >= wanted:
        return _answer(cpu, 0)
    write_operand(cpu, d, d.dst, old & 0xFFFC | wanted)
    if cpu.fault:
        return cpu.fault
    return _answer(cpu, 1)


@unit(PROCESSOR, DECODED)
def group_descriptor(cpu, d):
    """Execute an instruction of the DESCRIPTOR group."""
    op = d.op & 31
    protected = cpu.cr0 & CR0_PE
    if op >= 4 and real_addressing(cpu):
        return raise_fault(cpu, UD, 0)
    if (op < 2 or op == 4 or op == 5) and protected and cpu.cpl != 0:
        return raise_fault(cpu, GP, 0)
    if (op == 2 or op == 3 or op == 6 or op == 7) and user_mode_prevented(cpu):
        return raise_fault(cpu, GP, 0)
    if op < 8 and descriptor_table_exiting(cpu):
        if op < 4:  # identities: SGDT SIDT LGDT LIDT
            return _table_exit(cpu, d, GDTR_IDTR_ACCESS, op ^ 2)
        return _table_exit(cpu, d, LDTR_TR_ACCESS, op - 2 if op < 6 else op - 6)  # SLDT STR LLDT LTR
    if op == 0:
        return _load_table(cpu, d, 0)
    elif op == 1:
        return _load_table(cpu, d, 1)
    elif op == 2:
        return _store_table(cpu, d, cpu.gdtr_base, cpu.gdtr_limit)
    elif op == 3:
        return _store_table(cpu, d, cpu.idtr_base, cpu.idtr_limit)
    elif op == 4:
        return _load_system_segment(cpu, d, 0)
    elif op == 5:
        return _load_system_segment(cpu, d, 1)
    elif op == 6:
        return store_word(cpu, d, cpu.segments[LDTR].selector)
    elif op == 7:
        return store_word(cpu, d, cpu.segments[TR].selector)
    elif op == 8:
        return _load_about(cpu, d, 0)
    elif op == 9:
        return _load_about(cpu, d, 1)
    elif op == 10:
        return _verify(cpu, d, 0)
    elif op == 11:
        return _verify(cpu, d, 1)
    return _arpl(cpu, d)

"""Hardware task switching: JMP, CALL, IRET with NT set, and events through a task gate.

Manual: chapter "Task Management": "Task-State Segment", "Task Switching" (whose steps are followed here), "Task
Linking"; for VMX non-root operation "Treatment of Task Switches". A fault before the new task's state is loaded
belongs to the old task, which has not changed; after that it belongs to the new one.
"""

from vmx.cpu.operands import push, raise_fault
from vmx.cpu.segmentation import (
    LDT,
    TSS_16_AVAILABLE,
    TSS_16_BUSY,
    TSS_AVAILABLE,
    TSS_BUSY,
    TYPE_CODE,
    TYPE_CONFORMING,
    TYPE_READABLE,
    base_of,
    check_stack_segment,
    dpl_of,
    is_code,
    limit_of,
    mark_accessed,
    put_null,
    put_segment,
    read_descriptor,
    rights_of,
    set_descriptor_type,
    table_holds,
)
from vmx.cpu.virtual8086 import put_virtual_segment
from vmx.mmu.access import load_system, store_system
from vmx.mmu.mode import load_pdptes, update_mode
from vmx.mmu.tlb import flush_context, select_context
from vmx.mmu.translate import IMPLICIT, READ, WRITE, translate
from vmx.state.bits import ult
from vmx.state.flags import get_rflags, set_rflags
from vmx.state.jit import compiled
from vmx.state.processor import (
    ACCESS_P,
    ACCESS_S,
    ACCESS_UNUSABLE,
    CR0_PG,
    CR0_TS,
    CS,
    FAULT,
    FLAG_NT,
    FLAG_VM,
    GP,
    JUMP,
    LDTR,
    NP,
    OK,
    PROCESSOR,
    SHADOW_NMI,
    SS,
    TR,
    TS,
)
from vmx.state.unit import unit
from vmx.virt.exit import vm_exit
from vmx.virt.reasons import ExitReason

FROM_CALL, FROM_IRET, FROM_JUMP, FROM_GATE = range(4)  # sources, as in the exit qualification
TASK_SWITCH = int(ExitReason.TASK_SWITCH)

MASK32 = 0xFFFF_FFFF
BUSY = 2  # in the type field
LIMIT_32, LIMIT_16 = 0x67, 0x2B  # least limits of a TSS
SEGMENT_REGISTERS = 6  # in a TSS; the 16-bit one has no FS and GS
CR3_AT, TRAP_AT = 28, 100  # of a 32-bit TSS
PENDING_BT = 1 << 15  # DR6: debug trap of a task switch
DR7_LOCAL = 0x155  # L0 to L3, LE
EFLAGS_LOADED = 0x3F_7FD5


# --- the fields of both formats -----------------------------------------------------------------------------


@compiled
def _instruction_pointer_at(wide):
    """EIP or IP; the flags follow, then the general registers."""
    return 32 if wide else 14


@compiled
def _selectors_at(wide):
    """ES CS SS DS (FS GS), then the LDT's selector."""
    return 72 if wide else 34


@compiled
def _word(cpu, base, offset, size):
    """A field of a TSS that is known to be present."""
    return load_system(cpu, (base + offset) & MASK32, size)


@compiled
def _put_word(cpu, base, offset, size, value):
    store_system(cpu, (base + offset) & MASK32, size, value)


# --- before anything changes --------------------------------------------------------------------------------


@compiled
def _new_tss(cpu, selector, source, external):
    """The checked descriptor of the TSS to switch to; else cpu.fault is set."""
    vector = TS if source == FROM_IRET else GP
    error = selector & 0xFFFC | external
    if selector & 4 or not table_holds(cpu, selector, 8):
        raise_fault(cpu, vector, error)
        return 0
    raw = read_descriptor(cpu, selector, vector, external)
    if cpu.fault:
        return 0
    kind = rights_of(raw) & 0x1F
    if source == FROM_IRET:
        good = kind == TSS_BUSY or kind == TSS_16_BUSY
    else:
        good = kind == TSS_AVAILABLE or kind == TSS_16_AVAILABLE
    if not good:
        raise_fault(cpu, vector, error)
    elif not rights_of(raw) & ACCESS_P:
        raise_fault(cpu, NP, error)
    elif limit_of(raw) < (LIMIT_32 if kind & 8 else LIMIT_16):
        raise_fault(cpu, TS, error)
    return raw


@compiled
def _present(cpu, linear, size, access):
    """OK when `size` bytes can be accessed, else the status of the page fault."""
    if translate(cpu, linear & MASK32, access | IMPLICIT):
        return cpu.fault
    translate(cpu, (linear + size - 1) & MASK32, access | IMPLICIT)
    return cpu.fault


@compiled
def _prepare(cpu, selector, base, wide):
    """Both TSSs and both descriptors must be in memory before anything is saved."""
    tr = cpu.segments[TR]
    old_wide = tr.access & 8
    at = _instruction_pointer_at(old_wide)
    size = _selectors_at(old_wide) + (24 if old_wide else 8) - at
    if _present(cpu, tr.base + at, size, WRITE):
        return cpu.fault
    if _present(cpu, base, LIMIT_32 + 1 if wide else LIMIT_16 + 1, READ) or _present(cpu, base, 2, WRITE):
        return cpu.fault
    if _present(cpu, cpu.gdtr_base + (tr.selector & 0xFFF8) + 5, 1, WRITE):
        return cpu.fault
    if _present(cpu, cpu.gdtr_base + (selector & 0xFFF8) + 5, 1, WRITE):
        return cpu.fault
    if wide and cpu.paging_mode == 2:
        load_pdptes(cpu, _word(cpu, base, CR3_AT, 4))
    return cpu.fault


# --- the old task -------------------------------------------------------------------------------------------


@compiled
def _save(cpu, flags, back):
    """The state of the old task, into its TSS."""
    tr = cpu.segments[TR]
    wide = tr.access & 8
    width = 4 if wide else 2
    at = _instruction_pointer_at(wide)
    _put_word(cpu, tr.base, at, width, back)
    _put_word(cpu, tr.base, at + width, width, flags)
    for i in range(8):
        _put_word(cpu, tr.base, at + (2 + i) * width, width, cpu.gpr[i])
    for i in range(SEGMENT_REGISTERS if wide else 4):
        _put_word(cpu, tr.base, _selectors_at(wide) + i * width, 2, cpu.segments[i].selector)


@compiled
def _clear_busy(cpu, selector):
    at = cpu.gdtr_base + (selector & 0xFFF8) + 5
    store_system(cpu, at & MASK32, 1, load_system(cpu, at & MASK32, 1) & ~BUSY)


# --- the new task -------------------------------------------------------------------------------------------


@compiled
def _load_ldt(cpu, selector, external):
    segment = cpu.segments[LDTR]
    segment.selector = selector
    segment.access = ACCESS_UNUSABLE
    if selector & 0xFFFC == 0:
        return OK
    error = selector & 0xFFFC | external
    if selector & 4:
        return raise_fault(cpu, TS, error)
    raw = read_descriptor(cpu, selector, TS, external)
    if cpu.fault:
        return cpu.fault
    access = rights_of(raw)
    if access & 0x1F != LDT or not access & ACCESS_P:
        return raise_fault(cpu, TS, error)
    segment.base = base_of(raw)
    segment.limit = limit_of(raw)
    segment.access = access
    return OK


@compiled
def _check_code(cpu, selector, access, error):
    """CS: its RPL is the new privilege level."""
    bad = not is_code(access)
    if access & TYPE_CONFORMING:
        bad = bad or dpl_of(access) > selector & 3
    else:
        bad = bad or dpl_of(access) != selector & 3
    if bad:
        return raise_fault(cpu, TS, error)
    if not access & ACCESS_P:
        return raise_fault(cpu, NP, error)
    return OK


@compiled
def _check_data(cpu, selector, access, error, cpl):
    """DS, ES, FS, GS: readable, and visible unless conforming."""
    if not access & ACCESS_S or access & (TYPE_CODE | TYPE_READABLE) == TYPE_CODE:
        return raise_fault(cpu, TS, error)
    if access & (TYPE_CODE | TYPE_CONFORMING) != (TYPE_CODE | TYPE_CONFORMING):
        if dpl_of(access) < cpl or dpl_of(access) < selector & 3:
            return raise_fault(cpu, TS, error)
    if not access & ACCESS_P:
        return raise_fault(cpu, NP, error)
    return OK


@compiled
def _load_checked(cpu, register, external, cpl):
    """Load a segment register, whose selector is in place, from its descriptor."""
    selector = cpu.segments[register].selector
    error = selector & 0xFFFC | external
    if selector & 0xFFFC == 0:
        return raise_fault(cpu, TS, error) if register == CS or register == SS else OK
    raw = read_descriptor(cpu, selector, TS, external)
    if cpu.fault:
        return cpu.fault
    access = rights_of(raw)
    if register == CS:
        _check_code(cpu, selector, access, error)
    elif register == SS:
        check_stack_segment(cpu, selector, access, cpl, TS, external)
    else:
        _check_data(cpu, selector, access, error, cpl)
    if cpu.fault or mark_accessed(cpu, selector, raw):
        return cpu.fault
    put_segment(cpu, register, selector, raw)
    return OK


@compiled
def _load_segments(cpu, external):
    """The descriptors behind the new task's selectors, in protected mode. Faults are the new task's."""
    cpl = cpu.cpl
    if _load_checked(cpu, CS, external, cpl) or _load_checked(cpu, SS, external, cpl):
        return cpu.fault
    for register in range(SEGMENT_REGISTERS):
        if register != CS and register != SS:
            if _load_checked(cpu, register, external, cpl):
                return cpu.fault
    update_mode(cpu)
    if ult(cpu.segments[CS].limit, cpu.rip):
        return raise_fault(cpu, GP, external)
    return OK


@compiled
def _load(cpu, base, wide, nested, external):
    """The state in the new TSS; afterwards faults are the new task's."""
    width = 4 if wide else 2
    at = _instruction_pointer_at(wide)
    cpu.rip = _word(cpu, base, at, width)
    cpu.next_rip = cpu.rip
    flags = _word(cpu, base, at + width, width) & EFLAGS_LOADED | 2
    set_rflags(cpu, flags | FLAG_NT if nested else flags)
    for i in range(8):
        value = _word(cpu, base, at + (2 + i) * width, width)
        cpu.gpr[i] = value if wide else 0xFFFF_0000 | value
    virtual = flags & FLAG_VM
    cpl = _word(cpu, base, _selectors_at(wide) + CS * width, 2) & 3
    for i in range(SEGMENT_REGISTERS):
        selector = _word(cpu, base, _selectors_at(wide) + i * width, 2) if wide or i < 4 else 0
        if virtual:
            put_virtual_segment(cpu, i, selector)
        else:
            put_null(cpu, i, selector, cpl)
    ldt = _word(cpu, base, _selectors_at(wide) + (24 if wide else 8), 2)
    trap = _word(cpu, base, TRAP_AT, 2) & 1 if wide else 0
    if wide and cpu.cr0 & CR0_PG:
        cpu.cr3 = _word(cpu, base, CR3_AT, 4)
        select_context(cpu)
        flush_context(cpu, 1)
    cpu.cr0 |= CR0_TS
    cpu.dr[7] = cpu.dr[7] & ~DR7_LOCAL
    update_mode(cpu)

    if _load_ldt(cpu, ldt, external):
        return cpu.fault
    if not virtual and _load_segments(cpu, external):
        return cpu.fault
    if virtual and ult(0xFFFF, cpu.rip):
        return raise_fault(cpu, GP, external)
    if trap:
        cpu.pending_debug |= PENDING_BT
    return OK


@unit(PROCESSOR, "i64", "i64", "i64", "i64", "i64")
def switch_task(cpu, selector, source, external, flags, back):
    """Switch to the task of a TSS; `flags` and `back` are the old task's EFLAGS and EIP, `external` is EXT.

    Gates and the privilege to use them have been checked. Returns OK with cpu.rip and cpu.next_rip in the new
    task, or a status: EXIT in non-root operation.
    """
    raw = _new_tss(cpu, selector, source, external)
    if cpu.fault:
        return cpu.fault
    if cpu.non_root:
        return vm_exit(cpu, TASK_SWITCH, selector | source << 30)
    wide = rights_of(raw) & 8
    base = base_of(raw)
    if _prepare(cpu, selector, base, wide):
        return cpu.fault
    tr = cpu.segments[TR]
    nested = source == FROM_CALL or source == FROM_GATE
    _save(cpu, flags & ~FLAG_NT if source == FROM_IRET else flags, back)
    if nested:
        _put_word(cpu, base, 0, 2, tr.selector)
    else:
        _clear_busy(cpu, tr.selector)
    if source != FROM_IRET:
        set_descriptor_type(cpu, selector, BUSY)
    tr.selector = selector
    tr.base = base
    tr.limit = limit_of(raw)
    tr.access = rights_of(raw) | BUSY
    cpu.shadow &= SHADOW_NMI
    cpu.step_trap = 0
    cpu.attention = 1
    return _load(cpu, base, wide, nested, external)


@unit(PROCESSOR, "i64", "i64")
def push_task_error(cpu, error, external):
    """The error code of an exception that a task gate took to a new task: on that task's stack."""
    if push(cpu, 4 if cpu.segments[TR].access & 8 else 2, error) == FAULT:
        cpu.fault_error |= external
    return cpu.fault


@compiled
def switch_by_instruction(cpu, d, selector, source):
    """The task switch of JMP, CALL and IRET. Returns JUMP or a status."""
    cpu.exit_length = d.length
    status = switch_task(cpu, selector, source, 0, get_rflags(cpu), cpu.next_rip)
    return JUMP if status == OK else status

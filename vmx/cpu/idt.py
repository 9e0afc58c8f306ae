"""The way through the interrupt descriptor table: one attempt to deliver one event.

Manual: "Exception- or Interrupt-Handler Procedures" (real-address mode: "Interrupt and Exception Handling" in
the 8086 chapter; 64-bit mode: "64-Bit Mode Stack Frame", "Interrupt Stack Table"). An attempt that meets a
fault returns its status and has changed nothing but memory below the stack pointer and accessed bits.
"""

from vmx.cpu.operands import raise_fault, set_stack_pointer, stack_mask
from vmx.cpu.segmentation import (
    INTERRUPT_GATE,
    INTERRUPT_GATE_16,
    TASK_GATE,
    TRAP_GATE,
    TRAP_GATE_16,
    TSS_16_BUSY,
    TYPE_CONFORMING,
    base_of,
    canonical,
    check_stack_segment,
    code_offset_fits,
    dpl_of,
    is_code,
    limit_of,
    mark_accessed,
    put_code_segment,
    put_null,
    put_segment,
    read_descriptor,
    rights_of,
    stack_holds,
)
from vmx.cpu.tasks import FROM_GATE, push_task_error, switch_task
from vmx.mmu.access import load_system, store, store_system
from vmx.mmu.mode import update_mode
from vmx.mmu.tlb import BANK_BYTES, ENTRIES, SUPERVISOR, TLB_ENTRY
from vmx.state.bits import shr
from vmx.state.flags import get_rflags
from vmx.state.jit import compiled
from vmx.state.memory import store64
from vmx.state.processor import (
    ACCESS_DB,
    ACCESS_L,
    ACCESS_P,
    CR0_PE,
    CS,
    DB,
    DF,
    DS,
    ES,
    FLAG_AC,
    FLAG_IF,
    FLAG_NT,
    FLAG_RF,
    FLAG_TF,
    FLAG_VM,
    FS,
    GP,
    GS,
    MC,
    NP,
    OK,
    PROCESSOR,
    RSP,
    SHADOW_NMI,
    SS,
    SS_FAULT,
    TR,
    TS,
)
from vmx.state.unit import unit

# interruption types ("Format of the VM-Exit Interruption-Information Field")
EXTERNAL, NMI_TYPE, HARDWARE_EXCEPTION = 0, 2, 3
SOFTWARE_INTERRUPT, PRIVILEGED_EXCEPTION, SOFTWARE_EXCEPTION = 4, 5, 6

TLB_ENTRY_SIZE = TLB_ENTRY.size


@compiled
def external_bit(kind):
    """EXT of an error code: 0 only for INT n, INT3 and INTO."""
    return 0 if kind == SOFTWARE_INTERRUPT or kind == SOFTWARE_EXCEPTION else 1


@compiled
def return_address(cpu, kind):
    """RIP to save: software events return behind their instruction."""
    return cpu.next_rip if kind >= SOFTWARE_INTERRUPT else cpu.rip


@compiled
def saved_flags(cpu, vector, kind):
    """RFLAGS to save: RF is set for faults, so that an instruction breakpoint does not hit again."""
    flags = get_rflags(cpu)
    if kind == HARDWARE_EXCEPTION and vector != DB and vector != DF and vector != MC:
        flags |= FLAG_RF
    return flags


@compiled
def _enter(cpu, kind, target, clears_if):
    """What all handlers find: RIP, TF NT RF VM clear, IF clear behind an interrupt gate, blocking ended."""
    cpu.rip = target
    cpu.next_rip = target
    cpu.rflags &= ~(FLAG_TF | FLAG_NT | FLAG_RF | FLAG_VM)
    if clears_if:
        cpu.rflags &= ~FLAG_IF
    cpu.shadow &= SHADOW_NMI
    if kind == NMI_TYPE:
        cpu.shadow |= SHADOW_NMI
    update_mode(cpu)


@compiled
def _check_handler_segment(cpu, selector, code, external):
    """The code segment that a gate names: type, privilege, presence."""
    if not is_code(code) or dpl_of(code) > cpu.cpl:
        return raise_fault(cpu, GP, selector & 0xFFFC | external)
    if cpu.long_mode and code & (ACCESS_L | ACCESS_DB) != ACCESS_L:
        return raise_fault(cpu, GP, selector & 0xFFFC | external)
    if not code & ACCESS_P:
        return raise_fault(cpu, NP, selector & 0xFFFC | external)
    return OK


@compiled
def handler_privilege(cpu, code):
    """The privilege level of a handler: the current one in conforming code, else the segment's."""
    return cpu.cpl if code & TYPE_CONFORMING else dpl_of(code)


@compiled
def _frame_host(cpu, linear, size):
    """The host address of a stack frame that lies in one page which the supervisor's TLB holds, or 0."""
    index = shr(linear, 12) & (ENTRIES - 1)
    entry = TLB_ENTRY.at(cpu.host_tlb + SUPERVISOR * BANK_BYTES + index * TLB_ENTRY_SIZE)
    if entry.write == ((linear + size - 1) & ~0xFFF | cpu.tlb_context):
        return linear + entry.host_delta
    return 0


@compiled
def stack_store(cpu, linear, size, value, cpl):
    """A push at the handler's privilege level. A non-canonical address is #SS."""
    if cpl == 3:
        store(cpu, linear, size, value)
    else:
        store_system(cpu, linear, size, value)
    return cpu.fault


# --- 64-bit -------------------------------------------------------------------------------------------------


@compiled
def _inner_rsp(cpu, cpl, ist, external):
    """RSP from the 64-bit TSS: an IST entry, or the stack of a privilege level."""
    tr = cpu.segments[TR]
    offset = 28 + ist * 8 if ist else 4 + cpl * 8
    if offset + 7 > tr.limit:
        raise_fault(cpu, TS, tr.selector & 0xFFFC | external)
        return 0
    return load_system(cpu, tr.base + offset, 8)


@compiled
def _push_long_frame(cpu, base, size, flags, back, error, cpl):
    """SS, RSP, RFLAGS, CS, RIP and an error code (when size is 48), downwards to `base`."""
    rip = base + size - 40
    host = _frame_host(cpu, base, size) if cpl < 3 else 0
    if host:
        at = host + size - 40
        store64(at, back)
        store64(at + 8, cpu.segments[CS].selector)
        store64(at + 16, flags)
        store64(at + 24, cpu.gpr[RSP])
        store64(at + 32, cpu.segments[SS].selector)
        if size == 48:
            store64(host, error)
        return OK
    if stack_store(cpu, rip + 32, 8, cpu.segments[SS].selector, cpl):
        return cpu.fault
    if stack_store(cpu, rip + 24, 8, cpu.gpr[RSP], cpl):
        return cpu.fault
    if stack_store(cpu, rip + 16, 8, flags, cpl):
        return cpu.fault
    if stack_store(cpu, rip + 8, 8, cpu.segments[CS].selector, cpl):
        return cpu.fault
    if stack_store(cpu, rip, 8, back, cpl):
        return cpu.fault
    if size == 48:
        stack_store(cpu, base, 8, error, cpl)
    return cpu.fault


@unit(PROCESSOR, "i64", "i64", "i64", "i64")
def deliver_long(cpu, vector, kind, error, has_error):
    """One attempt in IA-32e mode. Returns OK, or the status of what is in the way."""
    external = external_bit(kind)
    gate_error = vector << 3 | 2 | external
    if (vector << 4) + 15 > cpu.idtr_limit:
        return raise_fault(cpu, GP, gate_error)
    low = load_system(cpu, cpu.idtr_base + (vector << 4), 8)
    if cpu.fault:
        return cpu.fault
    high = load_system(cpu, cpu.idtr_base + (vector << 4) + 8, 8)
    if cpu.fault:
        return cpu.fault
    gate = rights_of(low)
    if gate & 0x1F != INTERRUPT_GATE and gate & 0x1F != TRAP_GATE:
        return raise_fault(cpu, GP, gate_error)
    if external == 0 and dpl_of(gate) < cpu.cpl:
        return raise_fault(cpu, GP, gate_error)
    if not gate & ACCESS_P:
        return raise_fault(cpu, NP, gate_error)
    target = low & 0xFFFF | shr(low, 32) & 0xFFFF_0000 | high << 32

    selector = shr(low, 16) & 0xFFFF
    if selector & 0xFFFC == 0:
        return raise_fault(cpu, GP, external)
    raw = read_descriptor(cpu, selector, GP, external)
    if cpu.fault:
        return cpu.fault
    code = rights_of(raw)
    if _check_handler_segment(cpu, selector, code, external):
        return cpu.fault
    cpl = handler_privilege(cpu, code)

    ist = shr(low, 32) & 7
    rsp = cpu.gpr[RSP]
    if ist or cpl < cpu.cpl:
        rsp = _inner_rsp(cpu, cpl, ist, external)
        if cpu.fault:
            return cpu.fault
    size = 48 if has_error else 40
    base = (rsp & ~15) - size
    if not canonical(base) or not canonical(base + size - 1):
        return raise_fault(cpu, SS_FAULT, external)
    if not canonical(target):
        return raise_fault(cpu, GP, external)
    if mark_accessed(cpu, selector, raw):
        return cpu.fault
    if _push_long_frame(
        cpu, base, size, saved_flags(cpu, vector, kind), return_address(cpu, kind), error, cpl
    ):
        return cpu.fault

    cpu.gpr[RSP] = base
    if cpl < cpu.cpl:
        put_null(cpu, SS, cpl, cpl)
    put_code_segment(cpu, selector, raw, cpl)
    _enter(cpu, kind, target, gate & 1 == 0)
    return OK


# --- legacy protected mode ----------------------------------------------------------------------------------


@compiled
def inner_stack(cpu, cpl, external):
    """SS:ESP of an inner privilege level from a 32- or 16-bit TSS: selector << 32 | pointer."""
    tr = cpu.segments[TR]
    wide = tr.access & 0xF != TSS_16_BUSY
    offset = 4 + cpl * 8 if wide else 2 + cpl * 4
    if offset + (5 if wide else 3) > tr.limit:
        raise_fault(cpu, TS, tr.selector & 0xFFFC | external)
        return 0
    pointer = load_system(cpu, tr.base + offset, 4 if wide else 2)
    if cpu.fault:
        return 0
    selector = load_system(cpu, tr.base + offset + (4 if wide else 2), 2)
    return selector << 32 | pointer


@compiled
def inner_stack_descriptor(cpu, selector, cpl, external):
    """The checked descriptor of an inner stack segment; faults are #TS, and #SS when it is not present."""
    if selector & 0xFFFC == 0:
        raise_fault(cpu, TS, external)
        return 0
    raw = read_descriptor(cpu, selector, TS, external)
    if cpu.fault:
        return 0
    if check_stack_segment(cpu, selector, rights_of(raw), cpl, TS, external):
        return 0
    mark_accessed(cpu, selector, raw)
    return raw


@compiled
def _push_legacy_frame(cpu, base, width, flags, back, error, has_error, outer, cpl):
    """GS, FS, DS, ES (from virtual-8086 mode), SS:ESP of the interrupted level (when `outer`), EFLAGS, CS, EIP,
    an error code, downwards to `base`."""
    at = base
    if has_error:
        if stack_store(cpu, at, width, error, cpl):
            return cpu.fault
        at += width
    if stack_store(cpu, at, width, back, cpl):
        return cpu.fault
    if stack_store(cpu, at + width, width, cpu.segments[CS].selector, cpl):
        return cpu.fault
    if stack_store(cpu, at + 2 * width, width, flags, cpl):
        return cpu.fault
    if outer:
        if stack_store(cpu, at + 3 * width, width, cpu.gpr[RSP], cpl):
            return cpu.fault
        if stack_store(cpu, at + 4 * width, width, cpu.segments[SS].selector, cpl):
            return cpu.fault
        if flags & FLAG_VM:
            return _push_data_selectors(cpu, at + 5 * width, width, cpl)
    return cpu.fault


@compiled
def _push_data_selectors(cpu, at, width, cpl):
    """ES, DS, FS and GS upwards from `at`."""
    if stack_store(cpu, at, width, cpu.segments[ES].selector, cpl):
        return cpu.fault
    if stack_store(cpu, at + width, width, cpu.segments[DS].selector, cpl):
        return cpu.fault
    if stack_store(cpu, at + 2 * width, width, cpu.segments[FS].selector, cpl):
        return cpu.fault
    return stack_store(cpu, at + 3 * width, width, cpu.segments[GS].selector, cpl)


@compiled
def _drop_data_segments(cpu):
    """Out of virtual-8086 mode: what its data segment registers hold means nothing in protected mode."""
    put_null(cpu, ES, 0, 0)
    put_null(cpu, DS, 0, 0)
    put_null(cpu, FS, 0, 0)
    put_null(cpu, GS, 0, 0)


@compiled
def _enter_task(cpu, selector, vector, kind, error, has_error):
    """Through a task gate: the interrupted state goes to its TSS, an error code to the new task's stack."""
    external = external_bit(kind)
    flags = saved_flags(cpu, vector, kind)
    status = switch_task(cpu, selector, FROM_GATE, external, flags, return_address(cpu, kind))
    if status:
        return status
    if kind == NMI_TYPE:
        cpu.shadow |= SHADOW_NMI
    if has_error:
        return push_task_error(cpu, error, external)
    return OK


@unit(PROCESSOR, "i64", "i64", "i64", "i64")
def deliver_protected(cpu, vector, kind, error, has_error):
    """One attempt in legacy protected mode. Returns OK, or the status of what is in the way."""
    external = external_bit(kind)
    gate_error = vector << 3 | 2 | external
    if (vector << 3) + 7 > cpu.idtr_limit:
        return raise_fault(cpu, GP, gate_error)
    low = load_system(cpu, cpu.idtr_base + (vector << 3), 8)
    if cpu.fault:
        return cpu.fault
    gate = rights_of(low)
    kind_of_gate = gate & 0x1F
    wide = kind_of_gate == INTERRUPT_GATE or kind_of_gate == TRAP_GATE
    narrow = kind_of_gate == INTERRUPT_GATE_16 or kind_of_gate == TRAP_GATE_16
    if not wide and not narrow and kind_of_gate != TASK_GATE:
        return raise_fault(cpu, GP, gate_error)
    if external == 0 and dpl_of(gate) < cpu.cpl:
        return raise_fault(cpu, GP, gate_error)
    if not gate & ACCESS_P:
        return raise_fault(cpu, NP, gate_error)
    selector = shr(low, 16) & 0xFFFF
    if kind_of_gate == TASK_GATE:
        return _enter_task(cpu, selector, vector, kind, error, has_error)
    target = low & 0xFFFF | (shr(low, 32) & 0xFFFF_0000 if wide else 0)

    if selector & 0xFFFC == 0:
        return raise_fault(cpu, GP, external)
    raw = read_descriptor(cpu, selector, GP, external)
    if cpu.fault:
        return cpu.fault
    code = rights_of(raw)
    if _check_handler_segment(cpu, selector, code, external):
        return cpu.fault
    cpl = handler_privilege(cpu, code)
    virtual = cpu.rflags & FLAG_VM != 0
    if virtual and cpl != 0:
        return raise_fault(cpu, GP, selector & 0xFFFC | external)
    outer = cpl < cpu.cpl
    width = 4 if wide else 2
    size = width * ((5 if outer else 3) + (4 if virtual else 0) + has_error)

    stack = 0
    new_ss = 0
    if outer:
        stack = inner_stack(cpu, cpl, external)
        if cpu.fault:
            return cpu.fault
        new_ss = shr(stack, 32)
        stack_raw = inner_stack_descriptor(cpu, new_ss, cpl, external)
        if cpu.fault:
            return cpu.fault
        access = rights_of(stack_raw)
        stack_base = base_of(stack_raw)
        limit = limit_of(stack_raw)
        mask = 0xFFFF_FFFF if access & ACCESS_DB else 0xFFFF
        pointer = ((stack & 0xFFFF_FFFF) - size) & mask
    else:
        stack_raw = 0
        access = cpu.segments[SS].access
        stack_base = cpu.segments[SS].base
        limit = cpu.segments[SS].limit
        mask = stack_mask(cpu)
        pointer = (cpu.gpr[RSP] - size) & mask
    if not stack_holds(access, limit, pointer, size):
        return raise_fault(cpu, SS_FAULT, new_ss & 0xFFFC | external)
    if not code_offset_fits(cpu, raw, target, 0):
        return raise_fault(cpu, GP, external)
    if mark_accessed(cpu, selector, raw):
        return cpu.fault
    flags = saved_flags(cpu, vector, kind)
    back = return_address(cpu, kind)
    linear = (stack_base + pointer) & 0xFFFF_FFFF
    if _push_legacy_frame(cpu, linear, width, flags, back, error, has_error, outer, cpl):
        return cpu.fault

    if outer:
        put_segment(cpu, SS, new_ss, stack_raw)
    set_stack_pointer(cpu, pointer)
    if virtual:
        _drop_data_segments(cpu)
    put_code_segment(cpu, selector, raw, cpl)
    _enter(cpu, kind, target, gate & 1 == 0)
    return OK


# --- real-address mode --------------------------------------------------------------------------------------


@unit(PROCESSOR, "i64", "i64")
def deliver_real(cpu, vector, kind):
    """One attempt in real-address mode, through the table of far pointers at IDTR."""
    if (vector << 2) + 3 > cpu.idtr_limit:
        return raise_fault(cpu, GP, 0)
    pointer = load_system(cpu, cpu.idtr_base + (vector << 2), 4)
    if cpu.fault:
        return cpu.fault
    segment = cpu.segments[SS]
    top = (cpu.gpr[RSP] - 6) & stack_mask(cpu)
    if not stack_holds(segment.access, segment.limit, top, 6):
        return raise_fault(cpu, SS_FAULT, 0)
    linear = segment.base + top
    flags = get_rflags(cpu)
    if _push_legacy_frame(cpu, linear, 2, flags, return_address(cpu, kind), 0, 0, 0, 0):
        return cpu.fault
    set_stack_pointer(cpu, top)
    code = cpu.segments[CS]
    code.selector = shr(pointer, 16)
    code.base = shr(pointer, 16) << 4
    cpu.rflags &= ~FLAG_AC
    _enter(cpu, kind, pointer & 0xFFFF, 1)
    return OK


@compiled
def deliver_once(cpu, vector, kind, error, has_error):
    """One attempt in the current mode. Returns OK, or the status of what is in the way."""
    if not cpu.cr0 & CR0_PE:
        return deliver_real(cpu, vector, kind)
    if cpu.long_mode:
        return deliver_long(cpu, vector, kind, error, has_error)
    return deliver_protected(cpu, vector, kind, error, has_error)

"""Far transfers and segment registers: JMP, CALL, RET and IRET between segments, INT, moves of selectors.

Manual: the instructions' operation sections, "Call Gates", "Privilege Levels". The FAR group's unit comes
last.
"""

from vmx.cpu.events import software_interrupt
from vmx.cpu.idt import (
    PRIVILEGED_EXCEPTION,
    SOFTWARE_EXCEPTION,
    SOFTWARE_INTERRUPT,
    inner_stack,
    inner_stack_descriptor,
    stack_store,
)
from vmx.cpu.operands import (
    drop,
    gpr_read,
    gpr_write,
    linear_address,
    peek,
    plus,
    push,
    raise_fault,
    read_operand,
    set_stack_pointer,
    stack_mask,
    write_memory,
)
from vmx.cpu.segmentation import (
    CALL_GATE,
    CALL_GATE_16,
    TASK_GATE,
    TSS_16_AVAILABLE,
    TSS_AVAILABLE,
    TYPE_CONFORMING,
    base_of,
    canonical,
    check_stack_segment,
    code_offset_fits,
    descriptor_address,
    dpl_of,
    drop_inner_segments,
    is_code,
    limit_of,
    load_segment,
    mark_accessed,
    put_code_segment,
    put_null,
    put_segment,
    read_descriptor,
    rights_of,
    stack_holds,
    stop_not_modelled,
    table_holds,
    task_switch,
)
from vmx.cpu.syscall import fs_or_gs, read_base, swapgs, syscall, sysenter, sysexit, sysret, write_base
from vmx.mmu.access import load, load_system
from vmx.mmu.mode import update_mode
from vmx.state.bits import sext16, sext32, shr
from vmx.state.flags import get_rflags, overflow, set_rflags
from vmx.state.jit import compiled
from vmx.state.processor import (
    ACCESS_DB,
    ACCESS_L,
    ACCESS_P,
    ACCESS_S,
    BR,
    CR0_PE,
    CS,
    DECODED,
    FAULT,
    FLAG_AC,
    FLAG_IF,
    FLAG_IOPL,
    FLAG_NT,
    FLAG_RF,
    FLAG_VIF,
    FLAG_VIP,
    FLAG_VM,
    GP,
    JUMP,
    NP,
    OK,
    OPERAND_MEMORY,
    PROCESSOR,
    RSP,
    SHADOW_MOV_SS,
    SHADOW_NMI,
    SS,
    SS_FAULT,
    UD,
    NotModelled,
)
from vmx.state.unit import unit

MASK32 = 0xFFFF_FFFF
VIRTUAL_8086, CALL_GATE_16_STOP = int(NotModelled.VIRTUAL_8086), int(NotModelled.CALL_GATE_16)
FROM_CALL, FROM_IRET, FROM_JUMP = 0, 1, 2  # sources of a task switch


@compiled
def _task_switch(cpu, d, selector, source):
    cpu.exit_length = d.length
    return task_switch(cpu, selector, source)


# --- where a far pointer leads ------------------------------------------------------------------------------


@compiled
def _pointer_selector(cpu, d):
    """The selector of the far pointer operand."""
    if d.modrm == 0:
        return shr(d.immediate, 32) & 0xFFFF
    linear = linear_address(cpu, d, d.size + 2, 0)
    if cpu.fault:
        return 0
    return load(cpu, plus(cpu, linear, d.size), 2)


@compiled
def _pointer_offset(cpu, d):
    """The offset of the far pointer operand."""
    if d.modrm == 0:
        return d.immediate & MASK32
    linear = linear_address(cpu, d, d.size + 2, 0)
    if cpu.fault:
        return 0
    return load(cpu, linear, d.size)


@compiled
def _is_64_bit(cpu, code):
    """1 when a code segment's rights mean 64-bit mode."""
    return 1 if cpu.long_mode and code & ACCESS_L else 0


@compiled
def _check_code(cpu, selector, access):
    """A code segment as the direct target of JMP or CALL."""
    bad = False
    if access & TYPE_CONFORMING:
        bad = dpl_of(access) > cpu.cpl
    else:
        bad = selector & 3 > cpu.cpl or dpl_of(access) != cpu.cpl
    if bad or cpu.long_mode and access & (ACCESS_L | ACCESS_DB) == (ACCESS_L | ACCESS_DB):
        return raise_fault(cpu, GP, selector & 0xFFFC)
    if not access & ACCESS_P:
        return raise_fault(cpu, NP, selector & 0xFFFC)
    return OK


@compiled
def _real_transfer(cpu, selector, offset):
    """Finish a far transfer in real-address mode."""
    code = cpu.segments[CS]
    if offset & ~0xFFFF and offset > code.limit:
        return raise_fault(cpu, GP, 0)
    code.selector = selector
    code.base = selector << 4
    cpu.next_rip = offset
    return JUMP


@compiled
def _push_return(cpu, width):
    """CS and the return address, both or neither."""
    old = cpu.gpr[RSP]
    if push(cpu, width, cpu.segments[CS].selector):
        return cpu.fault
    if push(cpu, width, cpu.next_rip):
        cpu.gpr[RSP] = old
    return cpu.fault


@compiled
def _same_level(cpu, selector, raw, offset, width, is_call):
    """Transfer to checked code at the current privilege level; CALL pushes `width` bytes each."""
    if not code_offset_fits(cpu, raw, offset, _is_64_bit(cpu, rights_of(raw))):
        return raise_fault(cpu, GP, 0)
    if mark_accessed(cpu, selector, raw):
        return cpu.fault
    if is_call:
        if _push_return(cpu, width):
            return cpu.fault
    put_code_segment(cpu, selector, raw, cpu.cpl)
    cpu.next_rip = offset
    update_mode(cpu)
    return JUMP


# --- call gates ---------------------------------------------------------------------------------------------


@compiled
def _inner_call_64(cpu, selector, raw, offset, cpl):
    """CALL through a 64-bit call gate to an inner level: the stack comes from the TSS, SS becomes null."""
    tr = cpu.segments[7]
    at = 4 + cpl * 8
    if at + 7 > tr.limit:
        return raise_fault(cpu, 10, tr.selector & 0xFFFC)
    rsp = load_system(cpu, tr.base + at, 8)
    if cpu.fault:
        return cpu.fault
    if not canonical(rsp) or not canonical(rsp - 32):
        return raise_fault(cpu, SS_FAULT, 0)
    if not canonical(offset):
        return raise_fault(cpu, GP, 0)
    if mark_accessed(cpu, selector, raw):
        return cpu.fault
    if stack_store(cpu, rsp - 8, 8, cpu.segments[SS].selector, cpl):
        return cpu.fault
    if stack_store(cpu, rsp - 16, 8, cpu.gpr[RSP], cpl):
        return cpu.fault
    if stack_store(cpu, rsp - 24, 8, cpu.segments[CS].selector, cpl):
        return cpu.fault
    if stack_store(cpu, rsp - 32, 8, cpu.next_rip, cpl):
        return cpu.fault
    cpu.gpr[RSP] = rsp - 32
    put_null(cpu, SS, cpl, cpl)
    put_code_segment(cpu, selector, raw, cpl)
    cpu.next_rip = offset
    update_mode(cpu)
    return JUMP


@compiled
def _inner_call_32(cpu, selector, raw, offset, cpl, count):
    """CALL through a 32-bit call gate to an inner level: parameters are copied to the stack from the TSS."""
    stack = inner_stack(cpu, cpl, 0)
    if cpu.fault:
        return cpu.fault
    new_ss = shr(stack, 32)
    stack_raw = inner_stack_descriptor(cpu, new_ss, cpl, 0)
    if cpu.fault:
        return cpu.fault
    access = rights_of(stack_raw)
    mask = MASK32 if access & ACCESS_DB else 0xFFFF
    size = 16 + 4 * count
    pointer = ((stack & MASK32) - size) & mask
    if not stack_holds(access, limit_of(stack_raw), pointer, size):
        return raise_fault(cpu, SS_FAULT, new_ss & 0xFFFC)
    if not code_offset_fits(cpu, raw, offset, 0):
        return raise_fault(cpu, GP, 0)
    if mark_accessed(cpu, selector, raw):
        return cpu.fault
    linear = (base_of(stack_raw) + pointer) & MASK32
    if stack_store(cpu, linear, 4, cpu.next_rip, cpl):
        return cpu.fault
    if stack_store(cpu, linear + 4, 4, cpu.segments[CS].selector, cpl):
        return cpu.fault
    for i in range(count):
        parameter = peek(cpu, 4, 4 * i)
        if cpu.fault == 0:
            stack_store(cpu, linear + 8 + 4 * i, 4, parameter, cpl)
        if cpu.fault:
            return cpu.fault
    if stack_store(cpu, linear + size - 8, 4, cpu.gpr[RSP], cpl):
        return cpu.fault
    if stack_store(cpu, linear + size - 4, 4, cpu.segments[SS].selector, cpl):
        return cpu.fault
    put_segment(cpu, SS, new_ss, stack_raw)
    cpu.cpl = cpl
    set_stack_pointer(cpu, pointer)
    put_code_segment(cpu, selector, raw, cpl)
    cpu.next_rip = offset
    update_mode(cpu)
    return JUMP


@compiled
def _through_gate(cpu, gate_selector, gate, is_call):
    """JMP or CALL through a call gate whose first 8 bytes are `gate`."""
    access = rights_of(gate)
    error = gate_selector & 0xFFFC
    if dpl_of(access) < cpu.cpl or gate_selector & 3 > dpl_of(access):
        return raise_fault(cpu, GP, error)
    if not access & ACCESS_P:
        return raise_fault(cpu, NP, error)
    offset = gate & 0xFFFF | shr(gate, 32) & 0xFFFF_0000
    if cpu.long_mode:
        if not table_holds(cpu, gate_selector, 16):
            return raise_fault(cpu, GP, error)
        high = load_system(cpu, descriptor_address(cpu, gate_selector) + 8, 8)
        if cpu.fault:
            return cpu.fault
        if shr(high, 40) & 0x1F:
            return raise_fault(cpu, GP, error)
        offset |= high << 32
    selector = shr(gate, 16) & 0xFFFF
    if selector & 0xFFFC == 0:
        return raise_fault(cpu, GP, 0)
    raw = read_descriptor(cpu, selector, GP, 0)
    if cpu.fault:
        return cpu.fault
    code = rights_of(raw)
    bad = not is_code(code) or dpl_of(code) > cpu.cpl
    if cpu.long_mode and code & (ACCESS_L | ACCESS_DB) != ACCESS_L:
        bad = True
    inner = code & TYPE_CONFORMING == 0 and dpl_of(code) < cpu.cpl
    if bad or inner and not is_call:
        return raise_fault(cpu, GP, selector & 0xFFFC)
    if not code & ACCESS_P:
        return raise_fault(cpu, NP, selector & 0xFFFC)
    if not inner:
        return _same_level(cpu, selector, raw, offset, 8 if cpu.long_mode else 4, is_call)
    if cpu.long_mode:
        return _inner_call_64(cpu, selector, raw, offset, dpl_of(code))
    return _inner_call_32(cpu, selector, raw, offset, dpl_of(code), shr(gate, 32) & 31)


@compiled
def _system_target(cpu, d, selector, raw, is_call):
    """A far pointer that names a gate or a TSS instead of code."""
    access = rights_of(raw)
    kind = access & 0xF
    if kind == CALL_GATE:
        return _through_gate(cpu, selector, raw, is_call)
    task = kind == TASK_GATE or kind == TSS_AVAILABLE or kind == TSS_16_AVAILABLE
    if cpu.long_mode or not task and kind != CALL_GATE_16:
        return raise_fault(cpu, GP, selector & 0xFFFC)
    if dpl_of(access) < cpu.cpl or selector & 3 > dpl_of(access):
        return raise_fault(cpu, GP, selector & 0xFFFC)
    if not access & ACCESS_P:
        return raise_fault(cpu, NP, selector & 0xFFFC)
    if not task:
        return stop_not_modelled(cpu, CALL_GATE_16_STOP)
    if kind == TASK_GATE:
        selector = shr(raw, 16) & 0xFFFF
    return _task_switch(cpu, d, selector, FROM_CALL if is_call else FROM_JUMP)


@unit(PROCESSOR, DECODED, "i64")
def far_transfer(cpu, d, is_call):
    """JMP and CALL with a far pointer."""
    selector = _pointer_selector(cpu, d)
    if cpu.fault:
        return cpu.fault
    offset = _pointer_offset(cpu, d)
    if cpu.fault:
        return cpu.fault
    if cpu.cr0 & CR0_PE == 0:
        if is_call:
            if _push_return(cpu, d.size):
                return cpu.fault
        return _real_transfer(cpu, selector, offset)
    if selector & 0xFFFC == 0:
        return raise_fault(cpu, GP, 0)
    raw = read_descriptor(cpu, selector, GP, 0)
    if cpu.fault:
        return cpu.fault
    access = rights_of(raw)
    if not access & ACCESS_S:
        return _system_target(cpu, d, selector, raw, is_call)
    if not is_code(access):
        return raise_fault(cpu, GP, selector & 0xFFFC)
    if _check_code(cpu, selector, access):
        return cpu.fault
    return _same_level(cpu, selector, raw, offset, d.size, is_call)


# --- returns ------------------------------------------------------------------------------------------------


@compiled
def _check_return_code(cpu, selector, access):
    """The code segment of a far return, after its RPL has been compared with CPL."""
    bad = not is_code(access)
    if access & TYPE_CONFORMING:
        bad = bad or dpl_of(access) > selector & 3
    else:
        bad = bad or dpl_of(access) != selector & 3
    if bad or cpu.long_mode and access & (ACCESS_L | ACCESS_DB) == (ACCESS_L | ACCESS_DB):
        return raise_fault(cpu, GP, selector & 0xFFFC)
    if not access & ACCESS_P:
        return raise_fault(cpu, NP, selector & 0xFFFC)
    return OK


@compiled
def _return_stack(cpu, selector, cpl, to_64_bit):
    """The checked descriptor of the stack that a return goes to; 0 for a null selector in 64-bit mode."""
    if selector & 0xFFFC == 0:
        if not to_64_bit or cpl == 3 or selector & 3 != cpl:
            raise_fault(cpu, GP, 0)
        return 0
    raw = read_descriptor(cpu, selector, GP, 0)
    if cpu.fault:
        return 0
    if check_stack_segment(cpu, selector, rights_of(raw), cpl, GP, 0):
        return 0
    mark_accessed(cpu, selector, raw)
    return raw


@compiled
def _set_outer_stack(cpu, selector, raw, pointer, cpl, to_64_bit):
    """SS and RSP after a return; `raw` is 0 for a null selector."""
    if raw == 0:
        put_null(cpu, SS, selector, cpl)
    else:
        put_segment(cpu, SS, selector, raw)
    if to_64_bit:
        cpu.gpr[RSP] = pointer
    elif cpu.segments[SS].access & ACCESS_DB:
        cpu.gpr[RSP] = pointer & MASK32
    else:
        cpu.gpr[RSP] = cpu.gpr[RSP] & ~0xFFFF | pointer & 0xFFFF


@unit(PROCESSOR, DECODED)
def far_return(cpu, d):
    """RET far, with or without parameters to drop."""
    size = d.size
    release = d.immediate & 0xFFFF
    offset = peek(cpu, size, 0)
    if cpu.fault:
        return cpu.fault
    selector = peek(cpu, size, size) & 0xFFFF
    if cpu.fault:
        return cpu.fault
    if cpu.cr0 & CR0_PE == 0:
        status = _real_transfer(cpu, selector, offset)
        if status == JUMP:
            drop(cpu, 2 * size + release)
        return status
    if selector & 0xFFFC == 0:
        return raise_fault(cpu, GP, 0)
    raw = read_descriptor(cpu, selector, GP, 0)
    if cpu.fault:
        return cpu.fault
    cpl = selector & 3
    if cpl < cpu.cpl:
        return raise_fault(cpu, GP, selector & 0xFFFC)
    if _check_return_code(cpu, selector, rights_of(raw)):
        return cpu.fault
    wide = _is_64_bit(cpu, rights_of(raw))
    if not code_offset_fits(cpu, raw, offset, wide):
        return raise_fault(cpu, GP, 0)
    if mark_accessed(cpu, selector, raw):
        return cpu.fault
    if cpl == cpu.cpl:
        drop(cpu, 2 * size + release)
    else:
        pointer = peek(cpu, size, 2 * size + release)
        if cpu.fault:
            return cpu.fault
        stack_selector = peek(cpu, size, 3 * size + release) & 0xFFFF
        if cpu.fault:
            return cpu.fault
        stack_raw = _return_stack(cpu, stack_selector, cpl, wide)
        if cpu.fault:
            return cpu.fault
        _set_outer_stack(cpu, stack_selector, stack_raw, pointer + release, cpl, wide)
        drop_inner_segments(cpu, cpl)
    put_code_segment(cpu, selector, raw, cpl)
    cpu.next_rip = offset
    update_mode(cpu)
    return JUMP


@compiled
def _return_flags(cpu, image, size):
    """RFLAGS after IRET. RF is dropped: the next instruction would end it, and nothing here looks at it."""
    writable = 0x4DD5  # CF PF AF ZF SF TF DF OF NT
    if size > 2:
        writable |= FLAG_AC | 1 << 21
    if cpu.cr0 & CR0_PE == 0 or cpu.cpl == 0:
        writable |= FLAG_IOPL | FLAG_IF
        if size > 2 and cpu.cr0 & CR0_PE:
            writable |= FLAG_VIF | FLAG_VIP
    elif cpu.cpl <= shr(cpu.rflags, 12) & 3:
        writable |= FLAG_IF
    return get_rflags(cpu) & ~writable & ~FLAG_RF | image & writable


@compiled
def _iret_real(cpu, size, offset, selector, image):
    flags = _return_flags(cpu, image, size)
    status = _real_transfer(cpu, selector, offset)
    if status == JUMP:
        drop(cpu, 3 * size)
        set_rflags(cpu, flags)
    return status


@compiled
def _iret(cpu, d):
    size = d.size
    if cpu.cr0 & CR0_PE and cpu.rflags & FLAG_NT:
        if cpu.long_mode:
            return raise_fault(cpu, GP, 0)
        link = load_system(cpu, cpu.segments[7].base, 2)
        if cpu.fault:
            return cpu.fault
        return _task_switch(cpu, d, link, FROM_IRET)
    offset = peek(cpu, size, 0)
    if cpu.fault:
        return cpu.fault
    selector = peek(cpu, size, size) & 0xFFFF
    if cpu.fault:
        return cpu.fault
    image = peek(cpu, size, 2 * size)
    if cpu.fault:
        return cpu.fault
    if cpu.cr0 & CR0_PE == 0:
        return _iret_real(cpu, size, offset, selector, image)
    if image & FLAG_VM and size > 2 and cpu.cpl == 0 and cpu.long_mode == 0:
        return stop_not_modelled(cpu, VIRTUAL_8086)
    if selector & 0xFFFC == 0:
        return raise_fault(cpu, GP, 0)
    raw = read_descriptor(cpu, selector, GP, 0)
    if cpu.fault:
        return cpu.fault
    cpl = selector & 3
    if cpl < cpu.cpl:
        return raise_fault(cpu, GP, selector & 0xFFFC)
    if _check_return_code(cpu, selector, rights_of(raw)):
        return cpu.fault
    wide = _is_64_bit(cpu, rights_of(raw))
    if not code_offset_fits(cpu, raw, offset, wide):
        return raise_fault(cpu, GP, 0)
    if mark_accessed(cpu, selector, raw):
        return cpu.fault
    outer = cpl > cpu.cpl
    flags = _return_flags(cpu, image, size)
    if outer or cpu.code_mode == 2:
        pointer = peek(cpu, size, 3 * size)
        if cpu.fault:
            return cpu.fault
        stack_selector = peek(cpu, size, 4 * size) & 0xFFFF
        if cpu.fault:
            return cpu.fault
        stack_raw = _return_stack(cpu, stack_selector, cpl, wide)
        if cpu.fault:
            return cpu.fault
        _set_outer_stack(cpu, stack_selector, stack_raw, pointer, cpl, wide)
        if outer:
            drop_inner_segments(cpu, cpl)
    else:
        drop(cpu, 3 * size)
    put_code_segment(cpu, selector, raw, cpl)
    set_rflags(cpu, flags)
    cpu.next_rip = offset
    update_mode(cpu)
    return JUMP


@unit(PROCESSOR, DECODED)
def interrupt_return(cpu, d):
    """IRET: also the end of blocking by NMI, whether it faults or not."""
    status = _iret(cpu, d)
    if status == JUMP or status == FAULT:
        cpu.shadow &= ~SHADOW_NMI
        cpu.attention = 1
    return status


# --- software interrupts ------------------------------------------------------------------------------------


@compiled
def _into(cpu, d):
    if not overflow(cpu):
        return OK
    return software_interrupt(cpu, d, 4, SOFTWARE_EXCEPTION)


@compiled
def _bound(cpu, d):
    """BOUND: the index against two signed bounds in memory."""
    size = d.size
    linear = linear_address(cpu, d, 2 * size, 0)
    if cpu.fault:
        return cpu.fault
    low = load(cpu, linear, size)
    if cpu.fault:
        return cpu.fault
    high = load(cpu, plus(cpu, linear, size), size)
    if cpu.fault:
        return cpu.fault
    index = gpr_read(cpu, d.dst, size)
    if size == 2:
        outside = sext16(index) < sext16(low) or sext16(index) > sext16(high)
    else:
        outside = sext32(index) < sext32(low) or sext32(index) > sext32(high)
    return raise_fault(cpu, BR, 0) if outside else OK


# --- segment registers --------------------------------------------------------------------------------------


@compiled
def _mov_from_sreg(cpu, d):
    if d.reg & 7 > 5:
        return raise_fault(cpu, UD, 0)
    value = cpu.segments[d.reg & 7].selector
    if d.dst == OPERAND_MEMORY:
        write_memory(cpu, d, 2, value)
        return cpu.fault
    gpr_write(cpu, d.dst, d.size, value)
    return OK


@compiled
def _loaded(cpu, register):
    """A segment register was loaded: SS blocks events for one instruction and carries the privilege."""
    if register == SS:
        if cpu.shadow & SHADOW_MOV_SS == 0:
            cpu.shadow |= SHADOW_MOV_SS
        cpu.attention = 1
        update_mode(cpu)
    return JUMP


@compiled
def _mov_to_sreg(cpu, d):
    register = d.reg & 7
    if register == CS or register > 5:
        return raise_fault(cpu, UD, 0)
    selector = read_operand(cpu, d, d.src)
    if cpu.fault:
        return cpu.fault
    if load_segment(cpu, register, selector):
        return cpu.fault
    return _loaded(cpu, register)


@compiled
def _pop_sreg(cpu, d):
    selector = peek(cpu, 2 if d.size == 2 else d.size, 0) & 0xFFFF
    if cpu.fault:
        return cpu.fault
    mask = stack_mask(cpu)
    if load_segment(cpu, d.immediate, selector):
        return cpu.fault
    if mask == 0xFFFF:
        cpu.gpr[RSP] = cpu.gpr[RSP] & ~0xFFFF | (cpu.gpr[RSP] + d.size) & 0xFFFF
    else:
        cpu.gpr[RSP] = (cpu.gpr[RSP] + d.size) & mask
    return _loaded(cpu, d.immediate)


@compiled
def _load_far(cpu, d):
    """LES, LDS, LSS, LFS, LGS."""
    selector = _pointer_selector(cpu, d)
    if cpu.fault:
        return cpu.fault
    offset = _pointer_offset(cpu, d)
    if cpu.fault:
        return cpu.fault
    if load_segment(cpu, d.immediate, selector):
        return cpu.fault
    gpr_write(cpu, d.dst, d.size, offset)
    if d.immediate == SS:
        update_mode(cpu)
    return JUMP


@unit(PROCESSOR, DECODED)
def group_far(cpu, d):
    """Execute an instruction of the FAR group."""
    op = d.op & 31
    if op == 0:
        return far_transfer(cpu, d, 0)
    elif op == 1:
        return far_transfer(cpu, d, 1)
    elif op == 2:
        return far_return(cpu, d)
    elif op == 3:
        return software_interrupt(cpu, d, 3, SOFTWARE_EXCEPTION)
    elif op == 4:
        return software_interrupt(cpu, d, d.immediate & 0xFF, SOFTWARE_INTERRUPT)
    elif op == 5:
        return _into(cpu, d)
    elif op == 6:
        return interrupt_return(cpu, d)
    elif op == 7:
        return _mov_from_sreg(cpu, d)
    elif op == 8:
        return _mov_to_sreg(cpu, d)
    elif op == 9:
        status = push(cpu, d.size, cpu.segments[d.immediate].selector)
        return status
    elif op == 10:
        return _pop_sreg(cpu, d)
    elif op == 11:
        return _load_far(cpu, d)
    elif op == 12:
        return syscall(cpu, d)
    elif op == 13:
        return sysret(cpu, d)
    elif op == 14:
        return sysenter(cpu, d)
    elif op == 15:
        return sysexit(cpu, d)
    elif op == 16:
        return software_interrupt(cpu, d, 1, PRIVILEGED_EXCEPTION)
    elif op == 17:
        return _bound(cpu, d)
    elif op == 18:
        return raise_fault(cpu, UD, 0)
    elif op == 19:
        return swapgs(cpu, d)
    elif op < 22:
        return read_base(cpu, d, fs_or_gs(op))
    return write_base(cpu, d, fs_or_gs(op))

"""The FAR group: JMP and CALL with far pointers, INT n and relatives, moves of segment registers.

Manual: the instructions' operation sections, "Privilege Levels". Call gates are in `vmx.cpu.gates`, RET far and
IRET in `vmx.cpu.returns`. The group's unit comes last.
"""

from vmx.cpu.events import software_interrupt
from vmx.cpu.gates import push_return, same_level, through_gate
from vmx.cpu.idt import (
    PRIVILEGED_EXCEPTION,
    SOFTWARE_EXCEPTION,
    SOFTWARE_INTERRUPT,
)
from vmx.cpu.operands import (
    gpr_read,
    gpr_write,
    linear_address,
    peek,
    plus,
    push,
    raise_fault,
    read_operand,
    stack_mask,
    write_memory,
)
from vmx.cpu.returns import far_return, interrupt_return
from vmx.cpu.segmentation import (
    CALL_GATE,
    CALL_GATE_16,
    TASK_GATE,
    TSS_16_AVAILABLE,
    TSS_AVAILABLE,
    TYPE_CONFORMING,
    dpl_of,
    is_code,
    load_segment,
    read_descriptor,
    real_addressing,
    real_transfer,
    rights_of,
)
from vmx.cpu.syscall import fs_or_gs, read_base, swapgs, syscall, sysenter, sysexit, sysret, write_base
from vmx.cpu.tasks import FROM_CALL, FROM_JUMP, switch_by_instruction
from vmx.cpu.virtual8086 import (
    TO_PROGRAM,
    interrupt_program,
    software_interrupt_target,
)
from vmx.mmu.access import load
from vmx.mmu.mode import update_mode
from vmx.state.bits import sext16, sext32, shr
from vmx.state.flags import overflow
from vmx.state.jit import compiled
from vmx.state.processor import (
    ACCESS_DB,
    ACCESS_L,
    ACCESS_P,
    ACCESS_S,
    BR,
    CS,
    DECODED,
    FLAG_VM,
    GP,
    JUMP,
    NP,
    OK,
    OPERAND_MEMORY,
    PROCESSOR,
    RSP,
    SHADOW_MOV_SS,
    SS,
    UD,
)
from vmx.state.unit import unit

MASK32 = 0xFFFF_FFFF


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
def _system_target(cpu, d, selector, raw, is_call):
    """A far pointer that names a gate or a TSS instead of code."""
    access = rights_of(raw)
    kind = access & 0xF
    if kind == CALL_GATE or kind == CALL_GATE_16 and cpu.long_mode == 0:
        return through_gate(cpu, selector, raw, is_call)
    task = kind == TASK_GATE or kind == TSS_AVAILABLE or kind == TSS_16_AVAILABLE
    if cpu.long_mode or not task:
        return raise_fault(cpu, GP, selector & 0xFFFC)
    if dpl_of(access) < cpu.cpl or selector & 3 > dpl_of(access):
        return raise_fault(cpu, GP, selector & 0xFFFC)
    if not access & ACCESS_P:
        return raise_fault(cpu, NP, selector & 0xFFFC)
    if kind == TASK_GATE:
        selector = shr(raw, 16) & 0xFFFF
    return switch_by_instruction(cpu, d, selector, FROM_CALL if is_call else FROM_JUMP)


@unit(PROCESSOR, DECODED, "i64")
def far_transfer(cpu, d, is_call):
    """JMP and CALL with a far pointer."""
    selector = _pointer_selector(cpu, d)
    if cpu.fault:
        return cpu.fault
    offset = _pointer_offset(cpu, d)
    if cpu.fault:
        return cpu.fault
    if real_addressing(cpu):
        if is_call:
            if push_return(cpu, d.size):
                return cpu.fault
        return real_transfer(cpu, selector, offset)
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
    return same_level(cpu, selector, raw, offset, d.size, is_call)


# --- software interrupts ------------------------------------------------------------------------------------


@compiled
def _int_n(cpu, d):
    """INT n: in virtual-8086 mode IOPL and the redirection bitmap have a say."""
    vector = d.immediate & 0xFF
    if cpu.rflags & FLAG_VM:
        target = software_interrupt_target(cpu, vector)
        if cpu.fault:
            return cpu.fault
        if target == TO_PROGRAM:
            return interrupt_program(cpu, vector)
    return software_interrupt(cpu, d, vector, SOFTWARE_INTERRUPT)


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
        return _int_n(cpu, d)
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

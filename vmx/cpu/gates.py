"""JMP and CALL to code at the same privilege level, and through call gates: 16-, 32- and 64-bit ones.

Manual: "Call Gates", "Accessing a Code Segment Through a Call Gate", "Stack Switching"; CALL and JMP in the
instruction set reference. Used by the FAR group (vmx.cpu.far).
"""

from vmx.cpu.idt import inner_stack, inner_stack_descriptor, stack_store
from vmx.cpu.operands import peek, push, raise_fault, set_stack_pointer
from vmx.cpu.segmentation import (
    TYPE_CONFORMING,
    base_of,
    canonical,
    code_offset_fits,
    descriptor_address,
    dpl_of,
    is_64_bit,
    is_code,
    limit_of,
    mark_accessed,
    put_code_segment,
    put_null,
    put_segment,
    read_descriptor,
    rights_of,
    stack_holds,
    table_holds,
)
from vmx.mmu.access import load_system
from vmx.mmu.mode import update_mode
from vmx.state.bits import shr
from vmx.state.jit import compiled
from vmx.state.processor import (
    ACCESS_DB,
    ACCESS_L,
    ACCESS_P,
    CS,
    GP,
    JUMP,
    NP,
    RSP,
    SS,
    SS_FAULT,
    TR,
    TS,
)

MASK32 = 0xFFFF_FFFF


@compiled
def push_return(cpu, width):
    """CS and the return address, both or neither."""
    old = cpu.gpr[RSP]
    if push(cpu, width, cpu.segments[CS].selector):
        return cpu.fault
    if push(cpu, width, cpu.next_rip):
        cpu.gpr[RSP] = old
    return cpu.fault


@compiled
def same_level(cpu, selector, raw, offset, width, is_call):
    """Transfer to checked code at the current privilege level; CALL pushes `width` bytes each."""
    if not code_offset_fits(cpu, raw, offset, is_64_bit(cpu, rights_of(raw))):
        return raise_fault(cpu, GP, 0)
    if mark_accessed(cpu, selector, raw):
        return cpu.fault
    if is_call:
        if push_return(cpu, width):
            return cpu.fault
    put_code_segment(cpu, selector, raw, cpu.cpl)
    cpu.next_rip = offset
    update_mode(cpu)
    return JUMP


@compiled
def _inner_call_64(cpu, selector, raw, offset, cpl):
    """CALL through a 64-bit call gate to an inner level: the stack comes from the TSS, SS becomes null."""
    tr = cpu.segments[TR]
    at = 4 + cpl * 8
    if at + 7 > tr.limit:
        return raise_fault(cpu, TS, tr.selector & 0xFFFC)
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
def _inner_call_legacy(cpu, selector, raw, offset, cpl, width, count):
    """CALL through a 32- or 16-bit gate to an inner level: parameters are copied to the stack from the TSS."""
    stack = inner_stack(cpu, cpl, 0)
    if cpu.fault:
        return cpu.fault
    new_ss = shr(stack, 32)
    stack_raw = inner_stack_descriptor(cpu, new_ss, cpl, 0)
    if cpu.fault:
        return cpu.fault
    access = rights_of(stack_raw)
    mask = MASK32 if access & ACCESS_DB else 0xFFFF
    size = (4 + count) * width
    pointer = ((stack & MASK32) - size) & mask
    if not stack_holds(access, limit_of(stack_raw), pointer, size):
        return raise_fault(cpu, SS_FAULT, new_ss & 0xFFFC)
    if not code_offset_fits(cpu, raw, offset, 0):
        return raise_fault(cpu, GP, 0)
    if mark_accessed(cpu, selector, raw):
        return cpu.fault
    linear = (base_of(stack_raw) + pointer) & MASK32
    if stack_store(cpu, linear, width, cpu.next_rip, cpl):
        return cpu.fault
    if stack_store(cpu, linear + width, width, cpu.segments[CS].selector, cpl):
        return cpu.fault
    for i in range(count):
        parameter = peek(cpu, width, width * i)
        if cpu.fault == 0:
            stack_store(cpu, linear + (2 + i) * width, width, parameter, cpl)
        if cpu.fault:
            return cpu.fault
    if stack_store(cpu, linear + size - 2 * width, width, cpu.gpr[RSP], cpl):
        return cpu.fault
    if stack_store(cpu, linear + size - width, width, cpu.segments[SS].selector, cpl):
        return cpu.fault
    put_segment(cpu, SS, new_ss, stack_raw)
    cpu.cpl = cpl
    set_stack_pointer(cpu, pointer)
    put_code_segment(cpu, selector, raw, cpl)
    cpu.next_rip = offset
    update_mode(cpu)
    return JUMP


@compiled
def through_gate(cpu, gate_selector, gate, is_call):
    """JMP or CALL through a call gate whose first 8 bytes are `gate`."""
    access = rights_of(gate)
    error = gate_selector & 0xFFFC
    if dpl_of(access) < cpu.cpl or gate_selector & 3 > dpl_of(access):
        return raise_fault(cpu, GP, error)
    if not access & ACCESS_P:
        return raise_fault(cpu, NP, error)
    width = 8 if cpu.long_mode else 4 if access & 8 else 2
    offset = gate & 0xFFFF
    if width > 2:
        offset |= shr(gate, 32) & 0xFFFF_0000
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
        return same_level(cpu, selector, raw, offset, width, is_call)
    if cpu.long_mode:
        return _inner_call_64(cpu, selector, raw, offset, dpl_of(code))
    return _inner_call_legacy(cpu, selector, raw, offset, dpl_of(code), width, shr(gate, 32) & 31)

"""RET far and IRET: returns to the same and to outer privilege levels.

Manual: RET and IRET in the instruction set reference. IRET also leads back from a nested task (vmx.cpu.tasks), and
into and inside virtual-8086 mode (vmx.cpu.virtual8086).
"""

from vmx.cpu.breakpoints import keep_resume_flag
from vmx.cpu.operands import drop, peek, raise_fault
from vmx.cpu.segmentation import (
    TYPE_CONFORMING,
    check_stack_segment,
    code_offset_fits,
    dpl_of,
    drop_inner_segments,
    is_64_bit,
    is_code,
    mark_accessed,
    put_code_segment,
    put_null,
    put_segment,
    read_descriptor,
    real_addressing,
    real_transfer,
    rights_of,
)
from vmx.cpu.tasks import FROM_IRET, switch_by_instruction
from vmx.cpu.virtual8086 import enter_by_iret, return_inside
from vmx.mmu.access import load_system
from vmx.mmu.mode import update_mode
from vmx.state.bits import shr
from vmx.state.flags import get_rflags, set_rflags
from vmx.state.jit import compiled
from vmx.state.processor import (
    ACCESS_DB,
    ACCESS_L,
    ACCESS_P,
    CR0_PE,
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
    PROCESSOR,
    RSP,
    SHADOW_NMI,
    SS,
    TR,
)
from vmx.state.unit import unit

MASK32 = 0xFFFF_FFFF


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
def _return_code(cpu, selector, offset):
    """The descriptor of the code segment that RET far or IRET goes to, all its checks done and marked accessed."""
    if selector & 0xFFFC == 0:
        raise_fault(cpu, GP, 0)
        return 0
    raw = read_descriptor(cpu, selector, GP, 0)
    if cpu.fault:
        return 0
    if selector & 3 < cpu.cpl:
        raise_fault(cpu, GP, selector & 0xFFFC)
        return 0
    if _check_return_code(cpu, selector, rights_of(raw)):
        return 0
    if not code_offset_fits(cpu, raw, offset, is_64_bit(cpu, rights_of(raw))):
        raise_fault(cpu, GP, 0)
        return 0
    mark_accessed(cpu, selector, raw)
    return raw


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
    if real_addressing(cpu):
        status = real_transfer(cpu, selector, offset)
        if status == JUMP:
            drop(cpu, 2 * size + release)
        return status
    raw = _return_code(cpu, selector, offset)
    if cpu.fault:
        return cpu.fault
    cpl = selector & 3
    wide = is_64_bit(cpu, rights_of(raw))
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
    """RFLAGS after IRET."""
    writable = 0x4DD5  # CF PF AF ZF SF TF DF OF NT; reserved bits keep their fixed values
    if size > 2:
        writable |= FLAG_RF | FLAG_AC | 1 << 21
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
    status = real_transfer(cpu, selector, offset)
    if status == JUMP:
        drop(cpu, 3 * size)
        set_rflags(cpu, flags)
    return status


@compiled
def _iret(cpu, d):
    size = d.size
    if cpu.rflags & FLAG_VM:
        return return_inside(cpu, size)
    if cpu.cr0 & CR0_PE and cpu.rflags & FLAG_NT:
        if cpu.long_mode:
            return raise_fault(cpu, GP, 0)
        link = load_system(cpu, cpu.segments[TR].base, 2)
        if cpu.fault:
            return cpu.fault
        return switch_by_instruction(cpu, d, link, FROM_IRET)
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
        return enter_by_iret(cpu, image)
    raw = _return_code(cpu, selector, offset)
    if cpu.fault:
        return cpu.fault
    cpl = selector & 3
    wide = is_64_bit(cpu, rights_of(raw))
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
    if status == JUMP:
        keep_resume_flag(cpu)
    if status == JUMP or status == FAULT:
        cpu.shadow &= ~SHADOW_NMI
        cpu.attention = 1
    return status

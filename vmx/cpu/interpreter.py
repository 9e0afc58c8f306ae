"""The run loop: finds the decoded block at RIP, executes it, and attends to what lies between instructions.

Dispatch has two levels: a first switch over hot codes (vmx.cpu.hot), whose cases are written out here, and
group units for all other operations. Manual: "Basic Execution Environment"; for the order of events between
instructions see vmx.cpu.events.
"""

from vmx.cpu.alu import binary, condition, extend, group_alu, set_logic_flags, source_size, step
from vmx.cpu.bit import group_bit
from vmx.cpu.blocks import BLOCK, DECODED_SIZE, PAGE_MASK, find_block, neighbour
from vmx.cpu.control import group_control, target_allowed
from vmx.cpu.descriptor import group_descriptor
from vmx.cpu.events import STEP, after_step, deliver_fault, handle_attention
from vmx.cpu.extension import group_extension
from vmx.cpu.far import group_far
from vmx.cpu.operands import (
    gpr_read,
    gpr_write,
    linear_address,
    mask,
    peek,
    push,
    raise_fault,
)
from vmx.cpu.portio import group_portio
from vmx.cpu.shift import group_shift, shift
from vmx.cpu.stack import group_stack
from vmx.cpu.string import group_string
from vmx.cpu.system import group_system
from vmx.cpu.vector import execute_vector
from vmx.cpu.x87 import execute_wait, execute_x87
from vmx.cpu.xstate import execute_xstate
from vmx.isa.operations import GROUP_NUMBER
from vmx.mmu.access import load, load_for_update, store
from vmx.mmu.bus import forget_bus_answers
from vmx.mmu.translate import EPT_EXIT
from vmx.state.bits import ule, ult
from vmx.state.jit import compiled
from vmx.state.processor import (
    DECODED,
    EXIT,
    FAULT,
    JUMP,
    OK,
    OPERAND_IMMEDIATE,
    PROCESSOR,
    STOP,
    TRAP_EXIT,
    UD,
    Stop,
)
from vmx.state.unit import unit
from vmx.virt.exit import vm_exit

CONTROL = GROUP_NUMBER["CONTROL"]
RUN = 1 << 20  # instructions that one block may run before the limits are looked at again
STOP_NONE, STOP_LIMIT = int(Stop.NONE), int(Stop.LIMIT)


@compiled
def _execute_cold(cpu, d):
    """The second level: by group."""
    group = d.op >> 5
    if group == 0:
        return group_alu(cpu, d)
    if group == 1:
        return group_shift(cpu, d)
    if group == 2:
        return group_bit(cpu, d)
    if group == 3:
        return group_stack(cpu, d)
    if group == 4:
        return group_control(cpu, d)
    if group == 5:
        return group_string(cpu, d)
    if group == 6:
        if d.row == 0:
            cpu.undecoded[d.opcode] = cpu.undecoded[d.opcode] + 1
            return raise_fault(cpu, UD, 0)
        return group_far(cpu, d)
    if group == 7:
        return group_system(cpu, d)
    if group == 8:
        return group_descriptor(cpu, d)
    if group == 9:
        return group_portio(cpu, d)
    if group == 10:
        return execute_vector(cpu, d)
    if group == 11:
        return execute_x87(cpu, d) if d.op & 31 == 0 else execute_wait(cpu, d)
    if group == 12:
        return execute_xstate(cpu, d)
    return group_extension(cpu, d)


@compiled(inline=True)
def _execute(cpu, d):
    """Execute one decoded instruction; cpu.rip and cpu.next_rip are set. Returns a Status."""
    code = d.code
    if code == 0:
        return _execute_cold(cpu, d)
    if code == 1:  # MOV register, register (32 or 64 bits)
        cpu.gpr[d.dst] = cpu.gpr[d.src] & mask(d.size)
        return OK
    if code == 2:  # MOV register, immediate
        cpu.gpr[d.dst] = d.immediate & mask(d.size)
        return OK
    if code == 3:  # MOV register, memory
        linear = linear_address(cpu, d, d.size, 0)
        if cpu.fault == 0:
            value = load(cpu, linear, d.size)
            if cpu.fault == 0:
                gpr_write(cpu, d.dst, d.size, value)
        return cpu.fault
    if code == 4:  # MOV memory, register
        linear = linear_address(cpu, d, d.size, 1)
        if cpu.fault == 0:
            store(cpu, linear, d.size, gpr_read(cpu, d.src, d.size))
        return cpu.fault
    if code == 5:  # MOV memory, immediate
        linear = linear_address(cpu, d, d.size, 1)
        if cpu.fault == 0:
            store(cpu, linear, d.size, d.immediate)
        return cpu.fault
    if code == 6:  # LEA
        offset = cpu.gpr[d.base] + (cpu.gpr[d.index] << d.scale) + d.displacement
        cpu.gpr[d.dst] = offset & mask(d.address_size) & mask(d.size)
        return OK
    if code == 7 or code == 8:  # ADD .. CMP register, register or immediate
        size = d.size
        a = cpu.gpr[d.dst] & mask(size)
        b = (d.immediate if code == 8 else cpu.gpr[d.src]) & mask(size)
        op = d.op
        result = binary(cpu, op, a, b, size)
        if op != 7:
            cpu.gpr[d.dst] = result
        return OK
    if code == 9:  # ADD .. CMP register, memory
        size = d.size
        linear = linear_address(cpu, d, size, 0)
        if cpu.fault:
            return cpu.fault
        b = load(cpu, linear, size)
        if cpu.fault:
            return cpu.fault
        op = d.op
        result = binary(cpu, op, gpr_read(cpu, d.dst, size), b, size)
        if op != 7:
            gpr_write(cpu, d.dst, size, result)
        return OK
    if code == 10:  # ADD .. CMP memory, register or immediate
        return _binary_memory(cpu, d)
    if code == 11:  # TEST register, register or immediate
        size = d.size
        value = gpr_read(cpu, d.dst, size)
        value &= d.immediate if d.src == OPERAND_IMMEDIATE else gpr_read(cpu, d.src, size)
        set_logic_flags(cpu, value, size)
        return OK
    if code == 12:  # Jcc
        if condition(cpu, d.reg):
            target = (cpu.next_rip + d.immediate) & mask(d.size)
            if cpu.code_mode != 2 and not target_allowed(cpu, target):
                return cpu.fault
            if cpu.code_mode == 2 and (target << 16) >> 16 != target:
                target_allowed(cpu, target)
                return cpu.fault
            cpu.next_rip = target
        return JUMP
    if code == 13:  # JMP relative
        target = cpu.next_rip + d.immediate
        if not target_allowed(cpu, target):
            return cpu.fault
        cpu.next_rip = target
        return JUMP
    if code == 14:  # CALL relative
        target = cpu.next_rip + d.immediate
        if not target_allowed(cpu, target):
            return cpu.fault
        if push(cpu, 8, cpu.next_rip):
            return cpu.fault
        cpu.next_rip = target
        return JUMP
    if code == 15:  # RET
        target = peek(cpu, 8, 0)
        if cpu.fault or not target_allowed(cpu, target):
            return cpu.fault
        cpu.gpr[4] = cpu.gpr[4] + 8
        cpu.next_rip = target
        return JUMP
    if code == 16:  # PUSH register
        return push(cpu, 8, cpu.gpr[d.dst])
    if code == 17:  # POP register
        value = peek(cpu, 8, 0)
        if cpu.fault:
            return cpu.fault
        cpu.gpr[4] = cpu.gpr[4] + 8
        cpu.gpr[d.dst] = value
        return OK
    if code == 18:  # MOVZX, MOVSX, MOVSXD from a register
        op = d.op
        cpu.gpr[d.dst] = extend(op, gpr_read(cpu, d.src, source_size(op))) & mask(d.size)
        return OK
    if code == 19:  # the same from memory
        op = d.op
        size = source_size(op)
        linear = linear_address(cpu, d, size, 0)
        if cpu.fault:
            return cpu.fault
        value = load(cpu, linear, size)
        if cpu.fault == 0:
            cpu.gpr[d.dst] = extend(op, value) & mask(d.size)
        return cpu.fault
    if code == 20:  # INC, DEC register
        size = d.size
        cpu.gpr[d.dst] = step(cpu, cpu.gpr[d.dst] & mask(size), 1 if d.op == 11 else -1, size)
        return OK
    if code == 21:  # SHL, SHR, SAR register, immediate
        size = d.size
        count = d.immediate & (63 if size == 8 else 31)
        value = cpu.gpr[d.dst] & mask(size)
        if count != 0:
            value = shift(cpu, d.op & 31, value, count, size)
        cpu.gpr[d.dst] = value
        return OK
    if code == 22:  # CMOV from a register
        source = d.src if condition(cpu, d.reg) else d.dst
        cpu.gpr[d.dst] = cpu.gpr[source] & mask(d.size)
        return OK
    if code == 23:  # SETcc register
        gpr_write(cpu, d.dst, 1, condition(cpu, d.reg))
        return OK
    return OK  # NOP


@compiled
def _binary_memory(cpu, d):
    """ADD .. CMP with a memory destination."""
    size = d.size
    op = d.op
    linear = linear_address(cpu, d, size, 0 if op == 7 else 1)
    if cpu.fault:
        return cpu.fault
    a = load(cpu, linear, size) if op == 7 else load_for_update(cpu, linear, size)
    if cpu.fault:
        return cpu.fault
    b = d.immediate & mask(size) if d.src == OPERAND_IMMEDIATE else gpr_read(cpu, d.src, size)
    saved_result, saved_carries = cpu.flag_result, cpu.flag_carries
    result = binary(cpu, op, a, b, size)
    if op != 7:
        store(cpu, linear, size, result)
        if cpu.fault:
            cpu.flag_result, cpu.flag_carries = saved_result, saved_carries
    return cpu.fault


@compiled(inline=True)
def _run_block(cpu, block, limit):
    """Execute blocks, starting with this one, for up to `limit` instructions. Returns the status of the last one.

    A near branch inside the page goes straight to its block, if that is decoded; everything else leaves. cpu.rip is
    up to date then.
    """
    rip = cpu.rip
    page = rip
    address = block.first
    end = address + min(block.count, limit) * DECODED_SIZE
    retired = cpu.retired
    last = retired + limit
    status = OK
    while address != end:
        d = DECODED.at(address)
        next_rip = rip + d.length
        cpu.rip = rip
        cpu.next_rip = next_rip
        status = _execute(cpu, d)
        if status == OK:
            retired += 1
            cpu.retired = retired
            rip = next_rip
            address += DECODED_SIZE
            if cpu.code_changed:
                break
        elif status == JUMP:
            retired += 1
            cpu.retired = retired
            rip = cpu.next_rip
            status = OK
            if (rip ^ page) & PAGE_MASK or d.op >> 5 != CONTROL or cpu.code_changed:
                break
            block = neighbour(cpu, block, rip)
            if block.count == 0 or last - retired < block.count:
                break
            address = block.first
            end = address + block.count * DECODED_SIZE
        else:
            break
    if status == OK:
        cpu.rip = rip if cpu.code_mode == 2 else rip & 0xFFFF_FFFF
    return status


@compiled
def _resolve(cpu, status):
    """After an instruction that did not complete normally: OK to go on running, STOP to return to the host."""
    while status == FAULT or status == EPT_EXIT:
        if status == EPT_EXIT:
            cpu.fault = 0
            status = vm_exit(cpu, cpu.ept_reason, cpu.ept_qualification)
        else:
            status = deliver_fault(cpu)
    cpu.fault = 0
    if status == TRAP_EXIT:
        cpu.retired += 1
        status = EXIT
    if status == STOP:
        return STOP
    if status == EXIT and cpu.python_hypervisor:
        return STOP
    return OK


@unit(PROCESSOR)
def run(cpu):
    """Run until something needs the host. Returns cpu.stop (Stop); cpu.limit bounds the retired instructions."""
    cpu.stop = STOP_NONE
    cpu.fault = 0
    while True:
        single = cpu.bus_count
        stepping = 0
        if cpu.attention:
            status = handle_attention(cpu)
            if status == STEP:
                stepping = 1
            elif status != OK:
                if _resolve(cpu, status) == STOP:
                    return cpu.stop
                continue
        if ule(cpu.limit, cpu.retired):
            cpu.stop = STOP_LIMIT
            return STOP_LIMIT
        cpu.fault = 0
        cpu.code_changed = 0
        found = find_block(cpu, cpu.rip)
        if found == 0:
            status = cpu.fault
        else:
            limit = cpu.limit - cpu.retired
            if ult(cpu.preemption_deadline - cpu.retired, limit):
                limit = cpu.preemption_deadline - cpu.retired
            status = _run_block(
                cpu,
                BLOCK.at(found),
                1 if single or stepping else (limit if limit > 0 and limit < RUN else RUN),
            )
            if status == OK:
                if single:
                    forget_bus_answers(cpu)
                if stepping:
                    after_step(cpu)
                if cpu.retired == cpu.preemption_deadline:
                    cpu.attention = 1
                continue
        if _resolve(cpu, status) == STOP:
            return cpu.stop

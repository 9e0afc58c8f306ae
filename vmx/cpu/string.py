"""String instructions and REP: MOVS CMPS STOS LODS SCAS INS OUTS ("String Operations", "Repeating String Operations").

A REP instruction runs in chunks: up to CHUNK elements, and no further than the pages that the first element
touches when it can move them in one piece. After a chunk the registers are up to date; if elements remain, the
instruction is executed again (JUMP to itself), so interrupts and faults arrive between elements. Each chunk counts as
one retired instruction.
"""

from vmx.cpu.alu import sub_flags
from vmx.cpu.breakpoints import STEP_TF, keep_resume_flag, watching
from vmx.cpu.operands import gpr_read, gpr_write, mask, segmented_address
from vmx.cpu.portio import io_permitted, port_in, port_out
from vmx.mmu.access import host_for_read, host_for_write, load, load_for_update, raw_load, raw_store, store
from vmx.mmu.breakpoints import MET
from vmx.mmu.bus import forget_bus_answers
from vmx.state.bits import udiv
from vmx.state.flags import zero
from vmx.state.jit import compiled
from vmx.state.memory import copy_bytes, store64
from vmx.state.processor import (
    DECODED,
    DS,
    ES,
    FLAG_DF,
    FLAG_RF,
    FLAT,
    FS,
    JUMP,
    OK,
    PREFIX_REP,
    PREFIX_REPNE,
    PROCESSOR,
    RAX,
    RCX,
    RDI,
    RDX,
    RSI,
)
from vmx.state.unit import unit
from vmx.virt.conditions import io_exits, io_qualification
from vmx.virt.exit import vm_exit
from vmx.virt.reasons import ExitReason

IO_INSTRUCTION = int(ExitReason.IO_INSTRUCTION)
CHUNK = 4096  # elements
BUS_CHUNK = 16  # elements that use the bus: the host performs each of them, and its limits have to hold


@compiled
def _linear(cpu, segment, offset, size, write):
    if segment == FLAT:
        return offset
    return segmented_address(cpu, segment, offset, size, write)


@compiled
def _destination_segment(cpu):
    return FLAT if cpu.code_mode == 2 else ES


@compiled
def _advance(cpu, d, number, delta):
    """Move RSI or RDI at the address size."""
    gpr_write(cpu, number, d.address_size, gpr_read(cpu, number, d.address_size) + delta)


@compiled
def _element(cpu, d, op, size, delta):
    """One element. Registers change only when nothing faulted."""
    source = gpr_read(cpu, RSI, d.address_size)
    target = gpr_read(cpu, RDI, d.address_size)
    if op == 0:  # MOVS
        source_linear = _linear(cpu, d.segment, source, size, 0)
        if cpu.fault:
            return cpu.fault
        target_linear = _linear(cpu, _destination_segment(cpu), target, size, 1)
        if cpu.fault:
            return cpu.fault
        value = load(cpu, source_linear, size)
        if cpu.fault:
            return cpu.fault
        store(cpu, target_linear, size, value)
        if cpu.fault:
            return cpu.fault
        _advance(cpu, d, RSI, delta)
        _advance(cpu, d, RDI, delta)
    elif op == 1:  # CMPS
        source_linear = _linear(cpu, d.segment, source, size, 0)
        if cpu.fault:
            return cpu.fault
        target_linear = _linear(cpu, _destination_segment(cpu), target, size, 0)
        if cpu.fault:
            return cpu.fault
        a = load(cpu, source_linear, size)
        if cpu.fault:
            return cpu.fault
        b = load(cpu, target_linear, size)
        if cpu.fault:
            return cpu.fault
        sub_flags(cpu, a, b, (a - b) & mask(size), size)
        _advance(cpu, d, RSI, delta)
        _advance(cpu, d, RDI, delta)
    elif op == 2:  # STOS
        linear = _linear(cpu, _destination_segment(cpu), target, size, 1)
        if cpu.fault:
            return cpu.fault
        store(cpu, linear, size, gpr_read(cpu, RAX, size))
        if cpu.fault:
            return cpu.fault
        _advance(cpu, d, RDI, delta)
    elif op == 3:  # LODS
        linear = _linear(cpu, d.segment, source, size, 0)
        if cpu.fault:
            return cpu.fault
        value = load(cpu, linear, size)
        if cpu.fault:
            return cpu.fault
        gpr_write(cpu, RAX, size, value)
        _advance(cpu, d, RSI, delta)
    elif op == 4:  # SCAS
        linear = _linear(cpu, _destination_segment(cpu), target, size, 0)
        if cpu.fault:
            return cpu.fault
        b = load(cpu, linear, size)
        if cpu.fault:
            return cpu.fault
        a = gpr_read(cpu, RAX, size)
        sub_flags(cpu, a, b, (a - b) & mask(size), size)
        _advance(cpu, d, RDI, delta)
    elif op == 5:  # INS
        linear = _linear(cpu, _destination_segment(cpu), target, size, 1)
        if cpu.fault:
            return cpu.fault
        load_for_update(cpu, linear, size)  # the page must be writable before the port is read
        if cpu.fault:
            return cpu.fault
        value = port_in(cpu, cpu.gpr[RDX] & 0xFFFF, size)
        if cpu.fault:
            return cpu.fault
        store(cpu, linear, size, value)
        if cpu.fault:
            return cpu.fault
        _advance(cpu, d, RDI, delta)
    else:  # OUTS
        linear = _linear(cpu, d.segment, source, size, 0)
        if cpu.fault:
            return cpu.fault
        value = load(cpu, linear, size)
        if cpu.fault:
            return cpu.fault
        port_out(cpu, cpu.gpr[RDX] & 0xFFFF, size, value)
        if cpu.fault:
            return cpu.fault
        _advance(cpu, d, RSI, delta)
    return OK


@compiled
def _page_run(linear, size, forward):
    """Elements from `linear` that lie inside its page, in the direction of the copy."""
    if forward:
        return udiv(4096 - (linear & 0xFFF), size)
    return udiv((linear & 0xFFF) + size, size)


@compiled
def _bulk(cpu, d, op, size, count):
    """MOVS and STOS, forwards, inside single pages that the TLB allows: the elements done, 0 when not possible."""
    target_offset = gpr_read(cpu, RDI, d.address_size)
    elements = min(count, CHUNK)
    target = target_offset
    if cpu.code_mode != 2:
        target = segmented_address(cpu, ES, target_offset, size, 1)
        if cpu.fault:
            return 0
        limit = udiv(
            cpu.segments[ES].limit - target_offset + 1, size
        )  # expand-down segments go element by element
        if cpu.segments[ES].access & 0xC == 4:
            return 0
        elements = min(elements, limit)
    elements = min(elements, _page_run(target, size, 1))
    if d.address_size != 8:  # RDI wraps at the address size
        elements = min(elements, udiv(mask(d.address_size) - target_offset + 1, size))
    source = 0
    if op == 0:
        source_offset = gpr_read(cpu, RSI, d.address_size)
        source = source_offset
        if d.segment != FLAT:
            source = segmented_address(cpu, d.segment, source_offset, size, 0)
            if cpu.fault:
                return 0
            if cpu.code_mode != 2:
                if cpu.segments[d.segment].access & 0xC == 4:
                    return 0
                elements = min(elements, udiv(cpu.segments[d.segment].limit - source_offset + 1, size))
        elements = min(elements, _page_run(source, size, 1))
        if d.address_size != 8:
            elements = min(elements, udiv(mask(d.address_size) - source_offset + 1, size))
    if elements < 2:
        return 0
    bytes_ = elements * size
    target_host = host_for_write(cpu, target, bytes_)
    if target_host == 0:
        return 0
    if op == 0:
        source_host = host_for_read(cpu, source, bytes_)
        if source_host == 0:
            return 0
        gap = target_host - source_host
        if gap > 0 and gap < bytes_:
            # overlapping forwards: elements propagate as the manual's element-by-element order says
            for i in range(elements):
                raw_store(target_host + i * size, size, raw_load(source_host + i * size, size))
        else:
            copy_bytes(target_host, source_host, bytes_)
        _advance(cpu, d, RSI, bytes_)
    else:
        value = gpr_read(cpu, RAX, size)
        if size == 1:
            value *= 0x0101_0101_0101_0101
        elif size == 2:
            value *= 0x0001_0001_0001_0001
        elif size == 4:
            value |= value << 32
        done = 0
        while done + 8 <= bytes_:
            store64(target_host + done, value)
            done += 8
        while done < bytes_:
            raw_store(target_host + done, size, value)
            done += size
    _advance(cpu, d, RDI, bytes_)
    return elements


@compiled
def _repeat(cpu, d, op, size, delta):
    count = gpr_read(cpu, RCX, d.address_size)
    if count == 0:
        return OK
    single = cpu.step_trap & STEP_TF  # a single-step trap follows every iteration
    if delta > 0 and single == 0 and (op == 0 or op == 2) and (count >= 2 or count < 0):
        wanted = count if count > 0 else CHUNK
        done = _bulk(cpu, d, op, size, wanted)
        cpu.fault = 0  # a fault is found again, and reported, by the single element below
        if done > 0:
            gpr_write(cpu, RCX, d.address_size, count - done)
            if count != done:
                cpu.next_rip = cpu.rip
            return JUMP
    until = 0
    if op == 1 or op == 4:
        until = 1 if d.prefixes & PREFIX_REP else 2
    for _ in range(CHUNK):
        status = _element(cpu, d, op, size, delta)
        if status:
            return status  # the elements before it are done; the instruction is restarted at this one
        served = cpu.bus_count
        forget_bus_answers(cpu)
        count -= 1
        gpr_write(cpu, RCX, d.address_size, count)
        if count == 0:
            return JUMP
        if until == 1 and zero(cpu) == 0:
            return JUMP
        if until == 2 and zero(cpu) == 1:
            return JUMP
        if cpu.code_changed or single or cpu.pending_debug & MET:
            break
        if served:
            # an access of the bus restarts the instruction, so the elements since its start do not tell
            cpu.bus_elements += 1
            if cpu.bus_elements & (BUS_CHUNK - 1) == 0:
                break
    cpu.next_rip = cpu.rip
    if watching(cpu):
        cpu.rflags |= FLAG_RF
        keep_resume_flag(cpu)
    return JUMP


@compiled
def _io_exit(cpu, d, op, port, size, repeated):
    """The VM exit of INS and OUTS: linear address and instruction information as the manual lays down."""
    segment = ES if op == 5 else d.segment
    offset = gpr_read(cpu, RDI if op == 5 else RSI, d.address_size)
    base = 0 if segment == FLAT or (cpu.code_mode == 2 and segment < FS) else cpu.segments[segment].base
    cpu.exit_linear = base + offset
    address_code = 2 if d.address_size == 8 else d.address_size >> 2
    cpu.exit_instruction_info = address_code << 7 | (DS if segment == FLAT else segment) << 15
    cpu.exit_length = d.length
    is_in = 1 if op == 5 else 0
    return vm_exit(cpu, IO_INSTRUCTION, io_qualification(size, is_in, 1, repeated, 0, port))


@unit(PROCESSOR, DECODED)
def group_string(cpu, d):
    """Operations 0..6 of the STRING group."""
    op = d.op & 31
    size = d.size
    delta = -size if cpu.rflags & FLAG_DF else size
    repeated = d.prefixes & (PREFIX_REP | PREFIX_REPNE)
    if op >= 5:
        # I/O permission and VM exits come before any element
        if repeated and gpr_read(cpu, RCX, d.address_size) == 0:
            return OK
        port = cpu.gpr[RDX] & 0xFFFF
        if not io_permitted(cpu, port, size):
            return cpu.fault
        if io_exits(cpu, port, size):
            return _io_exit(cpu, d, op, port, size, 1 if repeated else 0)
    if repeated:
        return _repeat(cpu, d, op, size, delta)
    return _element(cpu, d, op, size, delta)

"""MMX and SSE to SSE4.2: checks, operands, moves and bitwise operations here; everything else by native stubs.

SDM volume 1, "Programming with Intel MMX Technology" to "Programming with SSE2"; volume 2, "Exceptions" of
each instruction. Order: #UD (CR0.EM, CR4.OSFXSR), #NM (CR0.TS), pending #MF for MMX, then the memory
operand's faults (with #GP for misalignment), then #XM.
"""

from vmx.cpu.native import (
    ACTIONS,
    BLOCK,
    BLOCK_ALIGNMENT,
    GENERAL,
    MM,
    VECTOR_ENTRY,
    VECTOR_TABLE,
    XMM,
)
from vmx.cpu.operands import linear_address, plus, raise_fault
from vmx.isa.operations import OPERATION
from vmx.isa.table import TABLE
from vmx.mmu.access import check_write, host_for_read, host_for_write, load, raw_load, raw_store, store
from vmx.state.flags import set_status_flags
from vmx.state.jit import compiled
from vmx.state.memory import (
    call1,
    copy_bytes,
    load8,
    load16,
    load32,
    load64,
    store8,
    store16,
    store32,
    store64,
)
from vmx.state.processor import (
    CR0_EM,
    CR0_NE,
    CR0_TS,
    CR4_OSFXSR,
    CR4_OSXMMEXCPT,
    DECODED,
    DS,
    FLAT,
    GP,
    MF,
    NM,
    OK,
    PREFIX_SEGMENT,
    PROCESSOR,
    RAX,
    RCX,
    RDI,
    RDX,
    STOP,
    UD,
    XM,
    NotModelled,
    Stop,
)
from vmx.state.unit import unit

FEATURES = (
    "FPU",
    "MMX",
    "FXSR",
    "SSE",
    "SSE2",
    "CLFSH",
)  # CPUID.01H:EDX bits that this folder's code stands for

# offsets in the FXSAVE image
FX_CONTROL, FX_STATUS, FX_TAGS, FX_OPCODE, FX_IP, FX_DP, FX_MXCSR, FX_MXCSR_MASK = 0, 2, 4, 6, 8, 16, 24, 28
FX_ST, FX_XMM = 32, 160
STATUS_ES, STATUS_B = 0x80, 0x8000

MXCSR_MASK = 0xFFFF  # writable bits of MXCSR
MXCSR_FLAGS, MXCSR_MASKS = 0x3F, 0x1F80
MXCSR_UM, MXCSR_FZ = 1 << 11, 1 << 15
PRE_COMPUTATION = 7  # IE, DE, ZE: found before there is a result
UNDERFLOW_FLAG = 16

FIRST_ROW = next(row.number for row in TABLE.rows if row.operation == OPERATION["VECTOR"])
ENTRY_SIZE = VECTOR_ENTRY.size
FX_OFFSET = PROCESSOR.offset("fx")
GPR_OFFSET = PROCESSOR.offset("gpr")
BLOCK_OFFSET = PROCESSOR.offset("vector_block")
REG_OFFSET, RM_OFFSET = BLOCK.offset("reg"), BLOCK.offset("rm")
DECODED_COPY = BLOCK.offset("x87")  # space in the block that vector instructions do not use
DECODED_SIZE = DECODED.size
IMPLICIT = BLOCK.offset("x87")  # there too: XMM0 that a blend reads
RAX_IN, RDX_IN, RCX_OUT, XMM0_OUT = IMPLICIT, IMPLICIT + 8, IMPLICIT + 16, IMPLICIT + 32  # string comparison
(STUB, MOVE, AND, ANDN, OR, XOR, MASKED_STORE, LDMXCSR, STMXCSR, CLFLUSH, FENCE, PREFETCH, EMMS, EXTRACT,
 STRING) = range(len(ACTIONS))  # fmt: skip
STOP_NOT_MODELLED, WITHOUT_STUBS = int(Stop.NOT_MODELLED), int(NotModelled.HOST_WITHOUT_VECTOR_STUBS)


@compiled
def fx_address(cpu):
    """The host address of the FXSAVE image in the record."""
    return PROCESSOR.address(cpu) + FX_OFFSET


@compiled
def block_address(cpu):
    """The host address of the argument block for stubs."""
    return (PROCESSOR.address(cpu) + BLOCK_OFFSET + BLOCK_ALIGNMENT - 1) & -BLOCK_ALIGNMENT


@compiled
def without_stubs(cpu):
    """This host cannot run the instruction: stop, and say so."""
    cpu.stop = STOP_NOT_MODELLED
    cpu.stop_detail = WITHOUT_STUBS
    cpu.fault = STOP
    return STOP


# --- memory operands ----------------------------------------------------------------------------------------


@compiled
def _copy(target, source, size):
    """Copy 1 to 16 bytes between host addresses; without a call for the usual sizes."""
    if size == 16:
        low = load64(source)
        high = load64(source + 8)
        store64(target, low)
        store64(target + 8, high)
    elif size == 8:
        store64(target, load64(source))
    elif size == 4:
        store32(target, load32(source))
    else:
        copy_bytes(target, source, size)


@compiled
def load_bytes(cpu, linear, size, target):
    """Load 1 to 16 bytes into host memory; `cpu.fault` tells whether they arrived."""
    host = host_for_read(cpu, linear, size)
    if host:
        _copy(target, host, size)
        return
    done = 0
    while done < size:
        left = size - done
        piece = 8 if left >= 8 else 4 if left >= 4 else 2 if left >= 2 else 1
        value = load(cpu, plus(cpu, linear, done), piece)
        if cpu.fault:
            return
        raw_store(target + done, piece, value)
        done += piece


@compiled
def store_bytes(cpu, linear, size, source):
    """Store 1 to 16 bytes from host memory: all, or none and `cpu.fault` is set."""
    host = host_for_write(cpu, linear, size)
    if host:
        _copy(host, source, size)
        return
    if not check_write(cpu, linear, size):
        return
    done = 0
    while done < size:
        left = size - done
        piece = 8 if left >= 8 else 4 if left >= 4 else 2 if left >= 2 else 1
        store(cpu, plus(cpu, linear, done), piece, raw_load(source + done, piece))
        if cpu.fault:
            return
        done += piece


@compiled
def _operand_address(cpu, d, row, size, write):
    """The linear address of the memory operand; #GP where 16 bytes must be aligned and are not."""
    linear = linear_address(cpu, d, size, write)
    if cpu.fault == 0 and row.aligned and linear & 15:
        raise_fault(cpu, GP, 0)
    return linear


# --- registers ----------------------------------------------------------------------------------------------


@compiled
def register_address(cpu, kind, number):
    """The host address of a register. MMX register i is x87 register i, wherever the top of the stack is."""
    if kind == XMM:
        return PROCESSOR.address(cpu) + FX_OFFSET + FX_XMM + (number << 4)
    if kind == GENERAL:
        return PROCESSOR.address(cpu) + GPR_OFFSET + (number << 3)
    top = load16(fx_address(cpu) + FX_STATUS) >> 11 & 7
    return PROCESSOR.address(cpu) + FX_OFFSET + FX_ST + ((number - top & 7) << 4)


@compiled
def rotate_stack(fx, count):
    """Lower the top of the x87 stack by `count`: the image is in stack order, so its registers move."""
    while count > 0:
        low = load64(fx + FX_ST + 112)
        high = load64(fx + FX_ST + 120)
        copy_bytes(fx + FX_ST + 16, fx + FX_ST, 112)
        store64(fx + FX_ST, low)
        store64(fx + FX_ST + 8, high)
        count -= 1


@compiled
def enter_mmx(cpu):
    """What every MMX instruction does to the x87 state: all registers valid, top of stack 0."""
    fx = fx_address(cpu)
    status = load16(fx + FX_STATUS)
    top = status >> 11 & 7
    rotate_stack(fx, top)
    store16(fx + FX_STATUS, status & ~0x3800)
    store8(fx + FX_TAGS, 0xFF)


@compiled
def _copy_register(cpu, kind, number, target):
    """Copy a register operand into the block."""
    source = register_address(cpu, kind, number)
    store64(target, load64(source))
    if kind == XMM:
        store64(target + 8, load64(source + 8))


@compiled
def _write_register(cpu, kind, number, source):
    """Copy a result from the block into a register. MMX sets bits 79:64 of the x87 register."""
    target = register_address(cpu, kind, number)
    store64(target, load64(source))
    if kind == XMM:
        store64(target + 8, load64(source + 8))
    elif kind == MM:
        store16(target + 8, 0xFFFF)


# --- execution ----------------------------------------------------------------------------------------------


@compiled
def pending_x87_exception(cpu):
    """1 when an unmasked x87 exception waits and is to be reported as #MF (CR0.NE)."""
    fx = fx_address(cpu)
    unmasked = load16(fx + FX_STATUS) & ~load16(fx + FX_CONTROL) & 0x3F
    return 1 if unmasked and cpu.cr0 & CR0_NE else 0


@compiled
def _check(cpu, d, row):
    """Whether the instruction is available now: #UD, #NM, #MF."""
    if row.os_support == 0:
        return OK
    if cpu.cr0 & CR0_EM:
        return raise_fault(cpu, UD, 0)
    if (row.mmx == 0 or row.reg_kind == XMM or row.rm_kind == XMM) and cpu.cr4 & CR4_OSFXSR == 0:
        return raise_fault(cpu, UD, 0)
    if cpu.cr0 & CR0_TS:
        return raise_fault(cpu, NM, 0)
    if row.mmx and pending_x87_exception(cpu):
        return raise_fault(cpu, MF, 0)
    return OK


@compiled
def _rm_number(d):
    return d.modrm & 7 | (d.rex & 1) << 3


@compiled
def _number(kind, number):
    return number & 7 if kind == MM else number


@compiled
def _move(cpu, d, row, block):
    """Copy an operand of 1 to 16 bytes: loads, stores, and moves between registers of any two kinds."""
    size = row.wide_size if d.rex & 8 else row.size
    memory = d.modrm < 0xC0
    rm = _rm_number(d)
    reg = _number(row.reg_kind, d.reg)
    source = block + RM_OFFSET
    if row.writes_rm:
        source = register_address(cpu, row.reg_kind, reg) + row.source_offset
        if memory:
            linear = _operand_address(cpu, d, row, size, 1)
            if cpu.fault == 0:
                store_bytes(cpu, linear, size, source)
            if cpu.fault:
                return cpu.fault
            if row.mmx:
                enter_mmx(cpu)
            return OK
        kind = row.rm_kind
        number = _number(kind, rm)
    else:
        if memory:
            linear = _operand_address(cpu, d, row, size, 0)
            if cpu.fault == 0:
                load_bytes(cpu, linear, size, source)
            if cpu.fault:
                return cpu.fault
        else:
            source = register_address(cpu, row.rm_kind, _number(row.rm_kind, rm)) + row.source_offset
        kind = row.reg_kind
        number = reg
    low = load32(source) if size == 4 else load64(source)
    high = load64(source + 8) if size == 16 else 0
    if row.mmx:
        enter_mmx(cpu)
    target = register_address(cpu, kind, number) + row.target_offset
    if kind != XMM:
        store64(target, low)
        if kind == MM:
            store16(target + 8, 0xFFFF)
    elif size == 16 or row.zeroes:
        store64(target, low)
        store64(target + 8, high)
    elif size == 4:
        store32(target, low)
    else:
        store64(target, low)
    return OK


@compiled
def _move_xmm(cpu, d, row):
    """The usual case of a 16-byte move: no TLB miss, no fault. Returns 0 when nothing was done."""
    fx = fx_address(cpu) + FX_XMM
    register = fx + (d.reg << 4)
    other = fx + (_rm_number(d) << 4)
    if d.modrm < 0xC0:
        linear = linear_address(cpu, d, 16, row.writes_rm)
        if cpu.fault or row.aligned and linear & 15:
            cpu.fault = 0
            return 0
        other = host_for_write(cpu, linear, 16) if row.writes_rm else host_for_read(cpu, linear, 16)
        if other == 0:
            return 0
    if row.writes_rm:
        _copy(other, register, 16)
    else:
        _copy(register, other, 16)
    return 1


@compiled
def _gather(cpu, d, row, block):
    """Copy the operands of a stub into the block. Returns 0, or the status of a fault."""
    if d.modrm < 0xC0:
        size = row.wide_size if d.rex & 8 else row.size
        linear = _operand_address(cpu, d, row, size, 0)
        if cpu.fault == 0:
            store64(block + RM_OFFSET, 0)
            store64(block + RM_OFFSET + 8, 0)
            load_bytes(cpu, linear, size, block + RM_OFFSET)
        if cpu.fault:
            return cpu.fault
    else:
        _copy_register(cpu, row.rm_kind, _number(row.rm_kind, _rm_number(d)), block + RM_OFFSET)
    if row.reg_kind:
        _copy_register(cpu, row.reg_kind, _number(row.reg_kind, d.reg), block + REG_OFFSET)
    return 0


@compiled
def _scatter(cpu, d, row, block):
    """Write the result of a stub."""
    if row.mmx and not (row.reg_kind == XMM and row.numeric == 0 and d.modrm < 0xC0):
        enter_mmx(cpu)  # not by CVTPI2PD from memory
    if row.writes_flags:
        set_status_flags(cpu, BLOCK.at(block).flags)
    elif row.writes_rm:
        _write_register(cpu, row.rm_kind, _number(row.rm_kind, _rm_number(d)), block + RM_OFFSET)
    else:
        _write_register(cpu, row.reg_kind, _number(row.reg_kind, d.reg), block + REG_OFFSET)


@compiled
def _simd_exceptions(cpu, stub, block, reg_low, reg_high):
    """Run a numeric stub with all exceptions masked. Returns 0, or the status of #XM; flags go to MXCSR.

    "SIMD Floating-Point Exception Conditions": an unmasked exception leaves the destination as it was. When
    one is found before computation, flags of results are not set. An unmasked underflow needs a tiny result
    only, a masked one also inexactness: a run with flush-to-zero tells tiny results from others.
    """
    arguments = BLOCK.at(block)
    fx = fx_address(cpu)
    mxcsr = load32(fx + FX_MXCSR)
    run_with = mxcsr & MXCSR_MASK & ~MXCSR_FLAGS | MXCSR_MASKS
    tiny = 0
    if mxcsr & MXCSR_UM == 0:
        arguments.mxcsr = run_with | MXCSR_FZ
        call1(stub, block)
        tiny = arguments.mxcsr_out & UNDERFLOW_FLAG
        store64(block + REG_OFFSET, reg_low)
        store64(block + REG_OFFSET + 8, reg_high)
        run_with &= ~MXCSR_FZ  # ignored while underflow is unmasked
    arguments.mxcsr = run_with
    call1(stub, block)
    flags = arguments.mxcsr_out & MXCSR_FLAGS | tiny
    unmasked = flags & ~(mxcsr >> 7)
    if unmasked & PRE_COMPUTATION:
        flags &= PRE_COMPUTATION
    store32(fx + FX_MXCSR, mxcsr | flags)
    if unmasked:
        return raise_fault(cpu, XM if cpu.cr4 & CR4_OSXMMEXCPT else UD, 0)
    return 0


@compiled
def _stub_of(d, row):
    """The stub for REX.W and the immediate."""
    immediate = d.immediate & (0xFF if d.modrm >= 0xC0 else row.memory_immediate)
    return (row.wide_stub if d.rex & 8 else row.stub) + row.stride * immediate


@compiled
def _by_stub(cpu, d, row, block):
    """The host's own instruction on copies of the operands."""
    if _gather(cpu, d, row, block):
        return cpu.fault
    if row.implicit:
        _copy_register(cpu, XMM, 0, block + IMPLICIT)
    stub = _stub_of(d, row)
    if row.numeric:
        if _simd_exceptions(cpu, stub, block, load64(block + REG_OFFSET), load64(block + REG_OFFSET + 8)):
            return cpu.fault
    else:
        call1(stub, block)
    _scatter(cpu, d, row, block)
    return OK


@compiled
def _extract(cpu, d, row, block):
    """PEXTRB to PEXTRQ, EXTRACTPS: an element to a general register or to memory."""
    size = row.wide_size if d.rex & 8 else row.size
    _copy_register(cpu, XMM, d.reg, block + REG_OFFSET)
    call1(_stub_of(d, row), block)
    if d.modrm >= 0xC0:
        _write_register(cpu, GENERAL, _rm_number(d), block + RM_OFFSET)
        return OK
    linear = _operand_address(cpu, d, row, size, 1)
    if cpu.fault == 0:
        store_bytes(cpu, linear, size, block + RM_OFFSET)
    return cpu.fault


@compiled
def _compare_strings(cpu, d, row, block):
    """PCMPESTRI, PCMPESTRM, PCMPISTRI, PCMPISTRM: an index in RCX or a mask in XMM0, and the status flags."""
    if _gather(cpu, d, row, block):
        return cpu.fault
    store64(block + RAX_IN, cpu.gpr[RAX])
    store64(block + RDX_IN, cpu.gpr[RDX])
    call1(_stub_of(d, row), block)
    set_status_flags(cpu, BLOCK.at(block).flags)
    if d.opcode & 1:
        cpu.gpr[RCX] = load64(block + RCX_OUT)
    else:
        _write_register(cpu, XMM, 0, block + XMM0_OUT)
    return OK


@compiled
def _bitwise(action, a, b):
    if action == AND:
        return a & b
    if action == ANDN:
        return ~a & b
    if action == OR:
        return a | b
    return a ^ b


@compiled
def _bitwise_operation(cpu, d, row, block):
    """PAND, XORPS and their kind."""
    if _gather(cpu, d, row, block):
        return cpu.fault
    arguments = BLOCK.at(block)
    action = row.action
    arguments.reg[0] = _bitwise(action, arguments.reg[0], arguments.rm[0])
    arguments.reg[1] = _bitwise(action, arguments.reg[1], arguments.rm[1])
    _scatter(cpu, d, row, block)
    return OK


@compiled
def _masked_store(cpu, d, row, block):
    """MASKMOVDQU, MASKMOVQ: bytes of the first operand whose mask byte has bit 7 set, to DS:rDI."""
    size = 16 if row.reg_kind == XMM else 8
    copy_bytes(block + DECODED_COPY, DECODED.address(d), DECODED_SIZE)
    destination = DECODED.at(block + DECODED_COPY)
    destination.base = RDI
    if d.prefixes & PREFIX_SEGMENT == 0 and d.segment != FLAT:
        destination.segment = DS
    linear = linear_address(cpu, destination, size, 1)
    if cpu.fault:
        return cpu.fault
    data = register_address(cpu, row.reg_kind, _number(row.reg_kind, d.reg))
    mask = register_address(cpu, row.rm_kind, _number(row.rm_kind, _rm_number(d)))
    # bytes on the second page are checked only where the mask asks for them
    for i in range(size):
        if load8(mask + i) & 0x80 and not check_write(cpu, plus(cpu, linear, i), 1):
            return cpu.fault
    for i in range(size):
        if load8(mask + i) & 0x80:
            store(cpu, plus(cpu, linear, i), 1, load8(data + i))
            if cpu.fault:
                return cpu.fault
    if row.mmx:
        enter_mmx(cpu)
    return OK


@compiled
def _load_mxcsr(cpu, d):
    """LDMXCSR: #GP for reserved bits."""
    linear = linear_address(cpu, d, 4, 0)
    value = 0
    if cpu.fault == 0:
        value = load(cpu, linear, 4)
    if cpu.fault:
        return cpu.fault
    if value & ~MXCSR_MASK:
        return raise_fault(cpu, GP, 0)
    store32(fx_address(cpu) + FX_MXCSR, value)
    return OK


@compiled
def _store_mxcsr(cpu, d):
    """STMXCSR."""
    linear = linear_address(cpu, d, 4, 1)
    if cpu.fault == 0:
        store(cpu, linear, 4, load32(fx_address(cpu) + FX_MXCSR))
    return cpu.fault


@compiled
def _flush_line(cpu, d):
    """CLFLUSH: there are no caches; it faults like a byte load."""
    linear = linear_address(cpu, d, 1, 0)
    if cpu.fault == 0:
        load(cpu, linear, 1)
    return cpu.fault


@compiled
def _end_mmx(cpu):
    """EMMS: all x87 registers are empty."""
    enter_mmx(cpu)
    store8(fx_address(cpu) + FX_TAGS, 0)
    return OK


@unit(PROCESSOR, DECODED)
def execute_vector(cpu, d):
    """One vector instruction; `d.row` is its row in the instruction table."""
    if cpu.host_vector_stubs == 0:
        return without_stubs(cpu)
    row = VECTOR_ENTRY.at(cpu.host_vector_stubs + VECTOR_TABLE + (d.row - FIRST_ROW) * ENTRY_SIZE)
    if _check(cpu, d, row):
        return cpu.fault
    block = block_address(cpu)
    action = row.action
    if action == MOVE:
        if row.size == 16 and _move_xmm(cpu, d, row):
            return OK
        return _move(cpu, d, row, block)
    if action == STUB:
        return _by_stub(cpu, d, row, block)
    if action <= XOR:
        return _bitwise_operation(cpu, d, row, block)
    if action == MASKED_STORE:
        return _masked_store(cpu, d, row, block)
    if action == LDMXCSR:
        return _load_mxcsr(cpu, d)
    if action == STMXCSR:
        return _store_mxcsr(cpu, d)
    if action == CLFLUSH:
        return _flush_line(cpu, d)
    if action == EMMS:
        return _end_mmx(cpu)
    if action == EXTRACT:
        return _extract(cpu, d, row, block)
    if action == STRING:
        return _compare_strings(cpu, d, row, block)
    return OK  # fences and prefetches: memory is ordered here, and there are no caches

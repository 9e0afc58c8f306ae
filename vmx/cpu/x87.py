"""x87: control words and environments here, arithmetic by native stubs on the guest's registers.

SDM volume 1, "Programming with the x87 FPU". The state is the FXSAVE image `cpu.fx`: registers in stack
order, one tag bit for each physical register. Stubs run on a copy with the guest's own control word: unmasked
x87 exceptions do not interrupt the instruction that finds them but the next waiting one, and no stub contains
a second. So results, scaled results and untouched operands of unmasked exceptions are the host's.
"""

from vmx.cpu.native import BLOCK, X87_MEMORY_TABLE, X87_REGISTER_TABLE
from vmx.cpu.operands import effective_address, linear_address, plus, raise_fault
from vmx.cpu.vector import (
    FX_CONTROL,
    FX_DP,
    FX_IP,
    FX_MXCSR,
    FX_OPCODE,
    FX_ST,
    FX_STATUS,
    FX_TAGS,
    FX_XMM,
    MXCSR_MASKS,
    RM_OFFSET,
    STATUS_B,
    STATUS_ES,
    block_address,
    fx_address,
    load_bytes,
    pending_x87_exception,
    rotate_stack,
    store_bytes,
    without_stubs,
)
from vmx.mmu.access import check_write, host_for_read, host_for_write, load, store
from vmx.mmu.physical import host_of
from vmx.mmu.translate import READ, WRITE, translate
from vmx.state.flags import set_status_flags, status_flags
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
    CR0_MP,
    CR0_PE,
    CR0_TS,
    DECODED,
    FLAG_VM,
    MF,
    NM,
    OK,
    PREFIX_OPERAND_SIZE,
    PROCESSOR,
    RAX,
    UD,
)
from vmx.state.unit import unit

X87_OFFSET = BLOCK.offset("x87")
EXCEPTIONS = 0x3F  # of the status word, and their masks in the control word
STATUS_CLEARED = 0x80FF  # by FNCLEX: B, ES, SF and the exceptions
PREVENTS_STORE = 0x1F  # unmasked exceptions other than precision leave a memory destination as it was
CONTROL_WRITABLE, CONTROL_ONES = 0x1F3F, 0x40
INITIAL_CONTROL = 0x37F
ARITHMETIC_STATUS = 0x8D5


@compiled
def summarize(cpu):
    """ES and B follow from the exception flags and their masks."""
    fx = fx_address(cpu)
    status = load16(fx + FX_STATUS)
    if status & ~load16(fx + FX_CONTROL) & EXCEPTIONS:
        status |= STATUS_ES | STATUS_B
    else:
        status &= ~(STATUS_ES | STATUS_B)
    store16(fx + FX_STATUS, status)


@compiled
def set_control(cpu, value):
    """Load the control word."""
    store16(fx_address(cpu) + FX_CONTROL, value & CONTROL_WRITABLE | CONTROL_ONES)
    summarize(cpu)


@compiled
def initialize(cpu):
    """FNINIT: control, status, tags and pointers; registers keep their bits."""
    fx = fx_address(cpu)
    status = load16(fx + FX_STATUS)
    rotate_stack(fx, status >> 11 & 7)
    store16(fx + FX_CONTROL, INITIAL_CONTROL)
    store16(fx + FX_STATUS, 0)
    store16(fx + FX_TAGS, 0)
    store16(fx + FX_OPCODE, 0)
    store64(fx + FX_IP, 0)
    store64(fx + FX_DP, 0)


# --- tag word and environment -------------------------------------------------------------------------------


@compiled
def _tag(cpu, register):
    """The two-bit tag of a physical register: 0 valid, 1 zero, 2 special, 3 empty."""
    fx = fx_address(cpu)
    if load8(fx + FX_TAGS) >> register & 1 == 0:
        return 3
    top = load16(fx + FX_STATUS) >> 11 & 7
    value = fx + FX_ST + ((register - top & 7) << 4)
    significand = load64(value)
    exponent = load16(value + 8) & 0x7FFF
    if exponent == 0 and significand == 0:
        return 1
    if exponent == 0 or exponent == 0x7FFF or significand >= 0:  # bit 63 is the integer bit
        return 2
    return 0


@compiled
def _tag_word(cpu):
    word = 0
    for register in range(8):
        word |= _tag(cpu, register) << (2 * register)
    return word


@compiled
def _set_tag_word(cpu, word):
    """Only "empty" is kept: the rest follows from the registers."""
    tags = 0
    for register in range(8):
        if word >> (2 * register) & 3 != 3:
            tags |= 1 << register
    store8(fx_address(cpu) + FX_TAGS, tags)


@compiled
def _wide(d, cpu):
    """1: 32-bit environment layout, 0: 16-bit."""
    if cpu.code_mode == 0:
        return 1 if d.prefixes & PREFIX_OPERAND_SIZE else 0
    return 0 if d.prefixes & PREFIX_OPERAND_SIZE else 1


@compiled
def _protected(cpu):
    return cpu.cr0 & CR0_PE != 0 and cpu.rflags & FLAG_VM == 0


@compiled
def _write_environment(cpu, wide, target):
    """FNSTENV's 28 or 14 bytes ("x87 FPU Instruction and Data (Operand) Pointers", the four figures).

    Selectors are saved as zero: CPUID reports that FCS and FDS are deprecated.
    """
    fx = fx_address(cpu)
    step = 4 if wide else 2
    ones = 0xFFFF_0000 if wide else 0
    ip = load32(fx + FX_IP)
    dp = load32(fx + FX_DP)
    opcode = load16(fx + FX_OPCODE) & 0x7FF
    put(target, wide, ones | load16(fx + FX_CONTROL))
    put(target + step, wide, ones | load16(fx + FX_STATUS))
    put(target + 2 * step, wide, ones | _tag_word(cpu))
    if _protected(cpu):
        put(target + 3 * step, wide, ip)
        if wide:
            put(target + 16, wide, opcode << 16)
            put(target + 20, wide, dp)
            put(target + 24, wide, ones)
        else:
            put(target + 8, wide, 0)
            put(target + 10, wide, dp)
            put(target + 12, wide, 0)
    else:
        put(target + 3 * step, wide, ip & 0xFFFF | (ones if wide else 0))
        if wide:
            put(target + 16, wide, (ip & 0xFFFF_0000) >> 4 | opcode)
            put(target + 20, wide, dp & 0xFFFF | ones)
            put(target + 24, wide, (dp & 0xFFFF_0000) >> 4)
        else:
            put(target + 8, wide, (ip & 0xF_0000) >> 4 | opcode)
            put(target + 10, wide, dp)
            put(target + 12, wide, (dp & 0xF_0000) >> 4)


@compiled
def put(target, wide, value):
    if wide:
        store32(target, value)
    else:
        store16(target, value)


@compiled
def get(source, wide):
    return load32(source) if wide else load16(source)


@compiled
def _read_environment(cpu, wide, source):
    """FLDENV: everything but the registers. The image's order of registers follows the new top of stack."""
    fx = fx_address(cpu)
    step = 4 if wide else 2
    old_top = load16(fx + FX_STATUS) >> 11 & 7
    status = get(source + step, wide) & 0xFFFF
    ip = get(source + 3 * step, wide)
    second = get(source + 4 * step, wide)
    dp = get(source + 5 * step, wide)
    last = get(source + 6 * step, wide)
    opcode = 0
    if _protected(cpu):
        opcode = second >> 16 & 0x7FF
    else:
        opcode = second & 0x7FF
        ip = ip & 0xFFFF | (second & 0xFFFF_F000) << 4 & 0xFFFF_0000
        dp = dp & 0xFFFF | (last & 0xFFFF_F000) << 4 & 0xFFFF_0000
    rotate_stack(fx, old_top - (status >> 11 & 7) & 7)
    store16(fx + FX_STATUS, status)
    _set_tag_word(cpu, get(source + 2 * step, wide) & 0xFFFF)
    store16(fx + FX_OPCODE, opcode)
    store64(fx + FX_IP, ip)
    store64(fx + FX_DP, dp)
    set_control(cpu, get(source, wide) & 0xFFFF)


# --- areas of more than 16 bytes ----------------------------------------------------------------------------


@compiled
def piece_size(linear, left):
    """Bytes of the next access of an area: up to 8, inside a page."""
    room = 4096 - (linear & 0xFFF)
    size = 8 if left >= 8 else 4 if left >= 4 else 2 if left >= 2 else 1
    while size > room:
        size >>= 1
    return size


@compiled
def load_area(cpu, linear, size, target):
    """Load an area into host memory. Outside RAM there is nothing to load: it reads as ones."""
    host = host_for_read(cpu, linear, size)
    if host:
        copy_bytes(target, host, size)
        return
    done = 0
    while done < size:
        at = plus(cpu, linear, done)
        piece = piece_size(at, size - done)
        if translate(cpu, at, READ):
            return
        value = -1
        if host_of(cpu, cpu.walk_hpa):
            value = load(cpu, at, piece)
        if piece == 8:
            store64(target + done, value)
        elif piece == 4:
            store32(target + done, value)
        elif piece == 2:
            store16(target + done, value)
        else:
            store8(target + done, value)
        done += piece


@compiled
def store_area(cpu, linear, size, source):
    """Store an area of less than a page from host memory: all or nothing. Outside RAM it is ignored."""
    host = host_for_write(cpu, linear, size)
    if host:
        copy_bytes(host, source, size)
        return
    if not check_write(cpu, linear, size):
        return
    done = 0
    while done < size:
        at = plus(cpu, linear, done)
        piece = piece_size(at, size - done)
        if translate(cpu, at, WRITE):
            return
        if host_of(cpu, cpu.walk_hpa):
            value = load8(source + done)
            if piece == 8:
                value = load64(source + done)
            elif piece == 4:
                value = load32(source + done)
            elif piece == 2:
                value = load16(source + done)
            store(cpu, at, piece, value)
        done += piece


# --- instructions without a stub ----------------------------------------------------------------------------


@compiled
def _store_environment(cpu, d):
    """FNSTENV: afterwards all exceptions are masked."""
    wide = _wide(d, cpu)
    size = 28 if wide else 14
    linear = linear_address(cpu, d, size, 1)
    area = block_address(cpu) + X87_OFFSET
    _write_environment(cpu, wide, area)
    if cpu.fault == 0:
        store_area(cpu, linear, size, area)
    if cpu.fault == 0:
        set_control(cpu, load16(fx_address(cpu) + FX_CONTROL) | EXCEPTIONS)
    return cpu.fault


@compiled
def _load_environment(cpu, d):
    """FLDENV."""
    wide = _wide(d, cpu)
    size = 28 if wide else 14
    linear = linear_address(cpu, d, size, 0)
    area = block_address(cpu) + X87_OFFSET
    if cpu.fault == 0:
        load_area(cpu, linear, size, area)
    if cpu.fault == 0:
        _read_environment(cpu, wide, area)
    return cpu.fault


@compiled
def _save(cpu, d):
    """FNSAVE: the environment, ST(0) to ST(7) as 10 bytes each, then FNINIT."""
    wide = _wide(d, cpu)
    environment = 28 if wide else 14
    linear = linear_address(cpu, d, environment + 80, 1)
    area = block_address(cpu) + X87_OFFSET
    _write_environment(cpu, wide, area)
    for i in range(8):
        copy_bytes(area + environment + 10 * i, fx_address(cpu) + FX_ST + 16 * i, 10)
    if cpu.fault == 0:
        store_area(cpu, linear, environment + 80, area)
    if cpu.fault == 0:
        initialize(cpu)
    return cpu.fault


@compiled
def _restore(cpu, d):
    """FRSTOR."""
    wide = _wide(d, cpu)
    environment = 28 if wide else 14
    linear = linear_address(cpu, d, environment + 80, 0)
    area = block_address(cpu) + X87_OFFSET
    if cpu.fault == 0:
        load_area(cpu, linear, environment + 80, area)
    if cpu.fault == 0:
        _read_environment(cpu, wide, area)
        for i in range(8):
            register = fx_address(cpu) + FX_ST + 16 * i
            store64(register + 8, 0)
            copy_bytes(register, area + environment + 10 * i, 10)
    return cpu.fault


@compiled
def _store_word(cpu, d, value):
    """FNSTCW, FNSTSW to memory."""
    linear = linear_address(cpu, d, 2, 1)
    if cpu.fault == 0:
        store(cpu, linear, 2, value)
    return cpu.fault


@compiled
def _load_control(cpu, d):
    """FLDCW: it may unmask exceptions that have happened; the next waiting instruction reports them."""
    linear = linear_address(cpu, d, 2, 0)
    value = 0
    if cpu.fault == 0:
        value = load(cpu, linear, 2)
    if cpu.fault == 0:
        set_control(cpu, value)
    return cpu.fault


@compiled
def _clear_exceptions(cpu):
    """FNCLEX."""
    fx = fx_address(cpu)
    store16(fx + FX_STATUS, load16(fx + FX_STATUS) & ~STATUS_CLEARED)


@compiled
def _control_memory(cpu, d, opcode, reg):
    """The memory forms about state; -1 for others."""
    if opcode == 0xD9:
        if reg == 4:
            return _load_environment(cpu, d)
        if reg == 5:
            return _load_control(cpu, d)
        if reg == 6:
            return _store_environment(cpu, d)
        if reg == 7:
            return _store_word(cpu, d, load16(fx_address(cpu) + FX_CONTROL))
    elif opcode == 0xDD:
        if reg == 4:
            return _restore(cpu, d)
        if reg == 6:
            return _save(cpu, d)
        if reg == 7:
            return _store_word(cpu, d, load16(fx_address(cpu) + FX_STATUS))
    return -1


@compiled
def _control_register(cpu, opcode, modrm):
    """The register forms about state; -1 for others. FNENI, FNDISI and FNSETPM do nothing since the 80387."""
    if opcode == 0xDF and modrm == 0xE0:  # FNSTSW AX
        cpu.gpr[RAX] = cpu.gpr[RAX] & ~0xFFFF | load16(fx_address(cpu) + FX_STATUS)
        return OK
    if opcode == 0xDB and 0xE0 <= modrm <= 0xE4:
        if modrm == 0xE2:
            _clear_exceptions(cpu)
        elif modrm == 0xE3:
            initialize(cpu)
        return OK
    return -1


@compiled
def _is_non_waiting(opcode, modrm):
    """Instructions that run whatever exception waits: FNSTENV, FNSTCW, FNSAVE, FNSTSW, FNCLEX, FNINIT."""
    if modrm >= 0xC0:
        return opcode == 0xDB and 0xE0 <= modrm <= 0xE4 or opcode == 0xDF and modrm == 0xE0
    reg = modrm >> 3 & 7
    return (opcode == 0xD9 or opcode == 0xDD) and reg >= 6


# --- instructions by stub -----------------------------------------------------------------------------------


@compiled
def _operand_size(opcode, reg):
    """Bytes of the memory operand of an arithmetic, load or store form."""
    if opcode == 0xDB and reg >= 5:
        return 10
    if opcode == 0xDF and reg >= 4:
        return 8 if reg & 1 else 10
    if opcode == 0xDC or opcode == 0xDD:
        return 8
    return 2 if opcode >= 0xDE else 4


@compiled
def _is_store(opcode, reg):
    """FST, FSTP, FIST, FISTP, FISTTP, FBSTP: odd escapes, ModRM.reg 1, 2, 3, 7 and FBSTP's 6."""
    return opcode & 1 == 1 and (reg == 1 or reg == 2 or reg == 3 or reg == 7 or reg == 6)


@compiled
def _prepare(cpu, area):
    """Copy the guest's x87 state into the block. Exceptions that wait, and are ignored, are masked there."""
    fx = fx_address(cpu)
    copy_bytes(area, fx, FX_XMM)
    store32(area + FX_MXCSR, MXCSR_MASKS)
    status = load16(fx + FX_STATUS)
    control = load16(fx + FX_CONTROL)
    ignored = status & ~control & EXCEPTIONS  # only with CR0.NE clear
    store16(area + FX_STATUS, status & ~(STATUS_ES | STATUS_B))
    store16(area + FX_CONTROL, control & CONTROL_WRITABLE | CONTROL_ONES | ignored)
    store64(area + FX_IP, 0)
    store64(area + FX_DP, 0)


@compiled
def _commit(cpu, d, area, memory):
    """Copy the state back, and note the instruction and its operand."""
    fx = fx_address(cpu)
    control = load16(fx + FX_CONTROL)
    copy_bytes(fx + FX_ST, area + FX_ST, FX_XMM - FX_ST)
    store16(fx + FX_STATUS, load16(area + FX_STATUS))
    store8(fx + FX_TAGS, load8(area + FX_TAGS))
    store16(fx + FX_CONTROL, control)
    store16(fx + FX_OPCODE, (d.opcode & 7) << 8 | d.modrm)
    store64(fx + FX_IP, cpu.rip)
    if memory:
        store64(fx + FX_DP, effective_address(cpu, d))
    summarize(cpu)


@compiled
def _by_stub(cpu, d, opcode, stub):
    """The host's own instruction on a copy of the state."""
    block = block_address(cpu)
    area = block + X87_OFFSET
    reg = d.modrm >> 3 & 7
    memory = d.modrm < 0xC0
    operand = block + RM_OFFSET
    size = _operand_size(opcode, reg)
    writes = memory and _is_store(opcode, reg)
    linear = 0
    if memory:
        linear = linear_address(cpu, d, size, 1 if writes else 0)
        if cpu.fault == 0 and not writes:
            load_bytes(cpu, linear, size, operand)
        if cpu.fault:
            return cpu.fault
    _prepare(cpu, area)
    arguments = BLOCK.at(block)
    arguments.flags = status_flags(cpu) | 2
    call1(stub, block)
    store16(area + FX_OPCODE, 0)  # what the host saved about its own instruction is nobody's business
    store64(area + FX_IP, 0)
    store64(area + FX_DP, 0)
    if writes:
        unmasked = load16(area + FX_STATUS) & ~load16(area + FX_CONTROL) & PREVENTS_STORE
        if unmasked == 0:
            store_bytes(cpu, linear, size, operand)
        else:
            check_write(cpu, linear, size)
        if cpu.fault:
            return cpu.fault
    _commit(cpu, d, area, memory)
    if not memory:
        set_status_flags(cpu, arguments.flags & ARITHMETIC_STATUS)
    return OK


@unit(PROCESSOR, DECODED)
def execute_x87(cpu, d):
    """One instruction of the escape opcodes D8 to DF."""
    opcode = d.opcode & 0xFF
    modrm = d.modrm
    if cpu.host_vector_stubs == 0:
        return without_stubs(cpu)
    if cpu.cr0 & (CR0_EM | CR0_TS):
        return raise_fault(cpu, NM, 0)
    if not _is_non_waiting(opcode, modrm) and pending_x87_exception(cpu):
        return raise_fault(cpu, MF, 0)
    if modrm >= 0xC0:
        status = _control_register(cpu, opcode, modrm)
        entry = cpu.host_vector_stubs + X87_REGISTER_TABLE + ((opcode & 7) << 9 | (modrm & 0x3F) << 3)
    else:
        status = _control_memory(cpu, d, opcode, modrm >> 3 & 7)
        entry = cpu.host_vector_stubs + X87_MEMORY_TABLE + ((opcode & 7) << 6 | (modrm & 0x38))
    if status >= 0:
        return status
    stub = load64(entry)
    if stub == 0:
        return raise_fault(cpu, UD, 0)
    return _by_stub(cpu, d, opcode, stub)


@unit(PROCESSOR, DECODED)
def execute_wait(cpu, d):
    """FWAIT: #NM when CR0.MP and CR0.TS are set, then the exception that waits."""
    if cpu.cr0 & CR0_MP and cpu.cr0 & CR0_TS:
        return raise_fault(cpu, NM, 0)
    if pending_x87_exception(cpu):
        return raise_fault(cpu, MF, 0)
    return OK

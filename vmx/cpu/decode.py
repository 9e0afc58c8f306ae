"""The instruction decoder: bytes to a DECODED record, by the table's arrays ("Instruction Format")."""

from vmx.cpu.hot import hot_code
from vmx.cpu.tables import BASE16, INDEX16, PREFIX_CLASS
from vmx.isa.features import FEATURE_NUMBER
from vmx.isa.operations import OPERATION
from vmx.isa.table import (
    F_CONDITION,
    F_D64,
    F_F64,
    F_I64,
    F_LOCK,
    F_O64,
    FIRST_GROUP,
    FIRST_RM,
    I_8,
    I_8S,
    I_16,
    I_16_8,
    I_CONST,
    I_FAR,
    I_MOFFS,
    I_NONE,
    I_V,
    K_ACC,
    K_CL,
    K_DX,
    K_E,
    K_G,
    K_IMM,
    K_MOFFS,
    K_NONE,
    K_R,
    K_REL,
    K_Z,
    S_B,
    S_D,
    S_NONE,
    S_Q,
    S_V,
    S_W,
    S_X,
    S_Y,
    S_Z,
    TABLE,
    VEX_MAP,
)
from vmx.state.bits import sext8, sext16, sext32, shr
from vmx.state.jit import compiled
from vmx.state.memory import load8, load16, load32, load64
from vmx.state.processor import (
    DECODED,
    DS,
    FLAT,
    NO_REGISTER,
    OPERAND_HIGH,
    OPERAND_IMMEDIATE,
    OPERAND_MEMORY,
    OPERAND_NONE,
    PREFIX_ADDRESS_SIZE,
    PREFIX_LOCK,
    PREFIX_OPERAND_SIZE,
    PREFIX_REP,
    PREFIX_REPNE,
    PREFIX_SEGMENT,
    RBP,
    RIP_REGISTER,
    RSP,
    SS,
)
from vmx.state.unit import unit

DECODED_OK, NEED_MORE, INVALID, TOO_LONG = range(4)
MAX_LENGTH = 15

OPCODES, GROUPS, RM_LISTS, MODRM_CELLS = TABLE.opcodes, TABLE.groups, TABLE.rm_lists, TABLE.modrm_cells
ROW_OPERATION, ROW_FLAGS, ROW_IMMEDIATE = TABLE.operation, TABLE.flags, TABLE.immediate
ROW_CONSTANT, ROW_SIZE, ROW_KINDS = TABLE.constant, TABLE.size, TABLE.kinds
ROW_FEATURE, ROW_INSTEAD = TABLE.feature, TABLE.instead
XCHG_ROW, ARPL_ROW = TABLE.xchg_row, TABLE.arpl_row
VEX_FEATURES = 1 << FEATURE_NUMBER["bmi1"] | 1 << FEATURE_NUMBER["bmi2"]
BEFORE_VEX = PREFIX_LOCK | PREFIX_REPNE | PREFIX_REP | PREFIX_OPERAND_SIZE  # #UD with a VEX prefix
OP_UD = OPERATION["UD"]


@compiled
def _sized(size_code, operand_bytes):
    """Bytes of an operand of a size code."""
    if size_code == S_V:
        return operand_bytes
    if size_code == S_B:
        return 1
    if size_code == S_W:
        return 2
    if size_code == S_D:
        return 4
    if size_code == S_Q:
        return 8
    if size_code == S_Z:
        return 2 if operand_bytes == 2 else 4
    if size_code == S_Y:
        return 8 if operand_bytes == 8 else 4
    if size_code == S_X:
        return 16
    return operand_bytes


@compiled
def _register_code(number, size_code, rex):
    """Operand code of a general register: byte registers 4..7 without REX are AH CH DH BH."""
    if size_code == S_B and rex == 0 and number >= 4:
        return OPERAND_HIGH + number - 4
    return number


@compiled
def _operand_code(kind, size_code, number, modrm, rex, opcode):
    """The operand code of one operand of a row."""
    if kind == K_E or kind == K_R:
        if modrm < 0xC0 and kind == K_E:
            return OPERAND_MEMORY
        return _register_code(modrm & 7 | (rex & 1) << 3, size_code, rex)
    if kind == K_G:
        return _register_code(number, size_code, rex)
    if kind == K_Z:
        return _register_code(opcode & 7 | (rex & 1) << 3, size_code, rex)
    if kind == K_IMM or kind == K_REL:
        return OPERAND_IMMEDIATE
    if kind == K_ACC:
        return 0
    if kind == K_CL:
        return 1
    if kind == K_DX:
        return 2
    if kind == K_MOFFS:
        return OPERAND_MEMORY
    return OPERAND_NONE


@unit(DECODED, "i64", "i64", "i64", "i64")
def decode(d, host, available, mode, features):
    """Decode the instruction at a host address, of which `available` bytes may be read.

    `mode` is cpu.code_mode, `features` is cpu.features. VEX is decoded in 32- and 64-bit code. Returns
    DECODED_OK, NEED_MORE (it goes on beyond the bytes), INVALID (#UD; `d` is then an instruction that raises it)
    or TOO_LONG (#GP: more than 15 bytes).
    """
    i = 0
    prefixes = 0
    rex = 0
    segment = -1
    mandatory = 0
    opcode = 0
    while True:
        if i >= MAX_LENGTH:
            return TOO_LONG
        if i >= available:
            return NEED_MORE
        opcode = load8(host + i)
        i += 1
        kind = PREFIX_CLASS[opcode]
        if kind == 0:
            break
        if kind == 16:  # REX, in 64-bit mode only
            if mode != 2:
                break
            rex = opcode
            continue
        rex = 0  # a REX prefix counts only right before the opcode
        if kind == 1:
            prefixes |= PREFIX_LOCK
        elif kind == 2:
            prefixes = prefixes & ~PREFIX_REP | PREFIX_REPNE
        elif kind == 3:
            prefixes = prefixes & ~PREFIX_REPNE | PREFIX_REP
        elif kind == 4:
            prefixes |= PREFIX_OPERAND_SIZE
        elif kind == 5:
            prefixes |= PREFIX_ADDRESS_SIZE
        else:
            prefixes |= PREFIX_SEGMENT
            if mode != 2 or kind >= 12:
                segment = kind - 8
    if prefixes & PREFIX_REP:
        mandatory = 2
    elif prefixes & PREFIX_REPNE:
        mandatory = 3
    elif prefixes & PREFIX_OPERAND_SIZE:
        mandatory = 1

    table = 0
    vex = 0  # 1: a VEX prefix; 2: one that makes the instruction undefined
    vvvv = 0
    if opcode == 0xC4 and features & VEX_FEATURES and mode != 0:
        if i >= available:
            return TOO_LONG if i >= MAX_LENGTH else NEED_MORE
        second = load8(host + i)
        if mode == 2 or second >= 0xC0:  # else LES, which has no register form
            if i + 3 > available:
                return TOO_LONG if i + 3 > MAX_LENGTH else NEED_MORE
            third = load8(host + i + 1)
            opcode = load8(host + i + 2)
            i += 3
            table = VEX_MAP + (second & 3)
            mandatory = third & 3
            vvvv = (third >> 3 & 15) ^ 15
            vex = 1
            if prefixes & BEFORE_VEX or rex or third & 4 or second & 0x1C or table == VEX_MAP:
                vex = 2
            rex = 0x40 | (second >> 5 ^ 7) | (third & 0x80) >> 4
            if mode != 2:
                vvvv &= 7
                rex = 0
    elif opcode == 0x0F:
        if i >= available:
            return TOO_LONG if i >= MAX_LENGTH else NEED_MORE
        opcode = load8(host + i)
        i += 1
        table = 1
        if opcode == 0x38 or opcode == 0x3A:
            table = 2 if opcode == 0x38 else 3
            if i >= available:
                return TOO_LONG if i >= MAX_LENGTH else NEED_MORE
            opcode = load8(host + i)
            i += 1
    cell = table << 8 | opcode

    modrm = 0
    row = OPCODES[cell]
    has_modrm = MODRM_CELLS[cell]
    if has_modrm:
        if i >= available:
            return TOO_LONG if i >= MAX_LENGTH else NEED_MORE
        modrm = load8(host + i)
        i += 1
        if cell & ~3 == 0x120:
            modrm |= 0xC0  # MOV to and from control and debug registers: the mod field is ignored
    if row >= FIRST_GROUP:
        is_register = 1 if modrm >= 0xC0 else 0
        row = GROUPS[(row - FIRST_GROUP) << 6 | mandatory << 4 | (modrm >> 3 & 7) << 1 | is_register]
        if row >= FIRST_RM:
            row = RM_LISTS[(row - FIRST_RM) << 3 | modrm & 7]
    feature = ROW_FEATURE[row]
    if feature and shr(features, feature) & 1 == 0:
        row = ROW_INSTEAD[row]
    if vex == 2:
        row = 0
    if cell == 0x90 and rex & 1:
        row = XCHG_ROW
    elif cell == 0x63 and mode != 2:
        row = ARPL_ROW
    flags = ROW_FLAGS[row]

    d.opcode = cell
    d.modrm = modrm
    d.prefixes = prefixes
    d.rex = rex
    d.row = row
    d.op = ROW_OPERATION[row]

    # sizes
    address_bytes = 4
    if mode == 2:
        address_bytes = 4 if prefixes & PREFIX_ADDRESS_SIZE else 8
    elif mode == 1:
        address_bytes = 2 if prefixes & PREFIX_ADDRESS_SIZE else 4
    else:
        address_bytes = 4 if prefixes & PREFIX_ADDRESS_SIZE else 2
    d.address_size = address_bytes
    operand_bytes = 4
    if rex & 8:
        operand_bytes = 8
    elif mode == 0:
        operand_bytes = 4 if prefixes & PREFIX_OPERAND_SIZE else 2
    elif prefixes & PREFIX_OPERAND_SIZE:
        operand_bytes = 2
    if mode == 2:
        if flags & F_F64:
            operand_bytes = 8
        elif flags & F_D64 and operand_bytes == 4:
            operand_bytes = 8
    size_code = ROW_SIZE[row]
    d.size = operand_bytes if size_code == S_NONE else _sized(size_code, operand_bytes)

    # ModRM, SIB and displacement
    base = NO_REGISTER
    index = NO_REGISTER
    scale = 0
    displacement = 0
    number = modrm >> 3 & 7 | (rex & 4) << 1
    if cell == 0x8C or cell == 0x8E:
        number &= 7  # REX.R does not extend segment registers
    default_segment = DS
    if has_modrm and modrm < 0xC0:
        mod = modrm >> 6
        rm = modrm & 7
        displacement_bytes = 0
        if address_bytes == 2:
            base = BASE16[rm]
            index = INDEX16[rm]
            displacement_bytes = mod
            if mod == 0 and rm == 6:
                base = NO_REGISTER
                displacement_bytes = 2
        else:
            displacement_bytes = 4 if mod == 2 else mod
            if rm == 4:
                if i >= available:
                    return TOO_LONG if i >= MAX_LENGTH else NEED_MORE
                sib = load8(host + i)
                i += 1
                base = sib & 7 | (rex & 1) << 3
                index = sib >> 3 & 7 | (rex & 2) << 2
                scale = sib >> 6
                if index == 4:
                    index = NO_REGISTER
                    scale = 0
                if sib & 7 == 5 and mod == 0:
                    base = NO_REGISTER
                    displacement_bytes = 4
            elif rm == 5 and mod == 0:
                base = RIP_REGISTER if mode == 2 else NO_REGISTER
                displacement_bytes = 4
            else:
                base = rm | (rex & 1) << 3
        if i + displacement_bytes > available:
            return TOO_LONG if i + displacement_bytes > MAX_LENGTH else NEED_MORE
        if displacement_bytes == 1:
            displacement = sext8(load8(host + i))
        elif displacement_bytes == 2:
            displacement = sext16(load16(host + i))
        elif displacement_bytes == 4:
            displacement = sext32(load32(host + i))
        i += displacement_bytes
        if base == RSP or base == RBP:
            default_segment = SS
    d.base = base
    d.index = index
    d.scale = scale
    d.displacement = displacement
    if segment < 0:
        segment = FLAT if mode == 2 else default_segment
    d.segment = segment
    d.reg = opcode & 15 if flags & F_CONDITION else number

    # immediates
    form = ROW_IMMEDIATE[row]
    immediate = vvvv
    if form != I_NONE:
        if vvvv:  # RORX: no register in VEX.vvvv
            row = 0
        wide = 2 if operand_bytes == 2 else 4
        count = 0
        if form == I_CONST:
            immediate = ROW_CONSTANT[row]
        elif form == I_8 or form == I_8S:
            count = 1
        elif form == I_16:
            count = 2
        elif form == I_16_8:
            count = 3
        elif form == I_V:
            count = operand_bytes
        elif form == I_MOFFS:
            count = address_bytes
        elif form == I_FAR:
            count = wide + 2
        else:
            count = wide
        if i + count > available:
            return TOO_LONG if i + count > MAX_LENGTH else NEED_MORE
        at = host + i
        if form == I_8S:
            immediate = sext8(load8(at))
        elif form == I_FAR:
            offset = load16(at) if wide == 2 else load32(at)
            immediate = load16(at + wide) << 32 | offset
        elif form == I_16_8:
            immediate = load8(at + 2) << 32 | load16(at)
        elif count == 1:
            immediate = load8(at)
        elif count == 2:
            immediate = load16(at) if form == I_16 or form == I_MOFFS else sext16(load16(at))
        elif count == 4:
            immediate = load32(at) if form == I_MOFFS else sext32(load32(at))
        elif count == 8:
            immediate = load64(at)
        i += count
    d.immediate = immediate
    if i > MAX_LENGTH:
        return TOO_LONG
    d.length = i

    # operands
    kinds = row * 6
    first = ROW_KINDS[kinds]
    dst = OPERAND_NONE
    src = OPERAND_NONE
    if first != K_NONE:
        dst = _operand_code(first, ROW_KINDS[kinds + 1], number, modrm, rex, opcode)
        src = _operand_code(ROW_KINDS[kinds + 2], ROW_KINDS[kinds + 3], number, modrm, rex, opcode)
    d.dst = dst
    d.src = src

    valid = row != 0
    if mode == 2:
        if flags & F_I64:
            valid = False
    elif flags & F_O64:
        valid = False
    if prefixes & PREFIX_LOCK and not (flags & F_LOCK and dst == OPERAND_MEMORY):
        valid = False
    if not valid:
        d.op = OP_UD
        d.row = 0
        d.code = 0
        return INVALID
    d.code = hot_code(d)
    return DECODED_OK

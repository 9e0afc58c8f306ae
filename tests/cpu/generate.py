"""Cases for user-level instructions: encodings of table rows with states in which they do something."""

import random

import iced_x86 as iced
import numpy as np

from tests.isa.encodings import IMMEDIATES, MANDATORY, SIBS
from tests.isa.encodings import ESCAPE as ESCAPES
from tests.oracles.cases import CODE, WINDOW, WINDOW_AT, new_cases, set_code
from tests.oracles.iced import BITS, REGISTER
from vmx.isa.operations import GROUP_SHIFT, GROUPS, OPERATION
from vmx.isa.table import F_LOCK, F_MODRM, TABLE

INTEGER_GROUPS = ("ALU", "SHIFT", "BIT", "STACK", "STRING", "CONTROL")
SKIPPED = {"INS", "OUTS"}  # ports: not user level
AMD_ONLY_UD = {"PREFETCHW"}  # with a register it is a reserved NOP, on AMD's processors #UD
RIP = CODE + 0x800
MASK64 = (1 << 64) - 1
NUMBERS = {}  # register name: (number, high)
for _number, _name in enumerate("AX CX DX BX SP BP SI DI".split()):
    for _prefix in ("", "E", "R"):
        NUMBERS[_prefix + _name] = _number
for _number in range(8, 16):
    for _suffix in ("", "D", "W", "L"):
        NUMBERS[f"R{_number}{_suffix}"] = _number
FLAG_BITS = {iced.RflagsBits.OF: 0x800, iced.RflagsBits.SF: 0x80, iced.RflagsBits.ZF: 0x40, iced.RflagsBits.AF: 0x10,
             iced.RflagsBits.CF: 1, iced.RflagsBits.PF: 4}  # fmt: skip
EDGES = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFF, 1 << 32,
         (1 << 63) - 1, 1 << 63, (1 << 63) + 1, MASK64, MASK64 - 1, 0x8080_8080_8080_8080, 9, 0x99, 0x0F)  # fmt: skip
COUNT_OPERATIONS = {OPERATION[n] for n in "ROL ROR RCL RCR SHL SHR SAL SAR SHLD SHRD".split()}
DOUBLE_SHIFTS = {OPERATION["SHLD"], OPERATION["SHRD"]}
PLAIN_SHIFTS = {OPERATION[n] for n in ("SHL", "SAL", "SHR")}


def integer_rows(mode=2, groups=INTEGER_GROUPS):
    """The rows of the integer groups that exist in a mode."""
    names = {n for group in groups for n in GROUPS[group].split()} - SKIPPED
    operations = {OPERATION[n] for n in names}
    assert all(o >> GROUP_SHIFT < len(GROUPS) for o in operations)
    hidden = " i64" if mode == 2 else " o64"
    return [
        r
        for r in TABLE.rows[1:]
        if r.operation in operations and r.mnemonic not in AMD_ONLY_UD and hidden not in f" {r.text} "
    ]


def value(rng):
    """A 64-bit value: edges, small, or anything."""
    kind = rng.random()
    if kind < 0.35:
        return rng.choice(EDGES)
    if kind < 0.5:
        return rng.randrange(256)
    return rng.getrandbits(64)


def encoding(row, rng, mode):
    """One random encoding of a row."""
    head = b""
    if rng.random() < 0.25:
        head += b"\x66"
    if rng.random() < 0.08:
        head += b"\x67"
    if row.flags & F_LOCK and rng.random() < 0.1:
        head += b"\xf0"
    if row.operation in STRINGS and rng.random() < 0.7:
        head += rng.choice((b"\xf2", b"\xf3"))
    if rng.random() < 0.05:
        head += rng.choice((b"\x2e", b"\x3e", b"\x65"))  # not FS: the child's has a base
    head += MANDATORY[row.prefix]
    if mode == 2 and rng.random() < 0.6:
        head += bytes((0x40 | rng.randrange(16),))
    opcode = row.opcode
    if row.register:
        opcode += rng.randrange(8)
    elif row.condition:
        opcode += rng.randrange(16)
    head += ESCAPES[row.map] + bytes((opcode,))
    if row.flags & F_MODRM:
        forms = {"mem": (0, 1, 2), "reg": (3,)}.get(row.form, (0, 1, 2, 3, 3, 3))
        mod, rm = rng.choice(forms), rng.randrange(8) if row.rm is None else row.rm
        reg = rng.randrange(8) if row.digit is None else row.digit
        head += bytes((mod << 6 | reg << 3 | rm,))
        if mod != 3:
            head += bytes((rng.choice(SIBS),)) + bytes((rng.randrange(256), rng.randrange(256), 0, 0))
    return (head + rng.choice(IMMEDIATES) + rng.randbytes(8))[:15]


STRINGS = {OPERATION[n] for n in ("MOVS", "CMPS", "STOS", "LODS", "SCAS")}
BRANCHES = {OPERATION[n] for n in GROUPS["CONTROL"].split()}
STRING_AND_STACK = {OPERATION[n] for n in ("LEAVE", "ENTER")}
BIT_STRINGS = {OPERATION[n] for n in ("BT", "BTS", "BTR", "BTC")}


def _place(rng, size):
    """An address in the window; now and then the operand crosses into the page that is not there."""
    if rng.random() < 0.04:
        return WINDOW_AT + WINDOW - rng.randrange(1, 17)
    at = WINDOW_AT + 64 + rng.randrange(WINDOW - 192)
    return at & ~15 if rng.random() < 0.5 else at


def _landing(rng):
    """Where a branch may go: inside the code page, not into the instruction itself."""
    return RIP + rng.choice((-1, 1)) * rng.randrange(20, 700)


def _signed(number):
    return number - (1 << 64) if number >> 63 else number


def _patched(code, offset, size, number):
    return code[:offset] + (number & (1 << 8 * size) - 1).to_bytes(size, "little") + code[offset + size :]


def make(row, rng, mode=2):
    """(bytes, general registers, memory, undefined status flags) of one case, or None where there is no sense in it."""
    code = encoding(row, rng, mode)
    decoder = iced.Decoder(BITS[mode], code, iced.DecoderOptions.FORCE_RESERVED_NOP, ip=RIP)
    ins = decoder.decode()
    if ins.is_invalid:
        return None
    if row.operation in BRANCHES and b"\x66" in code[:4]:
        return None  # Intel's processors ignore the prefix, AMD's truncate the target to 16 bits
    constants = decoder.get_constant_offsets(ins)
    code = code[: ins.len]
    gpr = [value(rng) for _ in range(16)]
    memory = bytearray(rng.randbytes(WINDOW))
    for _ in range(8):
        at = rng.randrange(0, WINDOW - 8, 8)
        memory[at : at + 8] = value(rng).to_bytes(8, "little")
    gpr[4] = WINDOW_AT + WINDOW // 2 + rng.choice((0, 0, 0, 8, 1))
    operation = row.operation
    if operation in STRINGS:
        for n in (6, 7):
            gpr[n] = WINDOW_AT + rng.randrange(200, WINDOW - 200)
        gpr[1] = rng.randrange(20) if rng.random() < 0.8 else rng.randrange(200)
        if b"\x67" in code[:-1]:
            gpr[1] |= rng.choice((0, 0xABCD << 32))
            gpr[6] |= rng.choice((0, 0xABCD << 32))
    if operation in COUNT_OPERATIONS and rng.random() < 0.6:
        gpr[1] = rng.randrange(70)
    if operation in STRING_AND_STACK or operation == OPERATION["ENTER"]:
        gpr[5] = WINDOW_AT + WINDOW // 2 + 8 * rng.randrange(-10, 20)
    if operation == OPERATION["ENTER"] and rng.random() < 0.9:
        code = _patched(code, constants.immediate_offset, 2, rng.randrange(200))
    if operation == OPERATION["XLAT"]:
        gpr[3] = WINDOW_AT + rng.randrange(WINDOW - 256)
    if operation in (OPERATION["DIV"], OPERATION["IDIV"]) and rng.random() < 0.7:
        gpr[2] = rng.choice((0, 0, 1, MASK64, rng.getrandbits(8)))
    if operation in BIT_STRINGS and not constants.has_immediate and ins.op1_kind == iced.OpKind.REGISTER:
        number = NUMBERS[REGISTER[ins.op1_register]]
        if number in (NUMBERS.get(REGISTER[ins.memory_base]), NUMBERS.get(REGISTER[ins.memory_index])):
            return None  # one register cannot be both a small offset and an address
        gpr[number] = rng.randrange(-500, 500) & MASK64
    if operation == OPERATION["RET"] or operation == OPERATION["POPF"]:
        word = _landing(rng) if operation == OPERATION["RET"] else rng.getrandbits(64) & 0x0020_8CD5
        at = gpr[4] - WINDOW_AT
        memory[at : at + 8] = word.to_bytes(8, "little")
    if operation in (OPERATION["JMP"], OPERATION["CALL"], OPERATION["JCC"]) and constants.immediate_size == 4:
        code = _patched(code, constants.immediate_offset, 4, _landing(rng) - RIP)
    if operation in BRANCHES and constants.immediate_size == 1 and code[-1] > 0xE0:
        code = code[:-1] + b"\x20"  # not into the instruction itself
    target = _place(rng, 8)
    if (
        any(ins.op_kind(i) == iced.OpKind.MEMORY for i in range(ins.op_count))
        and operation != OPERATION["XLAT"]
    ):
        base, index = REGISTER[ins.memory_base], REGISTER[ins.memory_index]
        if operation == OPERATION["CMPXCHG8B"] and rng.random() < 0.8:
            target &= ~15
        if base in ("RIP", "EIP") or (base == "NONE" and index == "NONE"):
            size = constants.displacement_size
            code = _patched(
                code, constants.displacement_offset, size, target - (RIP + ins.len if "IP" in base else 0)
            )
        else:
            rest = target - _signed(ins.memory_displacement)
            if index != "NONE":
                if base == "NONE":
                    gpr[NUMBERS[index]] = (rest >> ins.memory_index_scale.bit_length() - 1) & MASK64
                elif index != base:
                    gpr[NUMBERS[index]] = rng.randrange(-8, 8) & MASK64
                    rest -= _signed(gpr[NUMBERS[index]]) * ins.memory_index_scale
            if base != "NONE":
                gpr[NUMBERS[base]] = rest & MASK64
        at = target - WINDOW_AT
        if operation in (OPERATION["JMP_IND"], OPERATION["CALL_IND"]) and at + 8 <= WINDOW:
            memory[at : at + 8] = _landing(rng).to_bytes(8, "little")
        if (
            operation in (OPERATION["CMPXCHG"], OPERATION["CMPXCHG8B"])
            and at + 16 <= WINDOW
            and rng.random() < 0.5
        ):
            memory[at : at + 8] = gpr[0].to_bytes(8, "little")
            memory[at + 8 : at + 16] = gpr[2].to_bytes(8, "little")
            if operation == OPERATION["CMPXCHG8B"] and ins.mnemonic == iced.Mnemonic.CMPXCHG8B:
                memory[at + 4 : at + 8] = (gpr[2] & 0xFFFF_FFFF).to_bytes(4, "little")
    elif operation in (OPERATION["JMP_IND"], OPERATION["CALL_IND"]):
        gpr[NUMBERS[REGISTER[ins.op0_register]]] = _landing(rng)
    elif operation == OPERATION["CMPXCHG"] and rng.random() < 0.5 and REGISTER[ins.op0_register] in NUMBERS:
        gpr[0] = gpr[NUMBERS[REGISTER[ins.op0_register]]]
    undefined = sum(bit for key, bit in FLAG_BITS.items() if ins.rflags_undefined & key)
    if operation in COUNT_OPERATIONS:
        size = {1: 8, 2: 16, 4: 32, 8: 64}[_operand_bytes(ins)]
        if constants.has_immediate:
            count = code[-1]
        else:
            count = gpr[1] if row.operands[-1] == "CL" else 1
        count &= 63 if size == 64 else 31
        if operation in DOUBLE_SHIFTS and count > size:
            return None  # the manual leaves the result undefined
        if operation in PLAIN_SHIFTS and count >= size:
            undefined |= 1
    return code, gpr, bytes(memory), undefined


def _operand_bytes(ins):
    if ins.op0_kind == iced.OpKind.REGISTER:
        return iced.RegisterExt.size(ins.op0_register)
    return iced.MemorySizeExt.size(ins.memory_size)


def batch(rows, each, seed, mode=2):
    """`each` cases of every row. Returns (cases, mask of defined RFLAGS bits per case, row per case)."""
    rng = random.Random(seed)
    made, owners = [], []
    for row in rows:
        for _ in range(each):
            case = make(row, rng, mode)
            if case is not None:
                made.append(case)
                owners.append(row)
    cases = new_cases(len(made))
    cases["rip"] = RIP
    defined = np.full(len(made), 0x0020_0ED5, np.uint64)
    for i, (code, gpr, memory, undefined) in enumerate(made):
        set_code(cases, i, code)
        cases["gpr"][i] = gpr
        cases["memory"][i] = np.frombuffer(memory, np.uint8)
        cases["rflags"][i] = 0x202 | rng.getrandbits(12) & 0x8D5 | (rng.random() < 0.3) << 10
        defined[i] &= MASK64 ^ undefined
    return cases, defined, owners

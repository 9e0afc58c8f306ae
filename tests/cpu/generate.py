"""Cases for integer instructions: random encodings of table rows with states in which they do something."""

import random

import iced_x86 as iced
import numpy as np

from tests.isa.encodings import ESCAPE, IMMEDIATES, MANDATORY, SIBS, vex
from tests.oracles.cases import LAYOUTS, WINDOW, new_cases, set_code
from tests.oracles.iced import BITS, REGISTER
from vmx.isa.features import FEATURE_NUMBER
from vmx.isa.operations import GROUPS, OPERATION
from vmx.isa.table import F_LOCK, F_MODRM, TABLE, VEX_MAP

INTEGER_GROUPS = ("ALU", "SHIFT", "BIT", "STACK", "STRING", "CONTROL")
SKIPPED = {"INS", "OUTS"}  # ports: not user level
AMD_ONLY_UD = {"PREFETCHW"}  # with a register it is a reserved NOP, on AMD's processors #UD
MASK64 = (1 << 64) - 1
ES, SS, DS = 0, 2, 3
RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI = range(8)
EDGES = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFF, 1 << 32,
         (1 << 63) - 1, 1 << 63, (1 << 63) + 1, MASK64, MASK64 - 1, 0x8080_8080_8080_8080, 9, 0x99, 0x0F)  # fmt: skip
FLAG_BITS = {iced.RflagsBits.OF: 0x800, iced.RflagsBits.SF: 0x80, iced.RflagsBits.ZF: 0x40, iced.RflagsBits.AF: 0x10,
             iced.RflagsBits.CF: 1, iced.RflagsBits.PF: 4}  # fmt: skip
DEFINED = 0x0020_0ED5  # ID, and what instructions compute
POPPED = 0x0020_8CD5  # what POPF finds on the stack: not TF, NT and AC, which would upset the oracle's host

NUMBERS = {}  # register name: number
for _number, _name in enumerate("AX CX DX BX SP BP SI DI".split()):
    for _prefix in ("", "E", "R"):
        NUMBERS[_prefix + _name] = _number
for _number in range(8, 16):
    for _suffix in ("", "D", "W", "L"):
        NUMBERS[f"R{_number}{_suffix}"] = _number


def _operations(names):
    return {OPERATION[n] for n in names.split()}


STRINGS = _operations("MOVS CMPS STOS LODS SCAS")
BRANCHES = _operations(GROUPS["CONTROL"])
INDIRECT = _operations("JMP_IND CALL_IND")
FRAMES = _operations("LEAVE ENTER")
BIT_TESTS = _operations("BT BTS BTR BTC")
COUNTED = _operations("ROL ROR RCL RCR SHL SHR SAL SAR SHLD SHRD")
DOUBLE_SHIFTS = _operations("SHLD SHRD")
PLAIN_SHIFTS = _operations("SHL SAL SHR")
DIVISIONS = _operations("DIV IDIV")
EXCHANGES = _operations("CMPXCHG CMPXCHG8B")
ENTER, RET, POPF, XLAT, BOUND, POPA = (OPERATION[n] for n in "ENTER RET POPF XLAT BOUND POPA".split())
CMPXCHG, CMPXCHG8B = OPERATION["CMPXCHG"], OPERATION["CMPXCHG8B"]


def integer_rows(mode=2):
    """The rows of the integer groups that exist in a mode."""
    names = " ".join(GROUPS[group] for group in INTEGER_GROUPS) + (" BOUND" if mode != 2 else "")
    operations = _operations(names) - {OPERATION[n] for n in SKIPPED}
    absent = " i64 " if mode == 2 else " o64 "
    return [
        r
        for r in TABLE.rows[1:]
        if r.operation in operations
        and r.mnemonic not in AMD_ONLY_UD
        and absent not in f" {r.text} "
        and not r.feature
    ]


def extension_rows(features):
    """The integer rows beyond x86-64-v1 whose results are defined, of these features."""
    numbers = {FEATURE_NUMBER[name] for name in features}
    skipped = _operations("RDRAND RDSEED RDPID VECTOR X87")
    return [r for r in TABLE.rows[1:] if r.feature in numbers and r.operation not in skipped]


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
    if rng.random() < (0.05 if mode == 2 else 0.3):
        # in 64-bit mode not FS: the host's has a base
        head += rng.choice(
            (b"\x2e", b"\x3e", b"\x65") if mode == 2 else (b"\x26", b"\x36", b"\x3e", b"\x64", b"\x65")
        )
    if row.map > VEX_MAP:
        head = head.replace(b"\x66", b"") + vex(row, mode, rng)
    else:
        head += MANDATORY[row.prefix]
        if mode == 2 and rng.random() < 0.6:
            head += bytes((0x40 | rng.randrange(16),))
        opcode = row.opcode
        if row.register:
            opcode += rng.randrange(8)
        elif row.condition:
            opcode += rng.randrange(16)
        head += ESCAPE[row.map] + bytes((opcode,))
    if row.flags & F_MODRM:
        forms = {"mem": (0, 1, 2), "reg": (3,)}.get(row.form, (0, 1, 2, 3, 3, 3))
        mod, rm = rng.choice(forms), rng.randrange(8) if row.rm is None else row.rm
        reg = rng.randrange(8) if row.digit is None else row.digit
        head += bytes((mod << 6 | reg << 3 | rm,))
        if mod != 3:
            head += bytes((rng.choice(SIBS), rng.randrange(256), rng.randrange(256), 0, 0))
    return (head + rng.choice(IMMEDIATES) + rng.randbytes(8))[:15]


def _signed(number):
    return number - (1 << 64) if number >> 63 else number


class Maker:
    """Builds one case: `code`, `gpr`, `memory`, `undefined` (status flags); `sensible` says whether it is one."""

    def __init__(self, row, rng, mode):
        self.row, self.rng, self.mode = row, rng, mode
        self.layout = LAYOUTS[mode]
        self.code = encoding(row, rng, mode)
        decoder = iced.Decoder(
            BITS[mode], self.code, iced.DecoderOptions.FORCE_RESERVED_NOP, ip=self.layout.rip
        )
        self.ins = decoder.decode()
        self.sensible = not self.ins.is_invalid
        # Intel's processors ignore the operand-size prefix of near branches in 64-bit mode, AMD's do not
        if mode == 2 and row.operation in BRANCHES and b"\x66" in self.code[:4]:
            self.sensible = False
        if not self.sensible:
            return
        self.constants = decoder.get_constant_offsets(self.ins)
        self.code = self.code[: self.ins.len]
        self.gpr = [value(rng) for _ in range(16)]
        self.memory = bytearray(rng.randbytes(WINDOW))
        for _ in range(8):
            self.put(rng.randrange(0, WINDOW - 8, 8), value(rng))
        self.undefined = sum(bit for key, bit in FLAG_BITS.items() if self.ins.rflags_undefined & key)
        self.stack()
        self.registers()
        self.branch()
        if any(self.ins.op_kind(i) == iced.OpKind.MEMORY for i in range(self.ins.op_count)):
            self.operand_in_memory()
        else:
            self.operand_in_register()
        if row.operation in COUNTED:
            self.counted()

    def put(self, at, number, size=8):
        """Store into the window where it fits."""
        if 0 <= at <= WINDOW - size:
            self.memory[at : at + size] = (number & (1 << 8 * size) - 1).to_bytes(size, "little")

    def pointer(self, number, linear, segment):
        """A register that holds the offset of a linear address, with anything above 16 bits in real mode."""
        offset = linear - self.layout.bases[segment]
        if self.mode == 0:
            offset |= self.rng.getrandbits(16) << 16 if self.short_addresses() else 0
        self.gpr[number] = offset & MASK64

    def short_addresses(self):
        """Whether addresses are 16 bits wide: real mode without an address-size prefix."""
        return self.mode == 0 and b"\x67" not in self.code[:5]

    def landing(self):
        """Where a branch may go: inside the code page, not into the instruction itself."""
        return self.layout.rip + self.rng.choice((-1, 1)) * self.rng.randrange(20, 700)

    def patch(self, offset, size, number):
        """Replace a displacement or an immediate."""
        raw = (number & (1 << 8 * size) - 1).to_bytes(size, "little")
        self.code = self.code[:offset] + raw + self.code[offset + size :]

    def stack(self):
        rng, operation = self.rng, self.row.operation
        top = WINDOW // 2 + rng.choice((0, 0, 0, 8, 1))
        self.gpr[RSP] = self.layout.window + top - self.layout.bases[SS]
        if operation in FRAMES:
            self.gpr[RBP] = (
                self.layout.window + WINDOW // 2 + 8 * rng.randrange(-10, 20) - self.layout.bases[SS]
            )
        if operation == ENTER and (rng.random() < 0.9 or self.mode != 2):
            self.patch(self.constants.immediate_offset, 2, rng.randrange(200))
        if operation == RET:
            self.put(top, self.landing())
        elif operation == POPF:
            self.put(top, rng.getrandbits(64) & POPPED)
        elif operation == POPA:
            self.put(top + 16, rng.getrandbits(16))

    def registers(self):
        rng, operation, window = self.rng, self.row.operation, self.layout.window
        if operation in STRINGS:
            source = self.ins.memory_segment - iced.Register.ES
            self.pointer(RSI, window + rng.randrange(200, WINDOW - 200), source if 0 <= source < 6 else DS)
            self.pointer(RDI, window + rng.randrange(200, WINDOW - 200), ES)
            self.gpr[RCX] = rng.randrange(20) if rng.random() < 0.8 else rng.randrange(200)
            if self.mode == 2 and b"\x67" in self.code[:-1]:
                self.gpr[RCX] |= rng.choice((0, 0xABCD << 32))
                self.gpr[RSI] |= rng.choice((0, 0xABCD << 32))
        if operation in COUNTED and rng.random() < 0.6:
            self.gpr[RCX] = rng.randrange(70)
        if operation == XLAT:
            self.pointer(
                RBX, window + rng.randrange(WINDOW - 256), self.ins.memory_segment - iced.Register.ES
            )
        if operation in DIVISIONS and rng.random() < 0.7:
            self.gpr[RDX] = rng.choice((0, 0, 1, MASK64, rng.getrandbits(8)))
        if operation in BIT_TESTS and self.ins.op1_kind == iced.OpKind.REGISTER:
            number = NUMBERS[REGISTER[self.ins.op1_register]]
            if number in (
                NUMBERS.get(REGISTER[self.ins.memory_base]),
                NUMBERS.get(REGISTER[self.ins.memory_index]),
            ):
                self.sensible = False  # one register cannot be both a small offset and an address
            self.gpr[number] = rng.randrange(-500, 500) & MASK64

    def branch(self):
        if self.row.operation not in BRANCHES:
            return
        size = self.constants.immediate_size
        if size == 1:
            if self.code[-1] > 0xE0:
                self.code = self.code[:-1] + b"\x20"  # not into the instruction itself
        elif size and self.row.operation != RET:
            self.patch(self.constants.immediate_offset, size, self.landing() - self.layout.rip)

    def operand_in_memory(self):
        """Make base, index or displacement reach into the window."""
        rng, ins, operation, layout = self.rng, self.ins, self.row.operation, self.layout
        if operation == XLAT:
            return
        target = layout.window + 64 + rng.randrange(WINDOW - 192)
        if self.mode == 2 and rng.random() < 0.04:  # the operand may cross into the page that is not there
            target = layout.window + WINDOW - rng.randrange(1, 17)
            # MOVSXD r16 reads 2 bytes on Intel's processors, 4 on AMD's
            self.sensible &= self.row.mnemonic != "MOVSXD" or b"\x66" not in self.code[:4]
        elif rng.random() < 0.5 or operation == CMPXCHG8B:
            target &= ~15
        base, index = REGISTER[ins.memory_base], REGISTER[ins.memory_index]
        segment = ins.memory_segment - iced.Register.ES
        offset = target - (layout.bases[segment] if self.mode == 0 else 0)
        if base in ("RIP", "EIP") or (base == "NONE" and index == "NONE"):
            origin = layout.rip + ins.len if "IP" in base else 0
            self.patch(self.constants.displacement_offset, self.constants.displacement_size, offset - origin)
        else:
            rest = offset - _signed(ins.memory_displacement)
            if index != "NONE" and base == "NONE":
                self.gpr[NUMBERS[index]] = (rest >> ins.memory_index_scale.bit_length() - 1) & MASK64
            elif index not in ("NONE", base):
                self.gpr[NUMBERS[index]] = rng.randrange(-8, 8) & MASK64
                rest -= _signed(self.gpr[NUMBERS[index]]) * ins.memory_index_scale
            if base != "NONE":
                self.gpr[NUMBERS[base]] = rest & MASK64
            if self.short_addresses() and "SP" not in base:
                self.gpr[NUMBERS[base]] = rest & 0xFFFF | rng.getrandbits(16) << 16
        at = target - layout.window
        if operation in INDIRECT:
            self.put(at, self.landing())
        if operation in EXCHANGES and rng.random() < 0.5:
            half = 4 if ins.mnemonic == iced.Mnemonic.CMPXCHG8B else 8
            self.put(at, self.gpr[RAX])
            self.put(at + half, self.gpr[RDX], half)
        if operation == BOUND and rng.random() < 0.7:
            size = 2 if iced.RegisterExt.size(ins.op0_register) == 2 else 4
            index = _signed(self.gpr[NUMBERS[REGISTER[ins.op0_register]]] & MASK64)
            self.put(at, index - rng.randrange(-1, 3), size)
            self.put(at + size, index + rng.randrange(-1, 3), size)

    def operand_in_register(self):
        first = REGISTER[self.ins.op0_register] if self.ins.op_count else ""
        if self.row.operation in INDIRECT:
            self.gpr[NUMBERS[first]] = self.landing()
        elif self.row.operation == CMPXCHG and first in NUMBERS and self.rng.random() < 0.5:
            self.gpr[RAX] = self.gpr[NUMBERS[first]]

    def counted(self):
        """Shifts: what is undefined depends on the count."""
        ins = self.ins
        if ins.op0_kind == iced.OpKind.REGISTER:
            bits = 8 * iced.RegisterExt.size(ins.op0_register)
        else:
            bits = 8 * iced.MemorySizeExt.size(ins.memory_size)
        if self.constants.has_immediate:
            count = self.code[-1]
        else:
            count = self.gpr[RCX] if self.row.operands[-1] == "CL" else 1
        count &= 63 if bits == 64 else 31
        if self.row.operation in DOUBLE_SHIFTS and count > bits:
            self.sensible = False  # the result is undefined
        if count != 1:
            self.undefined |= 0x800  # and unchanged for 0, which the other cases show
        if count == 0:
            self.undefined = 0
        if self.row.operation in PLAIN_SHIFTS and count >= bits:
            self.undefined |= 1


def batch(rows, each, seed, mode=2):
    """`each` cases of every row. Returns (cases, mask of defined RFLAGS bits per case, row per case)."""
    rng = random.Random(seed)
    makers = [m for row in rows for m in (Maker(row, rng, mode) for _ in range(each)) if m.sensible]
    cases = new_cases(len(makers), mode)
    defined = np.full(len(makers), DEFINED, np.uint64)
    for i, made in enumerate(makers):
        set_code(cases, i, made.code)
        cases["gpr"][i] = [n & MASK64 for n in made.gpr]
        cases["memory"][i] = np.frombuffer(bytes(made.memory), np.uint8)
        cases["rflags"][i] = 0x202 | rng.getrandbits(12) & 0x8D5 | (rng.random() < 0.3) << 10
        defined[i] &= np.uint64(MASK64 ^ made.undefined)
    if mode != 2:
        cases["gpr"] &= np.uint64(0xFFFF_FFFF)
        cases["gpr"][:, 8:] = 0
    return cases, defined, [m.row for m in makers]

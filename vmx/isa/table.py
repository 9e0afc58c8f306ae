"""The instruction table: rows parsed into objects, and the dense arrays that the compiled decoder reads.

Look-up: `OPCODES[map << 8 | opcode]` is a cell. A cell below FIRST_GROUP is a row; from FIRST_GROUP on it is a
group, indexed by mandatory prefix (none, 66, F3, F2; of VEX: pp), ModRM.reg and register/memory form; an entry from
FIRST_RM on is a list indexed by ModRM.rm. 0 is "no instruction".
"""

import re
from dataclasses import dataclass, field

import numpy as np

from vmx.isa import integer_rows
from vmx.isa.features import FEATURE_NUMBER
from vmx.isa.operations import OPERATION

# operand kinds
(
    K_NONE, K_E, K_G, K_Z, K_IMM, K_REL, K_ACC, K_CL, K_DX, K_MOFFS, K_SREG, K_CREG, K_DREG, K_STRING, K_FAR, K_R,
    K_VECTOR,
) = range(17)  # fmt: skip

# operand sizes
S_NONE, S_B, S_W, S_D, S_Q, S_V, S_Y, S_Z, S_X = range(9)

# immediates
I_NONE, I_8, I_8S, I_16, I_Z, I_V, I_MOFFS, I_FAR, I_16_8, I_CONST = range(10)

# row flags
(F_MODRM, F_LOCK, F_D64, F_F64, F_I64, F_O64, F_END, F_CONDITION, F_VECTOR) = (1 << i for i in range(9))

FIRST_GROUP = 0x4000
FIRST_RM = 0x6000
MAPS = {"": 0, "0F": 1, "0F 38": 2, "0F 3A": 3}
VEX_MAP = 3  # what a VEX prefix adds to the number of a map
MAP_COUNT = 7
PREFIXES = {"NP": (0,), "66": (1,), "F3": (2,), "F2": (3,), "": (0, 1, 2, 3)}


@dataclass
class Row:
    """One opcode form. `text` is the line it was written as."""

    text: str
    mnemonic: str
    operands: list[str]
    operation: int
    map: int
    opcode: int
    prefix: str = ""
    digit: int | None = None
    form: str = ""  # "", "mem" or "reg"
    rm: int | None = None
    flags: int = 0
    constant: int | None = None
    condition: bool = False
    register: bool = False  # +r
    immediate: int = I_NONE
    size: int = S_NONE
    kinds: list[tuple[int, int]] = field(default_factory=list)
    number: int = 0
    data: object = None  # for rows that other modules add (vector instructions)
    feature: int = 0  # number of the feature that the processor must offer: see vmx.isa.features

    @property
    def name(self) -> str:
        return f"{self.mnemonic} {','.join(self.operands)}".strip()


_SIZES = {
    "b": S_B,
    "w": S_W,
    "d": S_D,
    "q": S_Q,
    "v": S_V,
    "y": S_Y,
    "z": S_Z,
    "p": S_NONE,
    "a": S_V,
    "": S_NONE,
    "dq": S_X,
}
_FIXED = {
    "AL": (K_ACC, S_B), "rAX": (K_ACC, S_V), "eAX": (K_ACC, S_Z), "CL": (K_CL, S_B), "DX": (K_DX, S_W),
    "v": (K_NONE, S_V), "1": (K_IMM, S_B), "Ibs": (K_IMM, S_NONE), "Iwb": (K_IMM, S_NONE), "Jbs": (K_REL, S_NONE),
    "ES": (K_SREG, S_NONE), "CS": (K_SREG, S_NONE), "SS": (K_SREG, S_NONE), "DS": (K_SREG, S_NONE),
    "FS": (K_SREG, S_NONE), "GS": (K_SREG, S_NONE),
}  # fmt: skip
_LETTERS = {
    "E": K_E, "M": K_E, "G": K_G, "Z": K_Z, "I": K_IMM, "J": K_REL, "O": K_MOFFS, "S": K_SREG, "C": K_CREG,
    "D": K_DREG, "X": K_STRING, "Y": K_STRING, "A": K_FAR, "R": K_R,
}  # fmt: skip
_IMMEDIATES = {
    "Ib": I_8,
    "Ibs": I_8S,
    "Iw": I_16,
    "Iz": I_Z,
    "Iv": I_V,
    "Jbs": I_8S,
    "Jz": I_Z,
    "Ap": I_FAR,
    "Iwb": I_16_8,
}
_FLAGS = {"lock": F_LOCK, "d64": F_D64, "f64": F_F64, "i64": F_I64, "o64": F_O64, "end": F_END}


def parse(text: str) -> Row:
    """One line of the table (see vmx.isa.integer_rows) as a Row. ValueError names the line."""
    try:
        encoding, mnemonic, operands, attributes = (part.strip() for part in text.split("|"))
    except ValueError:
        raise ValueError(f"instruction row {text!r}: four parts separated by | are needed") from None
    tokens = encoding.split()
    vex = tokens[0] == "VEX" and tokens.pop(0)
    prefix = (
        tokens.pop(0)
        if tokens[0] in ("NP", "66", "F3", "F2") and len(tokens) > 1 and re.match(r"[0-9A-F]{2}", tokens[1])
        else ""
    )
    opcode_bytes = []
    while tokens and re.match(r"[0-9A-F]{2}(\+[rc])?$", tokens[0]):
        opcode_bytes.append(tokens.pop(0))
    last, _, suffix = opcode_bytes[-1].partition("+")
    row = Row(
        text,
        mnemonic,
        [o for o in operands.split(",") if o],
        0,
        MAPS[" ".join(opcode_bytes[:-1])] + (VEX_MAP if vex else 0),
        int(last, 16),
        prefix,
    )
    row.condition, row.register = suffix == "c", suffix == "r"
    for token in tokens:
        if token == "/r":
            row.flags |= F_MODRM
        elif token[0] == "/":
            row.flags, row.digit = row.flags | F_MODRM, int(token[1:])
        elif token.startswith("rm="):
            row.rm = int(token[3:])
        else:
            row.form = token
            row.flags |= F_MODRM
    operation, sized = mnemonic, 0
    for attribute in attributes.split():
        key, _, value = attribute.partition("=")
        if key == "op":
            operation = value
        elif key == "value":
            row.constant, row.immediate = int(value), I_CONST
        elif key == "feature":
            row.feature = FEATURE_NUMBER[value]
        elif key == "sized":
            sized = int(value)
        else:
            row.flags |= _FLAGS[key]
    if row.condition:
        row.flags |= F_CONDITION
    row.operation = OPERATION[operation]
    for position, operand in enumerate(row.operands):
        if operand[0] == "B":
            continue  # VEX.vvvv: the decoder leaves its number in the immediate
        kind, size = _FIXED.get(operand) or (_LETTERS[operand[0]], _SIZES[operand[1:]])
        row.kinds.append((kind, size))
        if operand in _IMMEDIATES:
            row.immediate = _IMMEDIATES[operand]
        elif kind == K_MOFFS:
            row.immediate = I_MOFFS
        elif operand == "1":
            row.constant, row.immediate = 1, I_CONST
        # the operand size is that of a register or memory operand: immediates have their own
        counts = position >= sized and size not in (S_NONE, S_X) and kind not in (K_DX, K_IMM, K_REL)
        if row.size == S_NONE and counts:
            row.size = size
        if kind in (K_CREG, K_DREG):
            row.size = S_Y
    return row


def _expand(row: Row) -> list[int]:
    if row.register:
        return [row.opcode + i for i in range(8)]
    if row.condition:
        return [row.opcode + i for i in range(16)]
    return [row.opcode]


class Table:
    """Rows and decoder arrays. `add` more rows before `freeze`."""

    def __init__(self):
        self.rows: list[Row] = [Row("", "(bad)", [], OPERATION["UD"], 0, 0)]

    def add(self, row: Row) -> None:
        row.number = len(self.rows)
        self.rows.append(row)

    def freeze(self) -> None:
        """Build the arrays."""
        self.opcodes = np.zeros(MAP_COUNT * 256, np.int64)
        self.feature = np.array([r.feature for r in self.rows], np.int64)
        self.instead = np.zeros(len(self.rows), np.int64)  # the row where the feature is not offered
        by_opcode: dict[int, list[Row]] = {}
        for row in self.rows[1:]:
            for opcode in _expand(row):
                if row.register and opcode == 0x90 and row.map == 0:
                    continue  # 90 is NOP; the decoder turns 90 with REX.B into XCHG
                if row.mnemonic == "ARPL":
                    continue  # 63 is MOVSXD; the decoder turns it into ARPL outside 64-bit mode
                by_opcode.setdefault(row.map << 8 | opcode, []).append(row)
        groups, lists = [np.zeros(64, np.int64)], []
        for cell, rows in by_opcode.items():
            if len(rows) == 1 and rows[0].digit is None and not rows[0].form and not rows[0].prefix:
                self.opcodes[cell] = rows[0].number
                continue
            self.opcodes[cell] = FIRST_GROUP + len(groups)
            groups.append(self._group(rows, lists))
        self.groups = np.concatenate(groups)
        self.rm_lists = np.array(lists or [[0] * 8], np.int64).reshape(-1)
        self.modrm_cells = np.array(
            [int(any(r.flags & F_MODRM for r in by_opcode.get(cell, []))) for cell in range(MAP_COUNT * 256)],
            np.int64,
        )
        self.operation = np.array([r.operation for r in self.rows], np.int64)
        self.flags = np.array([r.flags for r in self.rows], np.int64)
        self.immediate = np.array([r.immediate for r in self.rows], np.int64)
        self.constant = np.array([r.constant or 0 for r in self.rows], np.int64)
        self.size = np.array([r.size for r in self.rows], np.int64)
        kinds = np.zeros((len(self.rows), 3, 2), np.int64)
        for row in self.rows:
            for i, pair in enumerate(row.kinds[:3]):
                kinds[row.number, i] = pair
        self.kinds = kinds.reshape(-1)
        first_xchg = next(r for r in self.rows if r.mnemonic == "XCHG" and r.register)
        self.xchg_row = first_xchg.number
        self.arpl_row = next(r for r in self.rows if r.mnemonic == "ARPL").number

    def _group(self, rows, lists):
        group = np.zeros(64, np.int64)
        # rows without a mandatory prefix first: rows with one replace them in their column
        for row in sorted(rows, key=lambda r: (r.prefix != "", r.rm is not None)):
            for prefix in PREFIXES[row.prefix]:
                for digit in range(8) if row.digit is None else (row.digit,):
                    for is_register in {"": (0, 1), "mem": (0,), "reg": (1,)}[row.form]:
                        index = prefix << 4 | digit << 1 | is_register
                        if row.rm is None:
                            if row.feature:
                                self.instead[row.number] = group[index]
                            group[index] = row.number
                            continue
                        if group[index] < FIRST_RM:
                            lists.append([int(group[index])] * 8)
                            group[index] = FIRST_RM + len(lists) - 1
                        lists[group[index] - FIRST_RM][row.rm] = row.number
        return group


def build() -> Table:
    """The whole table."""
    table = Table()
    for line in integer_rows.lines():
        table.add(parse(line))
    try:
        from vmx.isa import vector_rows, vector_v2_rows, x87_rows
    except ImportError:
        pass
    else:
        vector_rows.add_to(table, vector_rows.ROWS + vector_v2_rows.ROWS_V2)
        x87_rows.add_to(table)
    table.freeze()
    return table


TABLE = build()

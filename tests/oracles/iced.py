"""iced-x86 as an oracle: what it decodes, and how that compares with a DECODED record and its table row."""

from functools import lru_cache

import iced_x86 as iced

from tests.oracles.decoding import DECODED_OK, SLOT
from vmx.isa.table import F_VECTOR, K_CL, S_B, S_D, S_Q, S_V, S_W, S_Y, S_Z, TABLE
from vmx.state.processor import (
    NO_REGISTER,
    OPERAND_HIGH,
    OPERAND_MEMORY,
    PREFIX_LOCK,
    PREFIX_REP,
    PREFIX_REPNE,
    RIP_REGISTER,
)

BITS = (16, 32, 64)  # by mode


def _names(enumeration):
    return {v: k for k, v in vars(enumeration).items() if isinstance(v, int) and k.isupper()}


MNEMONIC, REGISTER, FEATURE = _names(iced.Mnemonic), _names(iced.Register), _names(iced.CpuidFeature)
KIND = iced.OpKind
MEMORY_KIND = KIND.MEMORY
SEGMENTS = "ES CS SS DS FS GS".split()


def decoder(code: bytes, mode: int):
    """A decoder over slots; hint and CET encodings are the NOPs that they are on processors without them."""
    return iced.Decoder(BITS[mode], code, iced.DecoderOptions.FORCE_RESERVED_NOP)


def decode_slots(code, mode):
    """One instruction per slot (`is_invalid` when there is none)."""
    each = decoder(code.tobytes(), mode)
    for i in range(len(code)):
        each.position = i * SLOT
        each.ip = 0x1000
        yield each.decode()


@lru_cache(None)
def features(code: int) -> frozenset[str]:
    """CPUID features that an iced `Code` needs."""
    return frozenset(FEATURE[f] for f in iced.Instruction.create(code).cpuid_features())


# --- names --------------------------------------------------------------------------------------------------

_CONDITIONS = ("O", "NO", "B", "AE", "E", "NE", "BE", "A", "S", "NS", "P", "NP", "L", "GE", "LE", "G")
_SUFFIX = {1: "B", 2: "W", 4: "D", 8: "Q"}
_WIDE = {2: "", 4: "D", 8: "Q"}
_COUNTER = {2: "JCXZ", 4: "JECXZ", 8: "JRCXZ"}
_BY_SIZE = {"CONVERT_A": {2: "CBW", 4: "CWDE", 8: "CDQE"}, "CONVERT_D": {2: "CWD", 4: "CDQ", 8: "CQO"}}
# names that only the syntax chooses: the same instruction
ALIASES = {
    "XLAT": {"XLATB"},
    "FWAIT": {"WAIT"},
    "WBINVD": {"WBINVD", "WBNOINVD"},  # F3 is ignored by processors without WBNOINVD, TZCNT, LZCNT
    "BSF": {"BSF", "TZCNT"},
    "XCHG": {"XCHG", "PAUSE"},  # F3 with REX.B and 90: processors exchange R8, see tests/cpu/data
    "BSR": {"BSR", "LZCNT"},
    "PREFETCHNTA": {"RESERVEDNOP"},  # for iced with FORCE_RESERVED_NOP
    "PREFETCHT0": {"RESERVEDNOP"},
    "PREFETCHT1": {"RESERVEDNOP"},
    "PREFETCHT2": {"RESERVEDNOP"},
    "PREFETCHW": {"RESERVEDNOP", "PREFETCHW"},
    "NOP": {"RESERVEDNOP", "NOP"},
    "MOVD": {"MOVD", "MOVQ"},
    "PEXTRD": {"PEXTRD", "PEXTRQ"},
    "PINSRD": {"PINSRD", "PINSRQ"},
    "PCMPESTRI": {"PCMPESTRI", "PCMPESTRI64"},
    "PCMPESTRM": {"PCMPESTRM", "PCMPESTRM64"},
    "FXSAVE": {"FXSAVE", "FXSAVE64"},
    "FXRSTOR": {"FXRSTOR", "FXRSTOR64"},
    "XSAVE": {"XSAVE", "XSAVE64"},
    "XRSTOR": {"XRSTOR", "XRSTOR64"},
    "XSAVEOPT": {"XSAVEOPT", "XSAVEOPT64"},
    "SYSEXIT": {"SYSEXIT", "SYSEXITQ"},
    "SYSRET": {"SYSRET", "SYSRETQ"},
    "RSM": {"RSM"},
    "FSTP": {"FSTP", "FSTPNCE"},
    "CMPXCHG8B": {"CMPXCHG8B", "CMPXCHG16B"},
}


def mnemonics(row, d, mode):
    """The names under which iced may know this instruction."""
    name, size = row.mnemonic, int(d["size"])
    if row.condition:
        return {{"JCC": "J", "SETCC": "SET", "CMOV": "CMOV"}[name] + _CONDITIONS[d["reg"]]}
    if name in _BY_SIZE:
        return {_BY_SIZE[name][size]}
    if name == "JCXZ":
        return {_COUNTER[int(d["address_size"])]}
    if name in ("MOVS", "CMPS", "STOS", "LODS", "SCAS", "INS", "OUTS"):
        return {name + _SUFFIX[size]}
    if name in ("PUSHA", "POPA", "PUSHF", "POPF", "IRET"):
        return {name + _WIDE[size]}
    return ALIASES.get(name, {name})


# --- operands -----------------------------------------------------------------------------------------------

_WORDS = "AX CX DX BX SP BP SI DI".split()


@lru_cache(None)
def register_name(code: int, size: int) -> str:
    """The name of a general register by operand code and size in bytes."""
    if code >= OPERAND_HIGH:
        return "AH CH DH BH".split()[code - OPERAND_HIGH]
    if code >= 8:
        return f"R{code}" + {1: "L", 2: "W", 4: "D", 8: ""}[size]
    if size == 1:
        return "AL CL DL BL SPL BPL SIL DIL".split()[code]
    return {2: "", 4: "E", 8: "R"}[size] + _WORDS[code]


def _address_register(code, size):
    if code == NO_REGISTER:
        return "NONE"
    if code == RIP_REGISTER:
        return "RIP" if size == 8 else "EIP"
    return register_name(code, size)


def memory_of(d):
    """Base, index, scale, displacement and segment of a record, as iced names them."""
    size = int(d["address_size"])
    base, index = int(d["base"]), int(d["index"])
    displacement = int(d["displacement"]) & ((1 << 8 * size) - 1)
    if (
        size == 2 and base == NO_REGISTER
    ):  # SI and DI alone are an index in the manual's table, a base for iced
        base, index = index, base
    if base == RIP_REGISTER:  # iced gives the target
        displacement = (0x1000 + int(d["length"]) + displacement) & ((1 << 8 * size) - 1)
    return (
        _address_register(base, size),
        _address_register(index, size),
        1 << int(d["scale"]) if index != NO_REGISTER else 1,
        displacement,
    )


def memory_in(instruction):
    """The same of an iced instruction."""
    index = REGISTER[instruction.memory_index]
    size = {"EIP": 4, "RIP": 8}.get(REGISTER[instruction.memory_base])
    displacement = instruction.memory_displacement
    return (
        REGISTER[instruction.memory_base],
        index,
        1 if index == "NONE" else instruction.memory_index_scale,
        displacement & ((1 << 8 * size) - 1) if size else displacement,
    )


def _size(code, d):
    size = int(d["size"])
    if code == S_V:
        return size
    if code == S_Z:
        return 2 if size == 2 else 4
    if code == S_Y:
        return 8 if size == 8 else 4
    return {S_B: 1, S_W: 2, S_D: 4, S_Q: 8}.get(code, size)


def _segment(d, instruction, mode):
    """Differences of the segment: in 64-bit mode only FS and GS have one."""
    ours, theirs = int(d["segment"]), REGISTER[instruction.memory_segment]
    if mode == 2 and theirs not in ("FS", "GS"):
        return [] if ours == 8 else [f"segment {ours}, iced {theirs}"]
    return [] if ours < 6 and SEGMENTS[ours] == theirs else [f"segment {ours}, iced {theirs}"]


_IMMEDIATE_KINDS = range(KIND.IMMEDIATE8, KIND.IMMEDIATE32TO64 + 1)
_SOURCE_KINDS = {2: KIND.MEMORY_SEG_SI, 4: KIND.MEMORY_SEG_ESI, 8: KIND.MEMORY_SEG_RSI}
_TARGET_KINDS = {2: KIND.MEMORY_ESDI, 4: KIND.MEMORY_ESEDI, 8: KIND.MEMORY_ESRDI}


def _operand(row, d, instruction, i, text, mode):
    """Differences of operand i."""
    theirs = instruction.op_kind(i)
    letter = text[0]
    kind, size_code = row.kinds[i] if i < len(row.kinds) else (0, 0)
    size = _size(size_code, d)
    if row.mnemonic == "MOVSXD" and text == "Ed":
        size = min(4, int(d["size"]))
    code = int(d["dst"] if i == 0 else d["src"])
    # VEX.vvvv has no operand code: its number is the immediate
    if "B" in (o[0] for o in row.operands) and text != "Ib":
        position = [o for o in row.operands if o[0] != "B"].index(text) if letter != "B" else 0
        code = int(d["immediate"]) if letter == "B" else int((d["dst"], d["src"])[position])
        size_code = S_Y
        size = _size(S_Y, d)
    if row.mnemonic == "CRC32" and i == 0:
        size = 8 if d["rex"] & 8 else 4
    if text in ("AL", "rAX", "eAX"):
        expected = register_name(0, {"AL": 1, "rAX": int(d["size"]), "eAX": min(int(d["size"]), 4)}[text])
    elif text == "CL" or kind == K_CL:
        expected = "CL"
    elif text == "DX":
        expected = "DX"
    elif text in SEGMENTS:
        expected = text
    elif letter == "S":
        expected = SEGMENTS[d["reg"]] if d["reg"] < 6 else "none"
    elif letter == "C":
        expected = f"CR{d['reg']}"
    elif letter == "D":
        expected = f"DR{d['reg']}"
    elif letter in "EGZRMB":
        if code == OPERAND_MEMORY:
            if theirs != MEMORY_KIND:
                return [f"operand {i} memory, iced kind {theirs}"]
            return []  # compared once for the instruction
        expected = register_name(code, size)
    elif letter == "O":
        ours, other = int(d["immediate"]) & (1 << 64) - 1, instruction.memory_displacement
        return [] if ours == other else [f"offset {ours:#x}, iced {other:#x}"]
    elif letter == "X":
        return [] if theirs == _SOURCE_KINDS[int(d["address_size"])] else [f"string source kind {theirs}"]
    elif letter == "Y":
        return [] if theirs == _TARGET_KINDS[int(d["address_size"])] else [f"string target kind {theirs}"]
    elif letter == "J":
        width = (1 << 8 * int(d["size"])) - 1
        target = (0x1000 + int(d["length"]) + int(d["immediate"])) & width
        return [] if target == instruction.near_branch_target else [
            f"target {target:#x}, iced {instruction.near_branch_target:#x}"
        ]  # fmt: skip
    elif letter == "A":
        ours = int(d["immediate"])
        offset = instruction.far_branch32 if d["size"] != 2 else instruction.far_branch16
        selector = instruction.far_branch_selector
        return [] if ours & 0xFFFF_FFFF == offset and ours >> 32 == selector else [f"far pointer {ours:#x}"]
    elif text == "Iwb":
        ours = int(d["immediate"])
        other = (instruction.immediate16, instruction.immediate8_2nd)
        return [] if (ours & 0xFFFF, ours >> 32) == other else [f"ENTER {ours:#x}, iced {other}"]
    else:  # immediates, and the constant 1 of shifts
        width = (1 << 8 * int(d["size"])) - 1 if text != "Ib" else 0xFF
        if text == "Iw":
            width = 0xFFFF
        ours, other = int(d["immediate"]) & width, instruction.immediate(i) & width
        return [] if theirs in _IMMEDIATE_KINDS and ours == other else [
            f"immediate {ours:#x}, iced {other:#x} kind {theirs}"
        ]  # fmt: skip
    register = REGISTER[instruction.op_register(i)] if theirs == KIND.REGISTER else f"kind {theirs}"
    if text in ("Ew", "Gw") and register in (register_name(code, 4), register_name(code, 8)):
        return []  # the low word of it
    return [] if register == expected else [f"operand {i} {expected}, iced {register}"]


def _vector_operand(row, d, instruction, i, text, mode):
    theirs, letter = instruction.op_kind(i), text[0]
    memory = d["modrm"] < 0xC0
    if text == "Ib":
        return [] if int(d["immediate"]) & 0xFF == instruction.immediate(i) & 0xFF else ["immediate"]
    if letter in "WQEM" and memory:
        return [] if theirs == MEMORY_KIND else [f"operand {i} memory, iced kind {theirs}"]
    number = int(d["reg"]) if letter in "VPG" else int(d["modrm"]) & 7 | (int(d["rex"]) & 1) << 3
    if letter in "VWU":
        expected = f"XMM{number}"
    elif letter in "PQN":
        expected = f"MM{number & 7}"
    else:
        return [] if theirs == KIND.REGISTER and (
            REGISTER[instruction.op_register(i)]
            in (register_name(number, 4), register_name(number, 8))
        ) else [f"operand {i} register {number}"]  # fmt: skip
    register = REGISTER[instruction.op_register(i)] if theirs == KIND.REGISTER else f"kind {theirs}"
    return [] if register == expected else [f"operand {i} {expected}, iced {register}"]


def differences(d, instruction, mode: int) -> list[str]:
    """How a decoded record (status DECODED_OK) differs from iced's valid instruction; empty: not at all."""
    if d["length"] != instruction.len:
        return [f"length {d['length']}, iced {instruction.len}"]
    row = TABLE.rows[d["row"]]
    found = []
    name = MNEMONIC[instruction.mnemonic]
    expected = mnemonics(row, d, mode)
    if name not in expected:
        found.append(f"{'/'.join(sorted(expected))}, iced {name}")
        return found
    if name == "PAUSE" and row.mnemonic == "XCHG":
        return found
    if name == "RESERVEDNOP" or row.mnemonic == "PREFETCHW":
        return found  # iced gives reserved NOPs a register operand that nothing reads
    vector = row.flags & F_VECTOR
    check = _vector_operand if vector else _operand
    texts = [o for o in row.operands if o not in ("v",)]
    implicit = (
        1 if row.mnemonic in ("MASKMOVQ", "MASKMOVDQU") else 0
    )  # the memory operand comes first for iced
    for i, text in enumerate(texts, implicit):
        if i < instruction.op_count:
            found += check(row, d, instruction, i, text, mode)
        else:
            found.append(f"operand {i} ({text}) is not one for iced")
    kinds = [instruction.op_kind(i) for i in range(instruction.op_count)]
    if MEMORY_KIND in kinds and row.mnemonic not in ("XLAT",):
        if not any(t[0] == "O" for t in row.operands):
            ours, theirs = memory_of(d), memory_in(instruction)
            if ours != theirs:
                found.append(f"memory {ours}, iced {theirs}")
        found += _segment(d, instruction, mode)
    elif any(k in _SOURCE_KINDS.values() for k in kinds) or row.mnemonic in (
        "XLAT",
        "MASKMOVQ",
        "MASKMOVDQU",
    ):
        found += _segment(d, instruction, mode)
    if bool(d["prefixes"] & PREFIX_LOCK) != instruction.has_lock_prefix:
        found.append("LOCK")
    if row.mnemonic in ("MOVS", "STOS", "LODS", "CMPS", "SCAS", "INS", "OUTS"):
        ours = (bool(d["prefixes"] & PREFIX_REP), bool(d["prefixes"] & PREFIX_REPNE))
        theirs = (instruction.has_rep_prefix, instruction.has_repne_prefix)
        if ours != theirs:
            found.append(f"REP {ours}, iced {theirs}")
    return found


__all__ = ["DECODED_OK", "MNEMONIC", "decode_slots", "differences", "features"]

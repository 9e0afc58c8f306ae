"""Every row of the vector and x87 tables against iced-x86."""

import pytest

iced = pytest.importorskip("iced_x86")

from vmx.cpu.native import ROWS  # noqa: E402
from vmx.isa.features import FEATURES  # noqa: E402
from vmx.isa.x87_rows import MEMORY_FORMS, REGISTER_FORMS  # noqa: E402

NAMES = {getattr(iced.Mnemonic, name): name.lower() for name in dir(iced.Mnemonic) if name.isupper()}
WIDE_NAMES = {
    "pextrq": "pextrd",
    "pinsrq": "pinsrd",
    "pcmpestrm64": "pcmpestrm",
    "pcmpestri64": "pcmpestri",
}
REGISTER_CLASS = {"V": "XMM", "W": "XMM", "U": "XMM", "P": "MM", "Q": "MM", "N": "MM", "G": "R", "E": "R"}


def encodings(row):
    """(bytes, REX.W, register form) of a row, with ModRM.reg 2 and rm 1 (register) or [rcx]."""
    forms = {"any": ("reg", "mem"), "none": ("",)}.get(row.form, (row.form,))
    for form in forms:
        for wide in (False, True):
            code = bytes.fromhex(row.prefix) + (b"\x48" if wide else b"") + row.code
            if form:
                code += bytes(((2 if row.reg is None else row.reg) << 3 | (0xC1 if form == "reg" else 0x01),))
            yield code + (b"\x05" if row.imm8 else b""), wide, form


def decode(code):
    return iced.Decoder(64, code + b"\x90" * 8).decode()


def register_name(register):
    return next(n for n in dir(iced.Register) if n.isupper() and getattr(iced.Register, n) == register)


@pytest.mark.parametrize(
    "row", ROWS, ids=lambda r: f"{r.prefix or 'NP'}-{r.opcode:04X}-{r.mnemonic}-{r.form}"
)
def test_vector_row(row):
    for code, wide, form in encodings(row):
        instruction = decode(code)
        name = NAMES[instruction.mnemonic]
        if name == "movq" and wide and row.mnemonic == "movd":
            name = "movd"  # MOVQ is what MOVD is called with REX.W
        elif wide and row.depends_on_rex_w:
            name = WIDE_NAMES.get(name, name)
        assert (instruction.len, name) == (len(code), row.mnemonic)
        if form == "mem":
            size = row.memory_size * (2 if wide and row.rm_operand.endswith("y") else 1)
            assert iced.MemorySizeInfo(instruction.memory_size).size == size
        explicit = [o for o in row.operands if o != "Ib"]
        count = instruction.op_count - row.imm8
        kinds = [instruction.op_kind(i) for i in range(count)]
        if row.action == "masked store":
            count, kinds = count - 1, kinds[1:]  # iced names the memory at rDI too
        assert count == len(explicit)
        for i, (operand, kind) in enumerate(zip(explicit, kinds, strict=True)):
            if kind == iced.OpKind.REGISTER:
                index = i + (row.action == "masked store")
                found = register_name(instruction.op_register(index))
                expected = REGISTER_CLASS[operand[0]]
                assert found.startswith(expected) or (
                    expected == "R" and found in ("ECX", "EDX", "RCX", "RDX")
                )
            else:
                assert operand[0] in "WQEM" and form == "mem"


def test_no_two_rows_claim_one_encoding():
    seen = {}
    for row in ROWS:
        for form in {"any": ("reg", "mem")}.get(row.form, (row.form,)):
            key = row.prefix, row.opcode, row.reg, form
            assert key not in seen, (row, seen[key])
            seen[key] = row


ISA = iced.CpuidFeature
FEATURE_NAMES = {getattr(ISA, name): name for name in dir(ISA) if name.isupper()}


def test_every_row_beyond_v1_names_the_feature_that_iced_names():
    for row in ROWS:
        for code, wide, _ in encodings(row):
            if wide:
                continue
            names = {FEATURE_NAMES[f] for f in decode(code).cpuid_features()}
            needed = {n for n in FEATURES if n.upper() in names}
            assert needed == ({row.feature} if row.feature else set()), (row, names)


@pytest.mark.parametrize("table", [0x0F38, 0x0F3A])
def test_all_of_the_three_byte_maps_is_there(table):
    """Every legacy encoding of the maps 0F 38 and 0F 3A that iced-x86 attributes to SSSE3, SSE4, AES or PCLMULQDQ."""
    wanted = {ISA.SSSE3, ISA.SSE4_1, ISA.SSE4_2, ISA.AES, ISA.PCLMULQDQ}
    rows = {(r.prefix, r.opcode, f) for r in ROWS for f in {"any": ("reg", "mem")}.get(r.form, (r.form,))}
    for opcode in range(0x100):
        for prefix in ("", "66", "F3", "F2"):
            for form, low in (("reg", 0xC1), ("mem", 0x01)):
                code = bytes.fromhex(prefix) + table.to_bytes(2, "big") + bytes((opcode, low, 5))
                instruction = decode(code)
                crc = instruction.mnemonic == iced.Mnemonic.CRC32  # not a vector instruction
                if wanted & set(instruction.cpuid_features()) and not crc:
                    assert (prefix, table << 8 | opcode, form) in rows, (code.hex(), str(instruction))


def test_all_of_mmx_to_sse3_is_there():
    """Every legacy encoding of the map 0F that iced-x86 attributes to MMX, SSE, SSE2 or SSE3 has a row."""
    wanted = {ISA.MMX, ISA.SSE, ISA.SSE2, ISA.SSE3, ISA.CLFSH}
    rows = {
        (r.prefix, r.opcode, r.reg, f) for r in ROWS for f in {"any": ("reg", "mem")}.get(r.form, (r.form,))
    }
    for opcode in range(0x100):
        for prefix in ("", "66", "F3", "F2"):
            for digit in range(8):
                for form, low in (("reg", 0xC1), ("mem", 0x01)):
                    code = bytes.fromhex(prefix) + bytes((0x0F, opcode, digit << 3 | low, 5))
                    instruction = decode(code)
                    if not wanted & set(instruction.cpuid_features()):
                        continue
                    if instruction.mnemonic == iced.Mnemonic.PAUSE:
                        continue
                    keys = {(prefix, 0x0F00 | opcode, r, f) for r in (None, digit) for f in (form, "none")}
                    if prefix in ("F3", "F2", "66") and opcode in (0x77, 0x18, 0xAE, 0x2B, 0xC3):
                        keys |= {("", 0x0F00 | opcode, r, f) for r in (None, digit) for f in (form, "none")}
                    assert keys & rows, (code.hex(), str(instruction))


@pytest.mark.parametrize("key", REGISTER_FORMS, ids=lambda k: f"{k[0]:02X}-{0xC0 | k[1]:02X}")
def test_x87_register_form(key):
    opcode, low = key
    instruction = decode(bytes((opcode, 0xC0 | low)))
    assert (instruction.len, NAMES[instruction.mnemonic]) == (2, REGISTER_FORMS[key].mnemonic)


@pytest.mark.parametrize("key", MEMORY_FORMS, ids=lambda k: f"{k[0]:02X}-{k[1]}")
def test_x87_memory_form(key):
    opcode, reg = key
    instruction = decode(bytes((opcode, reg << 3 | 1)))
    form = MEMORY_FORMS[key]
    assert NAMES[instruction.mnemonic] == form.mnemonic
    assert iced.MemorySizeInfo(instruction.memory_size).size == form.size
    access = iced.InstructionInfoFactory().info(instruction).used_memory()[0].access
    assert form.stores == (access == iced.OpAccess.WRITE)

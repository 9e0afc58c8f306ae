"""Exceptions of vector and x87 instructions: availability, alignment, memory faults, #XM and #MF."""

import struct

import numpy as np
import pytest

from vmx.cpu.native import ROWS, available
from vmx.isa.features import ALL_FEATURES, feature_mask
from vmx.state.processor import (
    CR0_EM,
    CR0_MP,
    CR0_NE,
    CR0_TS,
    CR4_OSXMMEXCPT,
    FAULT,
    GP,
    MF,
    NM,
    OK,
    STOP,
    UD,
    XM,
    Bus,
    NotModelled,
    Stop,
)

if not available():
    pytest.skip("needs an x86-64 Linux host", allow_module_level=True)

from tests.vector.harness import RAM_BYTES, Bench, linked  # noqa: E402

RSI, RDI = 6, 7
IE, DE, ZE, OE, UE, PE = (1 << i for i in range(6))
ALL_MASKED = 0x1F80
ADDPS, DIVPS, MULPD, CVTSD2SS, SQRTPD = "0F58C1", "0F5EC1", "660F59C1", "F20F5AC1", "660F51C1"


@pytest.fixture(scope="module")
def linked_bench():
    linked()
    return Bench()


@pytest.fixture
def bench(linked_bench):
    linked_bench.reset()
    linked_bench.rflags = 2
    return linked_bench


def singles(*values):
    return np.frombuffer(struct.pack("<4f", *values), np.uint64)


def doubles(*values):
    return np.frombuffer(struct.pack("<2d", *values), np.uint64)


def run(bench, code):
    return bench.step(bytes.fromhex(code))


def set_bits(bench, register, bits, value):
    old = int(getattr(bench.cpu, register))
    setattr(bench.cpu, register, old | bits if value else old & ~bits)


# --- availability -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "row", ROWS, ids=lambda r: f"{r.prefix or 'NP'}-{r.opcode:04X}-{r.mnemonic}-{r.form}"
)
def test_availability(row, bench):
    code = bytes.fromhex(row.prefix) + row.code
    if row.form != "none":
        code += bytes(((row.reg or 0) << 3 | (0x06 if row.form == "mem" else 0xC1),))
    code += b"\0" if row.imm8 else b""
    bench.gpr[RSI] = bench.gpr[RDI] = 0x2000
    always = row.action in ("fence", "prefetch", "clflush") or row.mnemonic == "movnti"
    registers = "".join(o[0] for o in row.operands)
    mmx_only = row.mnemonic == "emms" or (set(registers) & set("PQN") and not set(registers) & set("VWU"))
    set_bits(bench, "cr0", CR0_TS, True)
    assert bench.step(code) == (OK if always else FAULT) and (always or bench.fault == NM)
    set_bits(bench, "cr0", CR0_EM, True)
    assert bench.step(code) == (OK if always else FAULT) and (always or bench.fault == UD)
    bench.cpu.cr0, bench.cpu.cr4 = CR0_NE, 0
    expected = OK if always or mmx_only else FAULT
    assert bench.step(code) == expected and (expected == OK or bench.fault == UD)


def test_a_feature_that_is_not_offered(bench):
    """Without its feature a row is no instruction; every other row stays one."""
    for row in ROWS:
        code = bytes.fromhex(row.prefix) + row.code
        if row.form != "none":
            code += bytes(((row.reg or 0) << 3 | (0x06 if row.form == "mem" else 0xC1),))
        code += b"\0" if row.imm8 else b""
        bench.gpr[RSI] = bench.gpr[RDI] = 0x2000
        for mask in (0, ALL_FEATURES, ALL_FEATURES & ~feature_mask([row.feature] if row.feature else [])):
            bench.cpu.features = mask
            offered = not row.feature or mask == ALL_FEATURES
            assert bench.step(code) == (OK if offered else -1), (row, mask)
    for code in ("DB0E", "DD0E", "DF0E"):  # FISTTP
        bench.cpu.features = 0
        assert run(bench, code) == -1
        bench.cpu.features = feature_mask(["sse3"])
        assert run(bench, code) == OK


def test_lock_prefix(bench):
    assert run(bench, "F00F1006") == -1 and run(bench, "F0D806") == -1


def test_without_stubs(bench):
    bench.cpu.host_vector_stubs = 0
    for code in ("0F58C1", "D8C1"):
        assert run(bench, code) == STOP
        assert int(bench.cpu.stop) == Stop.NOT_MODELLED
        assert int(bench.cpu.stop_detail) == NotModelled.HOST_WITHOUT_VECTOR_STUBS


# --- memory operands ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "row", [r for r in ROWS if r.memory_size == 16], ids=lambda r: f"{r.opcode:04X}-{r.mnemonic}"
)
def test_alignment(row, bench):
    code = bytes.fromhex(row.prefix) + row.code + b"\x06" + (b"\0" if row.imm8 else b"")
    bench.gpr[RSI] = 0x2008
    before = bench.fx.copy()
    if row.mnemonic in ("movups", "movupd", "movdqu", "lddqu") or row.action == "string":
        assert bench.step(code) == OK
    else:
        assert bench.step(code) == FAULT and bench.fault == GP
        assert bench.fx.tolist() == before.tolist()


@pytest.mark.parametrize(
    "code", ["0F1006", "0F1106", "660FFE06", "F30F7F06", "D906", "DB3E", "DF36", "0F6F06", "0F2A06"]
)
def test_non_canonical_address_changes_nothing(code, bench):
    run(bench, "D9E8")  # FLD1
    bench.gpr[RSI] = 1 << 50
    before = bench.fx.copy()
    assert run(bench, code) == FAULT and bench.fault == GP
    assert bench.fx.tolist() == before.tolist()


def test_page_crossing(bench):
    bench.gpr[RSI] = 0x2FF9
    bench.xmm[0] = 0x1122334455667788, 0x99AABBCCDDEEFF00
    assert run(bench, "0F1106") == OK and run(bench, "0F100E") == OK
    assert bench.xmm[1].tolist() == bench.xmm[0].tolist()
    assert bench.memory[0x2FF9:0x3009].tobytes() == bench.xmm[0].tobytes()


def test_store_outside_ram_is_asked_for_in_quadwords(bench):
    bench.gpr[RSI] = RAM_BYTES
    bench.xmm[0] = 1, 2
    assert run(bench, "0F1106") == STOP
    cpu = bench.cpu
    request = (int(cpu.stop), int(cpu.bus_kind), int(cpu.bus_address), int(cpu.bus_size), int(cpu.bus_value))
    assert request == (Stop.MMIO, Bus.MEMORY, RAM_BYTES, 8, 1)
    cpu.bus_count = 1
    assert run(bench, "0F1106") == STOP and int(cpu.bus_value) == 2 and int(cpu.bus_address) == RAM_BYTES + 8
    cpu.bus_count = 2
    assert run(bench, "0F1106") == OK
    cpu.bus_count = 0


def test_fst_outside_ram_pops_once(bench):
    for code in ("D9E8", "D9EB"):
        run(bench, code)
    bench.gpr[RSI] = RAM_BYTES
    assert run(bench, "DD1E") == STOP and bench.status >> 11 & 7 == 6
    bench.cpu.bus_count = 1
    assert run(bench, "DD1E") == OK and bench.status >> 11 & 7 == 7
    bench.cpu.bus_count = 0


def test_masked_store(bench):
    for i in range(16):
        bench.fx[160 + i] = 0x10 + i
        bench.fx[176 + i] = 0x80 if i % 3 == 0 else 0x7F
    bench.gpr[RDI] = 0x2FFA
    assert run(bench, "660FF7C1") == OK
    expected = [0x10 + i if i % 3 == 0 else 0 for i in range(16)]
    assert bench.memory[0x2FFA:0x300A].tolist() == expected
    bench.st[0, :8], bench.st[1, :8] = range(8), [0, 255] * 4
    bench.gpr[RDI] = 0x2000
    assert run(bench, "0FF7C1") == OK
    assert bench.memory[0x2000:0x2008].tolist() == [0, 1, 0, 3, 0, 5, 0, 7]


# --- #XM ----------------------------------------------------------------------------------------------------

NUMERIC_CASES = [
    # code, destination, source, masked flags, exceptions to unmask
    (DIVPS, singles(1, 1, 1, 1), singles(0, 1, 1, 1), ZE, ZE),
    (DIVPS, singles(1, 1, 1, 1), singles(0, 3, 1, 1), ZE | PE, ZE),
    (DIVPS, singles(0, 1, 1, 1), singles(0, 1, 1, 1), IE, IE),
    (ADDPS, singles(3e38, 1, 1, 1), singles(3e38, 1, 1, 1), OE | PE, OE),
    (ADDPS, singles(3e38, 1, 1, 1), singles(3e38, 1, 1, 1), OE | PE, PE),
    (ADDPS, singles(1e-40, 1, 1, 1), singles(1, 1, 1, 1), DE | PE, DE),
    (MULPD, doubles(1e-200, 1), doubles(1e-200, 1), UE | PE, UE),
    (
        MULPD,
        doubles(2.0**-1000, 1),
        doubles(2.0**-60, 1),
        0,
        UE,
    ),  # tiny but exact: only unmasked underflow sees it
    (SQRTPD, doubles(1, 1), doubles(-1, 2), IE | PE, IE),
    (CVTSD2SS, doubles(1, 1), doubles(0.1, 1), PE, PE),
]


@pytest.mark.parametrize("code, destination, source, flags, unmask", NUMERIC_CASES)
def test_simd_exceptions(code, destination, source, flags, unmask, bench):
    bench.xmm[0], bench.xmm[1] = destination, source
    assert run(bench, code) == OK
    assert bench.mxcsr == ALL_MASKED | flags
    for osxmmexcpt, vector in ((True, XM), (False, UD)):
        set_bits(bench, "cr4", CR4_OSXMMEXCPT, osxmmexcpt)
        bench.xmm[0], bench.xmm[1] = destination, source
        bench.mxcsr = ALL_MASKED & ~(unmask << 7)
        assert run(bench, code) == FAULT and bench.fault == vector
        assert bench.xmm[0].tolist() == destination.tolist()
        found = bench.mxcsr & 0x3F
        assert found & unmask
        if unmask & (IE | DE | ZE):
            assert found & (OE | UE | PE) == 0  # found before anything was computed
        else:
            assert found == flags | unmask


def test_flags_are_sticky_and_not_causes(bench):
    bench.mxcsr = ALL_MASKED & ~(ZE << 7) | ZE
    bench.xmm[0] = bench.xmm[1] = singles(1, 1, 1, 1)
    assert run(bench, ADDPS) == OK and bench.mxcsr & 0x3F == ZE


def test_unmasked_comparison_keeps_flags(bench):
    bench.rflags = 0x8D7
    bench.xmm[0] = bench.xmm[1] = doubles(float("nan"), 0)
    assert run(bench, "660F2EC1") == OK and bench.rflags & 0x8D5 == 0x45  # UCOMISD of a quiet NaN: unordered
    bench.rflags = 0x8D7
    bench.mxcsr = ALL_MASKED & ~(IE << 7)
    assert run(bench, "660F2FC1") == FAULT and bench.fault == XM and bench.rflags & 0x8D5 == 0x8D5


# --- x87 ----------------------------------------------------------------------------------------------------


def pending(bench):
    """An unmasked zero divide waits."""
    for code in ("D9EE", "D9E8"):  # FLDZ, FLD1
        assert run(bench, code) == OK
    bench.control = 0x37F & ~ZE
    assert run(bench, "D8F1") == OK  # FDIV ST(0), ST(1): the exception waits for the next instruction
    assert bench.status & 0x8084 == 0x8084


def test_x87_exception_waits_for_the_next_instruction(bench):
    pending(bench)
    one = bench.st[0, :10].tolist()
    assert one == [0, 0, 0, 0, 0, 0, 0, 0x80, 0xFF, 0x3F]  # the operand is untouched
    for code in ("D8C1", "9B", "D906", "0F6FC1", "0F77", "D92E"):
        bench.gpr[RSI] = 0x2000
        assert run(bench, code) == FAULT and bench.fault == MF
    for code in ("DFE0", "D93E", "DD3E"):  # FNSTSW AX, FNSTCW, FNSTSW do not wait
        assert run(bench, code) == OK
    assert run(bench, "0F58C1") == OK  # SSE does not care
    assert run(bench, "DBE2") == OK and bench.status & 0x80FF == 0  # FNCLEX
    assert run(bench, "9B") == OK


def test_fldcw_can_unmask_what_has_happened(bench):
    for code in ("D9EE", "D9E8", "D8F1"):
        assert run(bench, code) == OK
    assert bench.status & 0x80FF == ZE
    bench.gpr[RSI] = 0x2000
    bench.memory[0x2000:0x2002] = 0x7B, 0x03
    assert run(bench, "D92E") == OK and bench.status & 0x8080 == 0x8080
    assert run(bench, "9B") == FAULT and bench.fault == MF


def test_without_ne_the_exception_is_ignored(bench):
    pending(bench)
    set_bits(bench, "cr0", CR0_NE, False)
    assert run(bench, "9B") == OK and run(bench, "D9E8") == OK
    assert bench.status & 0x8084 == 0x8084 and bench.control == 0x37F & ~ZE


def test_unmasked_exception_keeps_the_memory_operand(bench):
    bench.gpr[RSI] = 0x2000
    bench.memory[0x2000:0x2004] = 0xA5
    bench.control = 0x37F & ~IE
    assert run(bench, "DB1E") == OK  # FISTP m32 of an empty register
    assert bench.memory[0x2000:0x2004].tolist() == [0xA5] * 4 and bench.status & 0x8081 == 0x8081


@pytest.mark.parametrize("cr0, wait, other", [(CR0_EM, OK, NM), (CR0_TS, OK, NM), (CR0_TS | CR0_MP, NM, NM)])
def test_x87_availability(cr0, wait, other, bench):
    bench.cpu.cr0 = cr0 | CR0_NE
    assert run(bench, "9B") == (FAULT if wait else OK)
    for code in ("D8C1", "DBE3", "DFE0", "D906"):
        assert run(bench, code) == FAULT and bench.fault == other


@pytest.mark.parametrize("code", ["D9D1", "DBE5", "DFE1", "D90E", "DB26", "DD2E", "DAE8"])
def test_reserved_x87_encodings(code, bench):
    bench.gpr[RSI] = 0x2000
    assert run(bench, code) == -1


# --- MMX and x87 share registers ----------------------------------------------------------------------------


def test_mmx_resets_the_stack(bench):
    for code in ("D9E8", "D9EB", "D9EE"):  # FLD1 in register 7, FLDPI in 6, FLDZ in 5
        run(bench, code)
    assert run(bench, "0F6FCF") == OK  # MOVQ mm1, mm7
    assert bench.status >> 11 & 7 == 0 and bench.tags == 0xFF
    assert bench.st[1, :10].tolist() == [0, 0, 0, 0, 0, 0, 0, 0x80, 0xFF, 0xFF]
    assert run(bench, "0F77") == OK and bench.tags == 0


def test_cvtpi2ps_from_memory_resets_the_stack_and_cvtpi2pd_does_not(bench):
    bench.gpr[RSI] = 0x2000
    run(bench, "D9E8")
    assert run(bench, "660F2A06") == OK and bench.status >> 11 & 7 == 7
    assert run(bench, "0F2A06") == OK and bench.status >> 11 & 7 == 0

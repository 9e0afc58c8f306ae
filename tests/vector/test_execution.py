"""Vector instructions in a guest against the same bytes executed natively: every row, random operands."""

import random

import numpy as np
import pytest

from vmx.cpu.native import ROWS, available
from vmx.isa.x87_rows import MEMORY_FORMS, REGISTER_FORMS

if not available():
    pytest.skip("needs an x86-64 Linux host", allow_module_level=True)

from tests.vector.harness import Bench, linked  # noqa: E402
from tests.vector.oracle import NativeOracle  # noqa: E402
from tests.vector.values import extended, quadword  # noqa: E402

RSI = 6
OPERAND = 0x2000  # linear address of the memory operand
SKIPPED = ("ldmxcsr", "maskmovq", "maskmovdqu")  # tested by their own
STATUS_FLAGS = 0x8D5


@pytest.fixture(scope="module")
def bench():
    linked()
    return Bench()


@pytest.fixture(scope="module")
def oracle():
    return NativeOracle()


def encode(row, rng, memory):
    """Random register numbers; RSP is not used, RSI is the base of memory operands."""
    wide = bool(rng.getrandbits(1))
    choices = [r for r in range(16) if r not in (4, RSI)]
    reg = row.reg if row.reg is not None else rng.choice(choices)
    rm = RSI if memory else rng.choice(choices)
    rex = 0x40 | wide << 3 | (reg >= 8) << 2 | (rm >= 8)
    code = bytes.fromhex(row.prefix) + bytes((rex,)) + row.code
    if row.form != "none":
        code += bytes(((0x06 | (reg & 7) << 3) if memory else 0xC0 | (reg & 7) << 3 | rm & 7,))
    return code + (bytes((rng.getrandbits(8),)) if row.imm8 else b"")


def randomize(bench, rng, top=None):
    """A random state with a valid x87 state and masked exceptions."""
    bench.reset()
    for i in range(16):
        bench.xmm[i] = quadword(rng), quadword(rng)
        bench.gpr[i] = quadword(rng)
    for i in range(8):
        bench.st[i, :10] = np.frombuffer(extended(rng), np.uint8)
    bench.tags = rng.getrandbits(8)
    bench.status = (rng.randrange(8) if top is None else top) << 11 | rng.choice((0, 0x4700))
    bench.control = 0x7F | rng.getrandbits(2) << 10 | rng.choice((0, 2, 3)) << 8
    bench.mxcsr = (
        0x1F80
        | rng.getrandbits(2) << 13
        | rng.choice((0, 0x8000))
        | rng.choice((0, 0x40))
        | rng.getrandbits(6)
    )
    bench.gpr[RSI] = OPERAND
    words = np.array([quadword(rng) for _ in range(64)], np.uint64)
    bench.memory[OPERAND : OPERAND + 512] = words.view(np.uint8)
    bench.rflags = 2 | rng.getrandbits(12) & STATUS_FLAGS


def copy_to(oracle, bench, operand):
    oracle.fx[...] = bench.fx
    oracle.gpr[...] = bench.gpr[:16]
    oracle.gpr[RSI] = operand.ctypes.data
    oracle.flags[0] = bench.rflags


def compare(oracle, bench, operand, flags=STATUS_FLAGS):
    gprs = oracle.gpr.copy()
    gprs[RSI] = OPERAND
    for i in range(16):
        if i != 4:
            assert int(bench.gpr[i]) == int(gprs[i]), f"gpr {i}"
    assert bench.xmm.tolist() == oracle.fx[160:416].view(np.uint64).reshape(16, 2).tolist()
    assert bench.fx[:5].tolist() == oracle.fx[:5].tolist(), "control, status, tags"
    assert bench.mxcsr == int(oracle.fx[24:28].view(np.uint32)[0])
    assert bench.st[:, :10].tolist() == oracle.fx[32:160].reshape(8, 16)[:, :10].tolist()
    assert bench.memory[OPERAND : OPERAND + 512].tolist() == operand.tolist()
    assert bench.rflags & flags == int(oracle.flags[0]) & flags


def aligned_copy(memory):
    raw = np.zeros(512 + 64, np.uint8)
    start = -raw.ctypes.data % 64
    raw[start : start + 512] = memory
    return raw[start : start + 512]


@pytest.mark.parametrize(
    "row", ROWS, ids=lambda r: f"{r.prefix or 'NP'}-{r.opcode:04X}-{r.mnemonic}-{r.form}"
)
def test_vector_instruction(row, bench, oracle):
    if row.mnemonic in SKIPPED:
        pytest.skip("has a test of its own")
    rng = random.Random(row.mnemonic + row.prefix)
    for trial in range(16):
        memory = {"any": trial & 1 == 1, "mem": True}.get(row.form, False)
        if row.mnemonic == "cvtpi2ps":
            memory = False  # Intel's resets the x87 stack with a memory operand too, AMD's does not
        code = encode(row, rng, memory)
        randomize(bench, rng)
        operand = aligned_copy(bench.memory[OPERAND : OPERAND + 512])
        copy_to(oracle, bench, operand)
        assert bench.step(code) == 0, code.hex()
        oracle.run(code)
        try:
            compare(oracle, bench, operand)
        except AssertionError as error:
            raise AssertionError(f"{code.hex()} trial {trial}: {error}") from None


X87_REGISTER = [(op, low) for (op, low), form in REGISTER_FORMS.items() if form.native]
X87_MEMORY = [key for key, form in MEMORY_FORMS.items() if form.native]


def x87_trial(bench, oracle, rng, code, top, pointers=None):
    randomize(bench, rng, top)
    if rng.getrandbits(1):
        bench.control &= ~rng.getrandbits(6)  # unmasked exceptions wait for the next instruction
        bench.status &= ~0x3F
    operand = aligned_copy(bench.memory[OPERAND : OPERAND + 512])
    if rng.getrandbits(1):
        operand[:10] = np.frombuffer(extended(rng), np.uint8)
        bench.memory[OPERAND : OPERAND + 10] = operand[:10]
    copy_to(oracle, bench, operand)
    assert bench.step(code) == 0, code.hex()
    oracle.run(code)
    if pointers:  # the host's instruction and data pointers
        for area in (operand, bench.memory[OPERAND:]):
            area[pointers] = 0
    compare(oracle, bench, operand)


@pytest.mark.parametrize("key", X87_REGISTER, ids=lambda k: f"{k[0]:02X}-{0xC0 | k[1]:02X}")
def test_x87_register_instruction(key, bench, oracle):
    rng = random.Random(str(key))
    for trial in range(10):
        x87_trial(bench, oracle, rng, bytes((key[0], 0xC0 | key[1])), None if trial & 1 else 0)


@pytest.mark.parametrize("key", X87_MEMORY, ids=lambda k: f"{k[0]:02X}-{k[1]}")
def test_x87_memory_instruction(key, bench, oracle):
    rng = random.Random(str(key))
    for _ in range(24):
        x87_trial(bench, oracle, rng, bytes((key[0], key[1] << 3 | RSI)), None)


@pytest.mark.parametrize(
    "code", ["DBE0", "DBE1", "DBE4", "DBE2", "DBE3", "DFE0", "D93E", "DD3E", "D936", "DD36"]
)
def test_x87_state_instruction(code, bench, oracle):
    """FNENI FNDISI FNSETPM FNCLEX FNINIT, FNSTSW AX, FNSTCW, FNSTSW, FNSTENV, FNSAVE."""
    rng = random.Random(code)
    for _ in range(24):
        x87_trial(
            bench, oracle, rng, bytes.fromhex(code), None, slice(12, 28) if code in ("D936", "DD36") else None
        )


@pytest.mark.parametrize(
    "code, store", [("D926", "D936"), ("66D926", "66D936"), ("DD26", "DD36"), ("66DD26", "66DD36")]
)
def test_environment_comes_back(code, store, bench):
    """FLDENV and FRSTOR of what FNSTENV and FNSAVE stored."""
    rng = random.Random(code)
    for _ in range(10):
        randomize(bench, rng)
        bench.tags = 0xFF if rng.getrandbits(1) else 0x5A
        before = bench.fx.copy()
        assert bench.step(bytes.fromhex(store)) == 0
        if "DD" in store:
            assert (bench.control, bench.status, bench.tags) == (0x37F, 0, 0)
            bench.st[...] = 0
        assert bench.step(bytes.fromhex(code)) == 0
        assert bench.fx[:5].tolist() == before[:5].tolist()
        assert bench.st[:, :10].tolist() == before[32:160].reshape(8, 16)[:, :10].tolist()


def test_pointers_of_the_last_instruction(bench):
    bench.reset()
    bench.gpr[RSI] = OPERAND
    bench.step(bytes.fromhex("D9EE"))
    assert bench.step(bytes.fromhex("D806")) == 0  # FADD m32
    opcode, ip, dp = (
        bench.fx[6:8].view(np.uint16)[0],
        bench.fx[8:16].view(np.uint64)[0],
        bench.fx[16:24].view(np.uint64)[0],
    )
    assert (int(opcode), int(ip), int(dp)) == (0x006, 0x1000, OPERAND)

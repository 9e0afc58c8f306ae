"""FXSAVE, FXRSTOR, XSAVE and XRSTOR: layouts, components, faults."""

import random

import numpy as np
import pytest

from vmx.cpu.native import available
from vmx.state.processor import CR0_EM, CR0_TS, CR4_OSXSAVE, FAULT, GP, NM, OK, UD

if not available():
    pytest.skip("needs an x86-64 Linux host", allow_module_level=True)

from tests.vector.harness import Bench, linked  # noqa: E402
from tests.vector.test_execution import OPERAND, RSI, randomize  # noqa: E402

FXSAVE, FXRSTOR, XSAVE, XRSTOR, XSAVEOPT = (bytes((0x0F, 0xAE, n << 3 | RSI)) for n in (0, 1, 4, 5, 6))
WIDE = b"\x48"


@pytest.fixture(scope="module")
def bench():
    linked()
    return Bench()


def prepared(bench, seed):
    rng = random.Random(seed)
    randomize(bench, rng)
    bench.fx[5] = 0
    bench.cpu.cr4 = int(bench.cpu.cr4) | CR4_OSXSAVE
    bench.cpu.xcr0 = 3
    bench.gpr[0], bench.gpr[2] = 3, 0
    bench.fx[8:24].view(np.uint64)[...] = 0xFFFF_8000_1234_5678, 0x7FFF_0000_9ABC_DEF0
    bench.memory[OPERAND : OPERAND + 1024] = 0xA5
    return rng


def words(bench, offset, count=1):
    values = bench.memory[OPERAND + offset : OPERAND + offset + 8 * count].view(np.uint64)
    return [int(v) for v in values]


def wipe(bench):
    bench.fx[...] = 0
    bench.control, bench.mxcsr = 0x37F, 0x1F80


@pytest.mark.parametrize("prefix", [b"", WIDE], ids=["32-bit pointers", "64-bit pointers"])
def test_fxsave_and_fxrstor(bench, prefix):
    prepared(bench, 1)
    before = bench.fx[:416].copy()
    assert bench.step(prefix + FXSAVE) == OK
    ip, dp = words(bench, 8, 2)
    if prefix:
        assert (ip, dp) == (0xFFFF_8000_1234_5678, 0x7FFF_0000_9ABC_DEF0)
    else:
        assert (ip, dp) == (0x1234_5678, 0x9ABC_DEF0)
    assert words(bench, 24)[0] == bench.mxcsr | 0xFFFF << 32
    assert bench.memory[OPERAND + 464 : OPERAND + 512].tolist() == [0xA5] * 48
    wipe(bench)
    assert bench.step(prefix + FXRSTOR) == OK
    after = bench.fx[:416]
    assert after[:8].tolist() == before[:8].tolist()
    assert after[24:28].tolist() == before[24:28].tolist() and after[160:].tolist() == before[160:].tolist()
    for i in range(8):
        assert after[32 + 16 * i : 42 + 16 * i].tolist() == before[32 + 16 * i : 42 + 16 * i].tolist()


def test_fxsave_outside_64_bit_mode_has_eight_registers(bench):
    prepared(bench, 2)
    bench.cpu.code_mode, bench.cpu.long_mode = 1, 0
    bench.cpu.segments[3].limit, bench.cpu.segments[3].access = 0xFFFF_FFFF, 0xC093
    assert bench.step(FXSAVE) == OK
    assert words(bench, 160, 16) == [int(v) for v in bench.xmm[:8].reshape(-1)]
    assert bench.memory[OPERAND + 288 : OPERAND + 512].tolist() == [0xA5] * 224


@pytest.mark.parametrize(
    "code, alignment", [(FXSAVE, 16), (FXRSTOR, 16), (XSAVE, 64), (XRSTOR, 64), (XSAVEOPT, 64)]
)
def test_alignment(bench, code, alignment):
    prepared(bench, 3)
    bench.gpr[RSI] = OPERAND + alignment // 2
    assert bench.step(code) == FAULT and bench.fault == GP
    bench.cpu.cr0 = int(bench.cpu.cr0) | CR0_TS
    assert bench.step(code) == FAULT and bench.fault == NM


def test_availability(bench):
    prepared(bench, 4)
    bench.cpu.cr4 = int(bench.cpu.cr4) & ~CR4_OSXSAVE
    for code in (XSAVE, XRSTOR, XSAVEOPT):
        assert bench.step(code) == FAULT and bench.fault == UD
    bench.cpu.cr0 = int(bench.cpu.cr0) | CR0_EM
    assert bench.step(FXSAVE) == FAULT and bench.fault == NM


def test_reserved_bits_of_mxcsr(bench):
    prepared(bench, 5)
    bench.memory[OPERAND : OPERAND + 576] = 0
    bench.memory[OPERAND + 26] = 1
    for code in (FXRSTOR, XRSTOR, b"\x0f\xae\x56\x18"):  # LDMXCSR [rsi+24]
        before = bench.fx.copy()
        assert bench.step(code) == FAULT and bench.fault == GP
        assert bench.fx.tolist() == before.tolist()


@pytest.mark.parametrize("requested", range(4))
@pytest.mark.parametrize("code", [XSAVE, XSAVEOPT])
def test_xsave_writes_what_was_asked_for(bench, requested, code):
    prepared(bench, 6)
    bench.gpr[0] = 0xFFFF_FFFC | requested
    assert bench.step(WIDE + code) == OK
    memory = bench.memory[OPERAND:]
    untouched = [0xA5] * 16
    assert (memory[32:48].tolist() != untouched) == bool(requested & 1)
    assert (memory[160:176].tolist() != untouched) == bool(requested & 2)
    assert (memory[24:32].tolist() != untouched[:8]) == bool(requested & 2)
    assert words(bench, 512)[0] == 0xA5A5A5A5A5A5A5A5 & ~3 | requested | 0xA5A5A5A5A5A5A5A5 & 3 & ~requested
    assert memory[520:576].tolist() == [0xA5] * 56


@pytest.mark.parametrize("present", range(4))
@pytest.mark.parametrize("requested", range(4))
def test_xrstor_loads_or_initializes(bench, present, requested):
    prepared(bench, 7)
    bench.memory[OPERAND + 512 : OPERAND + 576] = 0
    assert bench.step(WIDE + XSAVE) == OK
    saved = bench.fx[:416].copy()
    bench.memory[OPERAND + 512] = present
    wipe(bench)
    bench.fx[32:42], bench.fx[160:416] = 0x11, 0x22
    bench.gpr[0] = requested
    assert bench.step(WIDE + XRSTOR) == OK
    st, xmm = bench.fx[32:42].tolist(), bench.fx[160:416].tolist()
    assert st == (([0] * 10, saved[32:42].tolist())[present & 1] if requested & 1 else [0x11] * 10)
    assert xmm == (([0] * 256, saved[160:416].tolist())[present >> 1] if requested & 2 else [0x22] * 256)
    assert bench.mxcsr == (int(saved[24:28].view(np.uint32)[0]) if requested & 2 else 0x1F80)
    if requested & 1 and not present & 1:
        assert (bench.control, bench.status, bench.tags) == (0x37F, 0, 0)


@pytest.mark.parametrize("offset", [512, 520, 527, 528, 535])
def test_xrstor_checks_the_header(bench, offset):
    prepared(bench, 8)
    bench.memory[OPERAND : OPERAND + 576] = 0
    bench.memory[OPERAND + offset] = 4
    assert bench.step(XRSTOR) == FAULT and bench.fault == GP


@pytest.mark.parametrize("code", [FXSAVE, XSAVE, FXRSTOR, b"\xdd\x36", b"\xdd\x26"])
def test_areas_outside_ram_do_not_reach_the_platform_piece_by_piece(bench, code):
    """There a load finds ones (an MXCSR of ones is #GP) and a store nothing."""
    for start in (0x1_0000, 0xFFC0):
        prepared(bench, 9)
        bench.gpr[RSI] = start
        status = bench.step(code)
        assert status == (FAULT if code == FXRSTOR and start == 0x1_0000 else OK)

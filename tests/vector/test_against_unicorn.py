"""Results of SSE and SSE2 instructions against Unicorn, which computes them in software."""

import random

import pytest

from vmx.cpu.native import available
from vmx.isa.vector_rows import ROWS

uc = pytest.importorskip("unicorn")
if not available():
    pytest.skip("needs an x86-64 Linux host", allow_module_level=True)

from unicorn import x86_const as x86  # noqa: E402

from tests.vector.harness import Bench, linked  # noqa: E402
from tests.vector.values import quadword  # noqa: E402

CODE, OPERAND, RSI = 0x1000, 0x2000, 6
XMM = [x86.UC_X86_REG_XMM0 + i for i in range(8)]
GPR = [
    x86.UC_X86_REG_RAX, x86.UC_X86_REG_RCX, x86.UC_X86_REG_RDX, x86.UC_X86_REG_RBX, x86.UC_X86_REG_RSP,
    x86.UC_X86_REG_RBP, x86.UC_X86_REG_RSI, x86.UC_X86_REG_RDI,
]  # fmt: skip
APPROXIMATIONS = ("rcpps", "rcpss", "rsqrtps", "rsqrtss")  # every processor has its own
WITHOUT_OPERANDS = ("fence", "prefetch", "clflush", "masked store", "ldmxcsr", "stmxcsr")
TESTED = [
    r for r in ROWS if not r.mmx and r.mnemonic not in APPROXIMATIONS and r.action not in WITHOUT_OPERANDS
]


@pytest.fixture(scope="module")
def bench():
    linked()
    return Bench()


@pytest.fixture(scope="module")
def unicorn():
    machine = uc.Uc(uc.UC_ARCH_X86, uc.UC_MODE_64)
    machine.mem_map(0, 0x10000)
    return machine


def number(rng, row):
    """Of two NaNs Unicorn propagates another than processors do: no NaNs for floating-point instructions."""
    while True:
        value = quadword(rng)
        nan = (
            any(value >> shift & 0x7FFFFFFF > 0x7F800000 for shift in (0, 32))
            or value & 2**63 - 1 > 0x7FF << 52
        )
        if not (row.numeric and nan):
            return value


@pytest.mark.parametrize(
    "row", TESTED, ids=lambda r: f"{r.prefix or 'NP'}-{r.opcode:04X}-{r.mnemonic}-{r.form}"
)
def test_result(row, bench, unicorn):
    rng = random.Random(row.mnemonic)
    for trial in range(8):
        memory = {"any": trial & 1 == 1, "mem": True}.get(row.form, False)
        reg = rng.choice((0, 1, 2, 3, 5, 7)) if row.reg is None else row.reg
        rm = RSI if memory else rng.choice((0, 1, 2, 3, 5, 7))
        code = bytes.fromhex(row.prefix) + rng.choice((b"", b"\x48")) + row.opcode.to_bytes(2, "big")
        code += bytes(((0 if memory else 0xC0) | reg << 3 | rm,))
        if row.imm8:
            code += bytes((rng.getrandbits(3 if row.mnemonic.startswith("cmp") else 8),))
        bench.reset()
        bench.rflags = 2
        bench.mxcsr = 0x1F80 | rng.getrandbits(2) << 13
        for i in range(8):
            bench.gpr[i], bench.xmm[i] = quadword(rng), (number(rng, row), number(rng, row))
        bench.gpr[RSI] = OPERAND
        bench.memory[OPERAND : OPERAND + 16].view("u8")[...] = number(rng, row), number(rng, row)
        for i in range(8):
            unicorn.reg_write(GPR[i], int(bench.gpr[i]))
            unicorn.reg_write(XMM[i], int(bench.xmm[i][0]) | int(bench.xmm[i][1]) << 64)
        unicorn.reg_write(x86.UC_X86_REG_MXCSR, bench.mxcsr)
        unicorn.reg_write(x86.UC_X86_REG_EFLAGS, 2)
        unicorn.mem_write(OPERAND, bench.memory[OPERAND : OPERAND + 16].tobytes())
        unicorn.mem_write(CODE, code)
        assert bench.step(code) == 0
        unicorn.emu_start(CODE, CODE + len(code), count=1)
        for i in range(8):
            if i != 4:
                assert int(bench.gpr[i]) == unicorn.reg_read(GPR[i]), f"{code.hex()} gpr {i}"
            value = int(bench.xmm[i][0]) | int(bench.xmm[i][1]) << 64
            assert hex(value) == hex(unicorn.reg_read(XMM[i])), f"{code.hex()} xmm {i}"
        assert bench.memory[OPERAND : OPERAND + 16].tobytes() == bytes(unicorn.mem_read(OPERAND, 16))
        if row.writes_flags:
            assert bench.rflags & 0x8D5 == unicorn.reg_read(x86.UC_X86_REG_EFLAGS) & 0x8D5

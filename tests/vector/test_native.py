"""The stubs themselves: where their code lies, and that nothing a guest does changes it."""

import ctypes
import random
from pathlib import Path

import pytest

from vmx.cpu import native
from vmx.cpu.native import ROWS

if not native.available():
    pytest.skip("needs an x86-64 Linux host", allow_module_level=True)


STUBS = ("stub", "extract", "string")


def test_no_mapping_is_writable_and_executable():
    native.stub_table()
    mappings = [
        line.split() for line in Path("/proc/self/maps").read_text().splitlines() if "memfd:vmx-code" in line
    ]
    assert mappings and all(not ("w" in m[1] and "x" in m[1]) for m in mappings)
    stubs = native._stubs().code
    assert stubs.writable.closed


def entry_of(number):
    return native.VECTOR_ENTRY.view(
        native.stub_table() + native.VECTOR_TABLE + number * native.VECTOR_ENTRY.size
    )


def test_every_row_has_its_stub():
    code = native._stubs().code
    for number, row in enumerate(ROWS):
        first = int(entry_of(number).stub)
        assert (first != 0) == (row.action in STUBS)
        if first:
            last = first + 255 * int(entry_of(number).stride)
            assert code.address <= first <= last < code.address + (2 << 20)


def test_a_stub_holds_the_opcode_of_its_row():
    for number, row in enumerate(ROWS):
        entry = entry_of(number)
        if row.action not in STUBS:
            continue
        for immediate in (0, 0x5A, 0xFF) if row.imm8 else (0,):
            code = ctypes.string_at(int(entry.stub) + int(entry.stride) * immediate, 64)
            expected = (
                bytes.fromhex(row.prefix)
                + row.code
                + bytes((0xC1 | (2 if row.implicit else row.reg or 0) << 3,))
            )
            assert expected + (bytes((immediate,)) if row.imm8 else b"") in code


def test_random_instructions_leave_the_code_alone():
    from tests.vector.harness import Bench, linked
    from tests.vector.test_execution import randomize

    linked()
    bench, rng = Bench(), random.Random(1)
    code = native._stubs().code
    before = ctypes.string_at(code.address, 1 << 16)
    randomize(bench, rng)
    for _ in range(3000):
        prefix = rng.choice((b"", b"\x66", b"\xf3", b"\xf2")) + rng.choice(
            (b"", bytes((0x40 | rng.getrandbits(4),)))
        )
        opcode = rng.choice((b"\x0f" + bytes((rng.getrandbits(8),)), bytes((0xD8 | rng.getrandbits(3),))))
        bench.code[...] = 0
        text = prefix + opcode + rng.randbytes(6)
        bench.mxcsr = rng.getrandbits(16)
        bench.control, bench.status = rng.getrandbits(16), rng.getrandbits(16)
        bench.raw_step(text)
    assert ctypes.string_at(code.address, 1 << 16) == before

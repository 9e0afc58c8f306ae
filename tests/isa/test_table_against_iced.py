"""Every row of the instruction table, and random bytes, decoded by vmx and by iced-x86."""

import random
from collections import defaultdict
from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("iced_x86")

from tests.isa.encodings import encodings  # noqa: E402
from tests.oracles import iced as oracle  # noqa: E402
from tests.oracles.decoding import DECODED_OK, SLOT, decode_all, slots  # noqa: E402
from vmx.isa.features import ALL_FEATURES, MODELS, feature_mask  # noqa: E402
from vmx.isa.operations import OPERATION  # noqa: E402
from vmx.isa.table import TABLE  # noqa: E402

pytestmark = pytest.mark.oracle
MODES = pytest.mark.parametrize("mode", range(3), ids=("16-bit", "32-bit", "64-bit"))

# Instruction sets that the modelled processor has (CPUID says so); all others are #UD.
ADVERTISED = set(
    """INTEL8086 INTEL186 INTEL286 INTEL386 INTEL486 INTEL8086_ONLY INTEL286_ONLY X64 FPU FPU287 FPU387 CPUID
    TSC MSR CX8 CMOV SEP SYSCALL FXSR MMX SSE SSE2 MONITOR CMPXCHG16B CX16 POPCNT MOVBE RDTSCP FSGSBASE INVPCID SMAP
    XSAVE XSAVEOPT VMX CLFSH MULTIBYTENOP PAUSE PREFETCHW RDPMC SMM INTEL386_ONLY INTEL386_A0_ONLY FCMOV""".split()
)
# vmx decodes them, and the operand makes them #UD when they are executed: control and debug registers that do not
# exist, segment registers 6 and 7, CS as a destination
UD_BY_OPERAND = {
    OPERATION[n] for n in "MOV_FROM_CR MOV_TO_CR MOV_FROM_DR MOV_TO_DR MOV_FROM_SREG MOV_TO_SREG".split()
}
# x87 encodings that no manual has, aliases of others on real processors: #UD here
UNDOCUMENTED = {"FSTPNCE", "FCOM", "FCOMP", "FXCH", "FFREEP", "FSTP"}


ADVERTISED_V2 = set(
    """SSE3 SSSE3 SSE4_1 SSE4_2 PCLMULQDQ AES LZCNT BMI1 BMI2 ADX RDRAND RDSEED RDPID CLFLUSHOPT CLWB MOVDIRI
    SERIALIZE""".split()
)
MODEL = pytest.mark.parametrize("model", MODELS)


def is_x87_alias(instruction):
    """Whether iced's opcode is one of the aliases (D9 D8+i, DC D0+i, DC D8+i, DE D0+i, DF C0+i to DF D8+i)."""
    text = instruction.op_code().op_code_string
    return text in (
        "D9 D8+i",
        "DC D0+i",
        "DC D8+i",
        "DD C8+i",
        "DE D0+i",
        "DF C0+i",
        "DF C8+i",
        "DF D0+i",
        "DF D8+i",
    )


def compare(code, mode, model="v2"):
    """Findings of a batch: {what: [bytes and iced's text]}."""
    mask = feature_mask(MODELS[model])
    advertised = ADVERTISED | (ADVERTISED_V2 if model == "v2" else set())
    found = defaultdict(list)
    records, statuses = decode_all(code, mode, mask)
    for i, instruction in enumerate(oracle.decode_slots(code, mode)):
        d = records[i]
        if statuses[i] == DECODED_OK:
            if not instruction.is_invalid:
                what = [
                    f"{TABLE.rows[d['row']].text}: {text}"
                    for text in oracle.differences(d, instruction, mode)
                ]
            elif int(d["op"]) in UD_BY_OPERAND:
                continue
            else:
                what = [f"{TABLE.rows[d['row']].text}: invalid for iced"]
        elif instruction.is_invalid:
            continue
        else:
            if oracle.features(instruction.code) - advertised:
                continue
            if oracle.MNEMONIC[instruction.mnemonic] in UNDOCUMENTED and is_x87_alias(instruction):
                continue
            what = [f"status {statuses[i]} for {oracle.MNEMONIC[instruction.mnemonic]}"]
        for each in what:
            found[each].append(f"{code[i].tobytes().hex()} {instruction}")
    return found


def report(found):
    return "\n".join(
        f"{what} ({len(examples)}x, e.g. {examples[0]})" for what, examples in list(found.items())[:40]
    )


@MODES
def test_rows(mode):
    """All operand forms and prefixes of each row."""
    rng = random.Random(mode)
    found = compare(slots(s for row in TABLE.rows[1:] for s in encodings(row, mode, rng)), mode)
    assert not found, report(found)


@MODES
def test_every_row_can_be_reached(mode):
    """Each row decodes from its own encodings somewhere: none is hidden by another."""
    rng = random.Random(mode)
    owners, strings = [], []
    for row in TABLE.rows[1:]:
        if ("i64" in row.text and mode == 2) or ("o64" in row.text and mode != 2):
            continue
        for string in islice(encodings(row, mode, rng), 8):
            owners.append(row.number)
            strings.append(string)
    records, statuses = decode_all(slots(strings), mode, ALL_FEATURES)
    reached = {int(n) for n in records["row"][statuses == DECODED_OK]}
    hidden = [TABLE.rows[n].text for n in sorted(set(owners) - reached)]
    assert not hidden


def random_slots(rng, count):
    """Random bytes with more prefixes and two-byte opcodes than chance would give."""
    code = rng.integers(0, 256, (count, SLOT), np.uint8)
    starts = np.frombuffer(bytes.fromhex("660ff30ff20f0f0f480f66f3f26748f066480f2e410fdbd9"), np.uint8)
    chosen = rng.random(count) < 0.6
    code[chosen, 0] = rng.choice(starts, chosen.sum())
    again = rng.random(count) < 0.3
    code[again, 1] = rng.choice(starts, again.sum())
    return code


@MODEL
@MODES
def test_random_bytes(mode, model):
    found = compare(random_slots(np.random.default_rng(mode), 50_000), mode, model)
    assert not found, report(found)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    st.lists(st.binary(min_size=1, max_size=15), min_size=20, max_size=20),
    st.integers(0, 2),
    st.sampled_from(["v1", "v2"]),
)
def test_any_bytes(strings, mode, model):
    found = compare(slots(strings), mode, model)
    assert not found, report(found)


def test_prefixes_up_to_the_limit():
    """15 bytes decode, 16 do not."""
    from tests.oracles.decoding import TOO_LONG

    records, statuses = decode_all(slots([b"\x66" * 14 + b"\x90", b"\x66" * 15 + b"\x90"]), 2)
    assert list(statuses) == [DECODED_OK, TOO_LONG]
    assert records["length"][0] == 15

"""BMI, LZCNT, ADX, CRC32, MOVDIRI against the host's processor; RDRAND, RDPID and the choice of features by rule."""

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("iced_x86")

from tests.cpu.generate import batch, extension_rows  # noqa: E402
from tests.oracles import native  # noqa: E402
from tests.oracles.cases import NO_VECTOR, new_cases, set_code  # noqa: E402
from tests.oracles.compare import report, settle  # noqa: E402
from tests.oracles.model import Model  # noqa: E402
from vmx.isa.features import ALL_FEATURES, FEATURES, feature_mask  # noqa: E402
from vmx.state.processor import UD  # noqa: E402

HOST_NAMES = {"lzcnt": "abm", "sse3": "pni"}
INTEGER = ("sse4_2", "lzcnt", "bmi1", "bmi2", "adx", "movdiri")


def host_has(name):
    line = next((x for x in Path("/proc/cpuinfo").read_text().splitlines() if x.startswith("flags")), "")
    return HOST_NAMES.get(name, name) in line.split()


@pytest.fixture(scope="module")
def model():
    yield Model(2, features=ALL_FEATURES)
    native.stop()


@pytest.mark.oracle
@pytest.mark.skipif(not native.AVAILABLE, reason="needs an x86-64 Linux host")
@pytest.mark.parametrize("feature", INTEGER)
def test_against_the_host(model, feature):
    if not host_has(feature):
        pytest.skip(f"this host has no {feature}")
    rows = [r for r in extension_rows([feature])]
    assert rows
    cases, defined, _ = batch(rows, 600, 1)
    assert len(cases) > 300 * len(rows)
    text = report(cases, model.run(cases), settle(native.run(cases)), defined)
    assert not text, text


def execute(model, code, **registers):
    """One instruction; the case after it."""
    cases = new_cases(1)
    set_code(cases, 0, bytes.fromhex(code))
    for name, value in registers.items():
        cases["gpr"][0, "rax rcx rdx rbx".split().index(name)] = value
    return model.run(cases)[0]


@pytest.mark.parametrize(
    "code, feature",
    [
        ("F20F38F1C1", "sse4_2"), ("660F38F6C1", "adx"), ("F30F38F6C1", "adx"), ("0F38F901", "movdiri"),
        ("0FC7F0", "rdrand"), ("0FC7F8", "rdseed"), ("F30FC7F8", "rdpid"), ("0F01E8", "serialize"),
        ("C4E270F2C1", "bmi1"), ("C4E2F8F3C9", "bmi1"), ("C4E27BF6C1", "bmi2"), ("C4E37BF0C105", "bmi2"),
    ],
)  # fmt: skip
def test_without_the_feature(code, feature):
    window = 0x100000 + 4096 - 512
    for mask, expected in (
        (0, UD),
        (ALL_FEATURES & ~feature_mask([feature]), UD),
        (feature_mask([feature]), NO_VECTOR),
    ):
        after = execute(Model(2, features=mask), code, rcx=window)
        assert int(after["vector"]) == expected, mask


def test_without_their_features_tzcnt_is_bsf_and_lzcnt_is_bsr():
    for code, name, old, new in (("F30FBCC1", "bmi1", 4, 4), ("F30FBDC1", "lzcnt", 4, 59)):
        for mask, expected, of_zero in ((0, old, 7), (feature_mask([name]), new, 64)):
            model = Model(2, features=mask)
            code64 = code[:2] + "48" + code[2:]
            assert int(execute(model, code64, rcx=16)["gpr"][0]) == expected
            assert int(execute(model, code64, rcx=0, rax=7)["gpr"][0]) == of_zero


@pytest.mark.parametrize(
    "code",
    [
        "66C4E270F2C1",  # 66 before VEX
        "F0C4E270F2C1",  # LOCK
        "48C4E270F2C1",  # REX
        "C4E274F2C1",  # VEX.L
        "C4E271F2C1",  # pp
        "C4E270F3C1",  # group 17 /0
        "C4E373F0C105",  # RORX with VEX.vvvv
        "C4E070F2C1",  # reserved map
        "C5F877",  # VZEROUPPER
    ],
)
def test_undefined_vex_encodings(model, code):
    assert int(execute(model, code)["vector"]) == UD


def splitmix64(state):
    """The generator, from its definition."""
    mask = (1 << 64) - 1
    while True:
        state = (state + 0x9E3779B97F4A7C15) & mask
        z = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 & mask
        z = (z ^ z >> 27) * 0x94D049BB133111EB & mask
        yield z ^ z >> 31


@pytest.mark.parametrize("seed", [0, 1, 1 << 63, (1 << 64) - 1])
def test_random_numbers(model, seed):
    expected = splitmix64(seed)
    model.record[0]["random_state"] = seed
    for code, bits in (("480FC7F0", 64), ("0FC7F8", 32), ("660FC7F0", 16), ("480FC7F8", 64)):
        old = 0x1234_5678_9ABC_DEF0
        after = execute(model, code, rax=old)
        drawn = next(expected) & (1 << bits) - 1
        assert int(after["gpr"][0]) == (drawn if bits > 16 else old & ~0xFFFF | drawn)
        assert int(after["rflags"]) & 0x8D5 == 1
    if seed == 0:
        assert next(splitmix64(0)) == 0xE220A8397B1DCDAF  # the published first value


def test_processor_id(model):
    model.view.tsc_aux = 0x1_0000_0203
    after = execute(model, "F30FC7F8", rax=(1 << 64) - 1)
    assert int(after["gpr"][0]) == 0x203


def test_every_feature_has_its_cpuid_bit():
    from vmx.cpu.cpuid import cpuid_table

    def bits(features):
        return np.unpackbits(cpuid_table(features=frozenset(features)).view(np.uint8)).astype(bool)

    base = bits(())
    assert (bits(()) == base).all()
    seen = set()
    for name in FEATURES:
        changed = np.nonzero(bits([name]) ^ base)[0]
        assert len(changed) == 1 and int(changed[0]) not in seen, name
        seen.add(int(changed[0]))

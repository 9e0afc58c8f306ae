"""Processor models: CPUID and the instructions agree, in both kinds of operation; random numbers follow the seed."""

import pytest

from tests.machine.world import BOTH, flat_machine, leave, run_flat
from vmx import MachineConfig
from vmx.cpu import native
from vmx.errors import ConfigurationError
from vmx.hypervisor.machine import Machine
from vmx.isa.features import FEATURES, MODELS, NATIVE, chosen_features

LIDT_EMPTY = bytes.fromhex("0f011c25 00000200")
# CPUID 1 and 7: ECX to ESI, EBX to EBP, ECX to EDI; extended ECX to R8
ASK = bytes.fromhex("b801000000 0fa2 89ce b807000000 31c9 0fa2 89dd 89cf b801000080 0fa2 4189c8")
V2 = {
    "rsi": 1 << 0 | 1 << 1 | 1 << 9 | 1 << 19 | 1 << 20 | 1 << 25 | 1 << 30,
    "rbp": 1 << 3 | 1 << 8 | 1 << 18 | 1 << 19 | 1 << 23 | 1 << 24,
    "rdi": 1 << 22 | 1 << 27,
    "r8": 1 << 5,
}


def registers(tmp_path, code, **options):
    machine, result = run_flat(tmp_path, code + leave(1), load_mode="long64", **options)
    assert result.stop == "DEBUG_EXIT", result.message
    return machine.processors[0].registers


@pytest.mark.parametrize("bare", BOTH)
@pytest.mark.parametrize("model", MODELS)
def test_cpuid(tmp_path, bare, model):
    if native.host_lacks(MODELS[model]):
        pytest.skip("this host cannot give the model")
    found = registers(tmp_path, ASK, cpu_model=model, bare=bare)
    for name, bits in V2.items():
        if name == "rdi" and not bare:
            bits &= ~(0 if found["rdi"] else 1 << 22)  # RDPID needs a VMX control
        assert found[name] & V2[name] == (bits if model == "v2" else 0), name


@pytest.mark.parametrize("bare", BOTH)
@pytest.mark.parametrize("code", ["0f3800c1", "f20f38f1c1", "c4e270f2c1", "480fc7f0"])
def test_instructions_of_the_model(tmp_path, bare, code):
    """PSHUFB, CRC32, ANDN, RDRAND: there with v2; #UD with v1, which without an IDT is a triple fault."""
    program = LIDT_EMPTY + bytes.fromhex(code)
    _, result = run_flat(tmp_path, program + leave(1), load_mode="long64", bare=bare)
    assert result.stop == "TRIPLE_FAULT", result.stop
    assert result.undecoded
    if not native.host_lacks(MODELS["v2"]):
        registers(tmp_path, program, cpu_model="v2", bare=bare)


def test_random_numbers_follow_the_seed(tmp_path):
    options = {"features": {"rdrand": True, "rdseed": True}, "bare": True}
    code = bytes.fromhex("480fc7f6 480fc7ff")  # RDRAND RSI, RDSEED RDI
    drawn = [
        tuple(registers(tmp_path, code, seed=seed, **options)[name] for name in ("rsi", "rdi"))
        for seed in (7, 7, 8)
    ]
    assert drawn[0] == drawn[1] != drawn[2] and drawn[0][0] != drawn[0][1]


def test_features_change_a_model():
    assert chosen_features("v1") == frozenset()
    assert chosen_features("v2") == frozenset(FEATURES)
    assert chosen_features("v1", {"bmi1": True}) == {"bmi1"}
    assert chosen_features("v2", {"aes": False}) == frozenset(FEATURES) - {"aes"}


def test_unknown_names():
    with pytest.raises(ConfigurationError, match="cpu_model = 'v9': must be 'v1' or 'v2'"):
        MachineConfig(cpu_model="v9")
    with pytest.raises(ConfigurationError, match="unknown processor feature 'sse4.1'; did you mean 'sse4_1'"):
        MachineConfig(features={"sse4.1": True})


def test_never_more_than_the_host_can_give(tmp_path, monkeypatch):
    """A host without AES and SSE4.2: the message names what is missing and what would be right."""
    monkeypatch.setattr(
        "vmx.hypervisor.machine.host_lacks", lambda names: sorted({"aes", "sse4_2"} & set(names))
    )
    with pytest.raises(
        ConfigurationError, match="cannot execute aes, sse4_2; .* aes = false, sse4_2 = false"
    ):
        flat_machine(tmp_path, leave(0), cpu_model="v2")
    machine = flat_machine(tmp_path, leave(0), cpu_model="v2", features={"aes": False, "sse4_2": False})
    assert isinstance(machine, Machine)


def test_what_the_host_lacks(monkeypatch):
    assert native.host_lacks(["bmi1", "rdrand", "adx"]) == []  # compiled code
    monkeypatch.setattr(native, "available", lambda: False)
    assert native.host_lacks(FEATURES) == sorted(NATIVE)

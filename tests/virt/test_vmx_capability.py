"""Capability MSRs and control names: consistent with each other and with the facts."""

import csv
from pathlib import Path

import pytest

import vmx.virt
from vmx.errors import ConfigurationError
from vmx.state.bits import unsigned
from vmx.state.processor import PROCESSOR, new_record
from vmx.state.unit import unit
from vmx.virt.capability import CAPABILITIES, FIRST_VMX_MSR, LAST_VMX_MSR, allowed, has_vmx_msr, vmx_msr
from vmx.virt.controls import WORDS, control_names, find_control
from vmx.virt.fields import BY_NAME, FIELDS

FACT_WORDS = {"pin": "pin", "proc1": "primary", "proc2": "secondary", "exit1": "exit", "entry": "entry"}


@unit(PROCESSOR, "i64", "i64")
def ask(cpu, index, value):
    return vmx_msr(index) if value else has_vmx_msr(index)


def test_compiled_msrs_equal_the_table():
    cpu = new_record(PROCESSOR).ctypes.data
    for index in range(FIRST_VMX_MSR - 2, LAST_VMX_MSR + 3):
        assert ask(cpu, index, 0) == (index in CAPABILITIES)
        assert unsigned(ask(cpu, index, 1)) == CAPABILITIES.get(index, 0)


def test_control_bits_agree_with_the_facts():
    path = Path(vmx.virt.__file__).parent / "vmx_controls.tsv"
    with path.open(newline="") as file:
        rows = [row for row in csv.DictReader(file, delimiter="\t") if row["word"] in FACT_WORDS]
    for row in rows:
        word = WORDS[FACT_WORDS[row["word"]]]
        assert 1 << int(row["bit"]) in word.names.values(), row["name"]
        assert BY_NAME[word.field].encoding == int(row["vmcs_field"], 16)
        assert f"{word.msr:#x}" in row["capability_msr"].lower()
    assert len(rows) == sum(len(word.names) for word in WORDS.values())


@pytest.mark.parametrize("name", WORDS)
def test_a_control_word_is_consistent(name):
    word = WORDS[name]
    must, may = allowed(name)
    assert must & ~may == 0
    assert word.modelled & ~sum(word.names.values()) == 0  # what is modelled has a name
    assert may == word.modelled | word.default1
    ordinary = CAPABILITIES[word.msr]
    assert ordinary >> 32 == may and ordinary & must == must
    if word.true_msr:
        assert (ordinary & 0xFFFFFFFF) & ~must == word.optional_default1


def test_basic_misc_and_fixed_bits():
    basic = CAPABILITIES[0x480]
    assert (
        basic >> 31 & 1 == 0 and basic >> 32 & 0x1FFF == 4096 and basic >> 50 & 0xF == 6 and basic >> 55 & 1
    )
    assert CAPABILITIES[0x486] & ~CAPABILITIES[0x487] == 0
    assert CAPABILITIES[0x488] & ~CAPABILITIES[0x489] == 0
    assert CAPABILITIES[0x48A] >> 1 == max(encoding >> 1 & 0x1FF for encoding in FIELDS)
    assert 0x491 not in CAPABILITIES  # VMFUNC: "enable VM functions" cannot be 1


def test_names():
    word, bit = find_control("hlt_exiting")
    assert word is WORDS["primary"] and bit == 1 << 7
    assert control_names(word, 1 << 7 | 1 << 1) == ["bit 1", "HLT_EXITING"]
    with pytest.raises(ConfigurationError, match="HLT_EXITING"):
        find_control("HLT_EXITIN")

"""VMCS fields: the encoding rule, and VMREAD and VMWRITE compiled and in Python."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.virt.vmx_bench import Bench
from vmx.state.bits import signed, unsigned
from vmx.state.processor import PROCESSOR
from vmx.state.unit import unit
from vmx.virt.fields import (
    BY_NAME,
    FIELDS,
    VMCS,
    VMCS_SIZE,
    VmcsFieldError,
    encode,
    field_error,
    find_field,
    new_vmcs,
    vmread,
    vmread_field,
    vmwrite,
    vmwrite_field,
)


@unit(PROCESSOR, "i64", "i64")
def error_of(cpu, encoding, write):
    return field_error(encoding, write)


def test_layout():
    assert VMCS.size == VMCS_SIZE
    assert len(BY_NAME) == len(FIELDS) == 160
    assert all(field.offset % 8 == 0 for field in FIELDS.values())
    assert encode("nat", "guest", 0xF) == BY_NAME["guest_rip"].encoding == 0x681E
    assert encode("32", "readonly", 1) == BY_NAME["exit_reason"].encoding == 0x4402


@pytest.fixture(scope="module")
def bench():
    return Bench()


def test_every_encoding_has_the_same_error_compiled_and_in_python(bench):
    for encoding in [*range(0x8000), 0x10800, 1 << 32 | 0x800, -1]:
        try:
            find_field(encoding)
            expected = 0
        except VmcsFieldError as error:
            expected = error.number
        assert error_of(bench.cpu, encoding, 0) == expected, hex(encoding)


VALUES = st.one_of(st.integers(0, 2**64 - 1), st.sampled_from([0, 2**63, 2**64 - 1, 2**32, 0xFFFF, 0x10000]))


@given(st.sampled_from(sorted(FIELDS)), st.booleans(), VALUES, VALUES)
def test_write_then_read(encoding, high, before, value):
    bench = BENCH
    field = FIELDS[encoding]
    if field.access == "ro":
        assert vmwrite_field(bench.cpu, encoding, signed(value)) == 13
        with pytest.raises(VmcsFieldError, match="read-only"):
            vmwrite(bench.region, encoding, value)
        return
    if high and encoding >> 13 & 3 != 1:
        assert vmwrite_field(bench.cpu, encoding | 1, signed(value)) == 12
        return
    assert vmwrite_field(bench.cpu, encoding, signed(before)) == 0
    assert vmwrite_field(bench.cpu, encoding | high, signed(value)) == 0
    compiled = unsigned(vmread_field(bench.cpu, encoding))
    vmwrite(bench.region, encoding, before)
    vmwrite(bench.region, encoding | high, value)
    expected = before & 0xFFFFFFFF | (value & 0xFFFFFFFF) << 32 if high else value & ((1 << field.width) - 1)
    assert compiled == vmread(bench.region, encoding) == expected
    assert vmread(bench.region, encoding | high) == unsigned(vmread_field(bench.cpu, encoding | high))


BENCH = Bench()


def test_messages_name_the_field_and_a_near_one():
    vmcs = new_vmcs()
    with pytest.raises(VmcsFieldError, match="did you mean 'guest_rip'"):
        vmread(vmcs, "guest_ripp")
    with pytest.raises(VmcsFieldError, match="0x6bc0"):
        vmread(vmcs, 0x6BC0)

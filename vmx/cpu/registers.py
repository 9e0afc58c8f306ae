"""Registers that Python cannot read from the record directly: RFLAGS, whose status flags are lazy."""

from vmx.state.flags import get_rflags, set_rflags
from vmx.state.processor import PROCESSOR
from vmx.state.unit import unit


@unit(PROCESSOR)
def read_rflags(cpu):
    """RFLAGS with the lazy flags filled in."""
    return get_rflags(cpu)


@unit(PROCESSOR, "i64")
def write_rflags(cpu, value):
    """Load all of RFLAGS."""
    set_rflags(cpu, value)
    return 0

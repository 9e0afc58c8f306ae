"""The table of VM-entry checks, and how compiled code records that one of them is violated.

Manual: chapter "VM Entries", "Checks on VMX Controls and Host-State Area" and "Checking and Loading Guest
State". The modules check_controls, check_host and check_guest declare the checks in the manual's order,
each beside the code that tests it. A check's number is its bit in the bitmap `vmcs.violations`: 64 numbers
for controls, 64 for the host state, the rest for the guest state, so "the first violated check" is the
lowest bit.
"""

from typing import NamedTuple

from vmx.state.bits import trailing_zeros
from vmx.state.jit import compiled

FIRST_CONTROL_CHECK, FIRST_HOST_CHECK, FIRST_GUEST_CHECK = 1, 64, 128
CONTROL_WORD, HOST_WORD, GUEST_WORD, END_WORD = 0, 1, 2, 6  # words of the bitmap

SEGMENT_NAMES = ("es", "cs", "ss", "ds", "fs", "gs")


class Check(NamedTuple):
    """One VM-entry check."""

    number: int
    name: str
    field: str  # the VMCS field that it is about
    section: str  # title in the manual
    message: str  # what must hold, as the end of a sentence that begins with the field


CHECKS: dict[int, Check] = {}


class Declare:
    """Numbers checks in the order of declaration, within one area of the VMCS."""

    def __init__(self, first: int, end: int):
        self._next, self._end, self._section = first, end, ""

    def section(self, title: str) -> None:
        self._section = title

    def __call__(self, name: str, field: str, message: str) -> int:
        number = self._next
        if number >= self._end:
            raise ValueError(f"no number is left for the entry check {name}")
        CHECKS[number] = Check(number, name, field, self._section, message)
        self._next += 1
        return number

    def each(self, segments, name: str, field: str, message: str) -> int:
        """One check per segment: `{}` in name and field stands for it. Returns the first number."""
        return [self(name.format(each), field.format(each), message) for each in segments][0]


@compiled
def violate(vmcs, number):
    """Record a violated check."""
    word = number >> 6
    vmcs.violations[word] = vmcs.violations[word] | 1 << (number & 63)


@compiled
def clear_violations(vmcs, first, end):
    """Forget the violations in some words of the bitmap."""
    for i in range(first, end):
        vmcs.violations[i] = 0


@compiled
def first_violation(vmcs, first, end):
    """The lowest number among the violations in some words of the bitmap, or 0."""
    for i in range(first, end):
        word = vmcs.violations[i]
        if word:
            return i << 6 | trailing_zeros(word)
    return 0

"""The VMCS region and its fields: encodings, slots, and what VMREAD and VMWRITE may do with them.

Manual: "VMCS Layout" and the appendix "Field Encoding in VMCS". vmcs_fields.tsv beside this file lists the
fields; whatever the encoding already says (width, type, access) is computed from it, and the list is only
checked against that. Every field has a slot of eight bytes, in the order of encodings, so that the fields
of ES, CS ... TR lie beside each other.

Compiled code reads `VMCS.at(cpu.host_vmcs).guest_rip`; a hypervisor uses `vmread` and `vmwrite`, which
truncate and refuse as the instructions do.
"""

import csv
import difflib
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vmx.errors import VmxError
from vmx.state.bits import MASK64, shr, unsigned
from vmx.state.jit import compiled
from vmx.state.memory import host_address, load64, store64
from vmx.state.processor import PROCESSOR
from vmx.state.struct import struct
from vmx.state.unit import unit

VMCS_SIZE = 4096
VMCS_REVISION = 0x564D58  # "VMX"; bit 31 is clear: not a shadow VMCS
LAUNCH_CLEAR, LAUNCH_LAUNCHED = 0, 1
VIOLATION_WORDS = 6  # bitmap of violated entry checks: see vmx.virt.checks

# VM-instruction errors that concern fields
UNSUPPORTED_VMCS_COMPONENT = 12
READ_ONLY_VMCS_COMPONENT = 13

WIDTHS = (16, 64, 32, 0)  # bits, by encoding bits 14:13; 0: natural width, 64 bits here
TYPES = ("control", "readonly", "guest", "host")  # by encoding bits 11:10
_WIDTH_NAMES = ("16", "64", "32", "nat")


class Field(NamedTuple):
    """One VMCS field."""

    encoding: int
    name: str  # identifier: the attribute of a VMCS view
    offset: int  # of its slot, in bytes
    width: int  # bits that it holds
    type: str  # "control", "readonly", "guest" or "host"
    access: str  # "rw" or "ro"
    title: str  # the manual's words


def encode(width: str, type_: str, index: int) -> int:
    """The encoding of a field: width "16", "64", "32" or "nat", type as in TYPES."""
    return _WIDTH_NAMES.index(width) << 13 | TYPES.index(type_) << 10 | index << 1


def _rows() -> list[dict]:
    with (Path(__file__).parent / "vmcs_fields.tsv").open(newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


def _layout(rows):
    header = [("revision_id", "u4"), ("abort_indicator", "u4"), ("launch_state", "u4"), ("padding", "u4")]
    slots = [(row["identifier"], "u8") for row in rows]
    used = 16 + 8 * (len(slots) + VIOLATION_WORDS)
    return [*header, *slots, ("violations", "u8", (VIOLATION_WORDS,)), ("unused", "u1", (VMCS_SIZE - used,))]


_ROWS = _rows()
VMCS = struct("Vmcs", _layout(_ROWS))


def _field(row) -> Field:
    encoding = int(row["encoding"], 16)
    width = WIDTHS[encoding >> 13 & 3] or 64
    type_ = TYPES[encoding >> 10 & 3]
    access = "ro" if type_ == "readonly" else "rw"
    expected = encode(row["width"], row["type"], encoding >> 1 & 0x1FF)
    if encoding != expected or row["access"] != access:
        raise ValueError(
            f"vmcs_fields.tsv: {row['identifier']} at {encoding:#06x} should be at {expected:#06x}, {access}"
        )
    return Field(
        encoding, row["identifier"], VMCS.offset(row["identifier"]), width, type_, access, row["name"]
    )


FIELDS: dict[int, Field] = {field.encoding: field for field in map(_field, _ROWS)}
BY_NAME: dict[str, Field] = {field.name: field for field in FIELDS.values()}
HIGHEST_INDEX = max(encoding >> 1 & 0x1FF for encoding in FIELDS)

# --- compiled look-up ---------------------------------------------------------------------------------------

# A dense table by width, type and index (five bits). Entry: offset, width code << 16, read-only << 18.
_INDEX_BITS = 5
_WIDTH_SHIFT, _READ_ONLY = 16, 1 << 18


def _table() -> np.ndarray:
    table = np.zeros(16 << _INDEX_BITS, np.int64)
    for encoding, field in FIELDS.items():
        read_only = _READ_ONLY if field.access == "ro" else 0
        place = (
            (encoding >> 13 & 3) << (_INDEX_BITS + 2)
            | (encoding >> 10 & 3) << _INDEX_BITS
            | encoding >> 1 & 0x1F
        )
        table[place] = field.offset | (encoding >> 13 & 3) << _WIDTH_SHIFT | read_only
    return table


if HIGHEST_INDEX >> _INDEX_BITS:
    raise ValueError("vmcs_fields.tsv: an index needs more bits than the look-up table has")
FIELD_TABLE = _table()
_UNUSED_ENCODING_BITS = ~0x6FFF | 0x3C0  # bit 12, bits above 14, and index bits that no field uses
_HIGH = 1  # bit 0 of an encoding: the high half of a 64-bit field


@compiled
def field_slot(encoding):
    """The table entry of an encoding (15:0 offset of the slot), or 0 for a field that does not exist."""
    if encoding & _UNUSED_ENCODING_BITS:
        return 0
    entry = FIELD_TABLE[(encoding >> 6 & 0x180) | (encoding >> 5 & 0x60) | (encoding >> 1 & 0x1F)]
    if encoding & _HIGH and entry >> _WIDTH_SHIFT & 3 != 1:
        return 0
    return entry


@compiled
def field_error(encoding, write):
    """The VM-instruction error of an access: 0, 12 (no such field) or 13 (write to a read-only field)."""
    entry = field_slot(encoding)
    if entry == 0:
        return UNSUPPORTED_VMCS_COMPONENT
    if write and entry & _READ_ONLY:
        return READ_ONLY_VMCS_COMPONENT
    return 0


@unit(PROCESSOR, "i64")
def vmread_field(cpu, encoding):
    """VMREAD of the current VMCS. The caller has asked `field_error`; 0 for a field that does not exist."""
    entry = field_slot(encoding)
    if entry == 0:
        return 0
    value = load64(cpu.host_vmcs + (entry & 0xFFFF))
    return shr(value, 32) if encoding & _HIGH else value


@unit(PROCESSOR, "i64", "i64")
def vmwrite_field(cpu, encoding, value):
    """VMWRITE to the current VMCS. Returns 0, or the VM-instruction error and changes nothing."""
    error = field_error(encoding, 1)
    if error:
        return error
    entry = field_slot(encoding)
    address = cpu.host_vmcs + (entry & 0xFFFF)
    width = entry >> _WIDTH_SHIFT & 3
    if encoding & _HIGH:
        value = load64(address) & 0xFFFFFFFF | value << 32
    elif width == 0:
        value &= 0xFFFF
    elif width == 2:
        value &= 0xFFFFFFFF
    store64(address, value)
    return 0


# --- for Python ---------------------------------------------------------------------------------------------


class VmcsFieldError(VmxError):
    """An access that VMREAD or VMWRITE would refuse; `number` is the VM-instruction error."""

    def __init__(self, number: int, message: str):
        super().__init__(message)
        self.number = number


def vmcs_address(vmcs) -> int:
    """The host address of a VMCS given as a view, a numpy record or an address."""
    if isinstance(vmcs, np.ndarray):
        return host_address(vmcs)
    return int(getattr(vmcs, "_address", vmcs))


def find_field(field: int | str) -> tuple[Field, bool]:
    """The field of an encoding or identifier, and whether its high half is meant. Raises VmcsFieldError."""
    if isinstance(field, str):
        found = BY_NAME.get(field)
        if found is None:
            near = difflib.get_close_matches(field, BY_NAME, 1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise VmcsFieldError(UNSUPPORTED_VMCS_COMPONENT, f"the VMCS has no field {field!r}{hint}")
        return found, False
    found = FIELDS.get(field & ~_HIGH)
    if found is None:
        raise VmcsFieldError(UNSUPPORTED_VMCS_COMPONENT, f"the VMCS has no field with encoding {field:#x}")
    high = bool(field & _HIGH)
    if high and WIDTHS[found.encoding >> 13 & 3] != 64:
        message = f"encoding {field:#x} asks for the high half of {found.name}, which is not a 64-bit field"
        raise VmcsFieldError(UNSUPPORTED_VMCS_COMPONENT, message)
    return found, high


def vmread(vmcs, field: int | str) -> int:
    """The value of a field, unsigned, by encoding or identifier. Raises VmcsFieldError."""
    found, high = find_field(field)
    value = unsigned(VMCS.view(vmcs_address(vmcs)).__getattr__(found.name))
    return value >> 32 if high else value


def vmwrite(vmcs, field: int | str, value: int) -> None:
    """Write a field, truncated to its width. Raises VmcsFieldError."""
    found, high = find_field(field)
    if found.access == "ro":
        message = f"{found.name} ({found.encoding:#06x}) is a read-only VM-exit information field"
        raise VmcsFieldError(READ_ONLY_VMCS_COMPONENT, message)
    view = VMCS.view(vmcs_address(vmcs))
    value = int(value) & MASK64
    if high:
        value = unsigned(view.__getattr__(found.name)) & 0xFFFFFFFF | (value & 0xFFFFFFFF) << 32
    setattr(view, found.name, value & ((1 << found.width) - 1))


def new_vmcs() -> np.ndarray:
    """A zeroed VMCS region as a numpy record, page-aligned, with this processor's revision identifier."""
    raw = np.zeros(2 * VMCS_SIZE, np.uint8)
    start = -raw.ctypes.data % VMCS_SIZE
    record = raw[start : start + VMCS_SIZE].view(VMCS.dtype)
    record["revision_id"] = VMCS_REVISION
    return record

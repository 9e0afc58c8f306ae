"""VM-entry checks on the guest's segment registers, in virtual-8086 mode, real mode and every protected mode.

Manual: "Checks on Guest Segment Registers". A check that the manual makes for each segment has one number per
segment, beginning at the name's value: TYPE + CS is the check of CS's type.
"""

from vmx.state.bits import shr
from vmx.state.jit import compiled
from vmx.state.memory import load64
from vmx.state.processor import (
    ACCESS_DB,
    ACCESS_G,
    ACCESS_L,
    ACCESS_P,
    ACCESS_S,
    ACCESS_UNUSABLE,
    CR0_PE,
    CS,
    ES,
    FLAG_VM,
    FS,
    SS,
)
from vmx.virt.check_table import SEGMENT_NAMES, Declare, violate
from vmx.virt.controls import IA32E_MODE_GUEST
from vmx.virt.fields import VMCS
from vmx.virt.values import is_canonical

FIRST, END = 160, 288
SEGMENTS = len(SEGMENT_NAMES)  # ES to GS
SELECTORS, LIMITS = VMCS.offset("guest_es_selector"), VMCS.offset("guest_es_limit")
ACCESS_RIGHTS, BASES = VMCS.offset("guest_es_access_rights"), VMCS.offset("guest_es_base")

_check = Declare(FIRST, END)
_check.section("Checks on Guest Segment Registers")


def _each(name, part, message, segments=SEGMENT_NAMES):
    return _check.each(segments, "guest_{}_" + name, "guest_{}_" + part, message)


_RIGHTS = "access_rights"
TR_SELECTOR_TI = _check("guest_tr_ti", "guest_tr_selector", "must have TI (bit 2) 0")
LDTR_SELECTOR_TI = _check("guest_ldtr_ti", "guest_ldtr_selector", "must have TI (bit 2) 0")
SS_RPL = _check(
    "guest_ss_rpl", "guest_ss_selector", 'must have the RPL of CS unless "unrestricted guest" is 1'
)
V86_BASE = _each("v86_base", "base", "must be the selector times 16 in virtual-8086 mode")
TR_BASE = _check("guest_tr_base", "guest_tr_base", "must be canonical")
LDTR_BASE = _check("guest_ldtr_base", "guest_ldtr_base", "must be canonical")
FS_BASE = _check("guest_fs_base", "guest_fs_base", "must be canonical")
GS_BASE = _check("guest_gs_base", "guest_gs_base", "must be canonical")
BASE_HIGH = _each("base_high", "base", "must be 0 in bits 63:32", ("es", "cs", "ss", "ds"))
V86_LIMIT = _each("v86_limit", "limit", "must be 0xffff in virtual-8086 mode")
V86_RIGHTS = _each("v86_access_rights", _RIGHTS, "must be 0xf3 in virtual-8086 mode")
CS_TYPE = _check(
    "guest_cs_type", "guest_cs_access_rights", 'must have type 9, 11, 13, 15, or 3 with "unrestricted guest"'
)
SS_TYPE = _check("guest_ss_type", "guest_ss_access_rights", "must have type 3 or 7")
ACCESSED = _each("accessed", _RIGHTS, "must have bit 0 of the type (accessed) set", ("es", "ds", "fs", "gs"))
READABLE = _each("readable", _RIGHTS, "must have a readable type if it is code", ("es", "ds", "fs", "gs"))
NOT_SYSTEM = _each("s", _RIGHTS, "must have S (bit 4) 1: a code or data segment")
CS_DPL_DATA = _check("guest_cs_dpl_data", "guest_cs_access_rights", "must have DPL 0 with type 3")
CS_DPL_NONCONFORMING = _check(
    "guest_cs_dpl_nonconforming", "guest_cs_access_rights", "must have the DPL of SS with type 9 or 11"
)
CS_DPL_CONFORMING = _check(
    "guest_cs_dpl_conforming",
    "guest_cs_access_rights",
    "must not have a DPL above that of SS with type 13 or 15",
)
SS_DPL_RPL = _check(
    "guest_ss_dpl_rpl",
    "guest_ss_access_rights",
    'must have a DPL equal to the RPL of SS unless "unrestricted guest" is 1',
)
SS_DPL_ZERO = _check(
    "guest_ss_dpl_zero", "guest_ss_access_rights", "must have DPL 0 while CS has type 3 or CR0.PE is 0"
)
DATA_DPL = _each(
    "dpl",
    _RIGHTS,
    'must have a DPL not below the RPL of its selector unless "unrestricted guest" is 1',
    ("es", "ds", "fs", "gs"),
)
PRESENT = _each("present", _RIGHTS, "must have P (bit 7) 1")
RESERVED_LOW = _each("reserved_11_8", _RIGHTS, "must be 0 in bits 11:8")
CS_DB = _check("guest_cs_db", "guest_cs_access_rights", "must have D/B (bit 14) 0 in 64-bit mode")
GRANULARITY = _each("granularity", _RIGHTS, "must have a G (bit 15) that fits the limit")
RESERVED_HIGH = _each("reserved_31_17", _RIGHTS, "must be 0 in bits 31:17")

_TR = "guest_tr_access_rights"
TR_TYPE = _check("guest_tr_type", _TR, "must have type 11 (busy TSS), or 3 (16-bit) outside IA-32e mode")
TR_S = _check("guest_tr_s", _TR, "must have S (bit 4) 0")
TR_PRESENT = _check("guest_tr_present", _TR, "must have P (bit 7) 1")
TR_RESERVED_LOW = _check("guest_tr_reserved_11_8", _TR, "must be 0 in bits 11:8")
TR_GRANULARITY = _check("guest_tr_granularity", _TR, "must have a G (bit 15) that fits the limit")
TR_USABLE = _check("guest_tr_usable", _TR, "must have bit 16 (unusable) 0")
TR_RESERVED_HIGH = _check("guest_tr_reserved_31_17", _TR, "must be 0 in bits 31:17")

_LDTR = "guest_ldtr_access_rights"
LDTR_TYPE = _check("guest_ldtr_type", _LDTR, "must have type 2 (LDT)")
LDTR_S = _check("guest_ldtr_s", _LDTR, "must have S (bit 4) 0")
LDTR_PRESENT = _check("guest_ldtr_present", _LDTR, "must have P (bit 7) 1")
LDTR_RESERVED_LOW = _check("guest_ldtr_reserved_11_8", _LDTR, "must be 0 in bits 11:8")
LDTR_GRANULARITY = _check("guest_ldtr_granularity", _LDTR, "must have a G (bit 15) that fits the limit")
LDTR_RESERVED_HIGH = _check("guest_ldtr_reserved_31_17", _LDTR, "must be 0 in bits 31:17")

_V86_RIGHTS = 0xF3
_RESERVED_LOW_BITS, _RESERVED_HIGH_BITS = 0xF00, 0xFFFE_0000


@compiled
def _field(vmcs, part, segment):
    """A field of ES to TR: `part` is the offset of ES's."""
    return load64(VMCS.address(vmcs) + part + 8 * segment)


@compiled
def _dpl(rights):
    return rights >> 5 & 3


@compiled
def _wrong_granularity(limit, rights):
    """G must be 0 if a bit of limit 11:0 is 0, and 1 if a bit of limit 31:20 is 1."""
    if rights & ACCESS_G:
        return 1 if limit & 0xFFF != 0xFFF else 0
    return 1 if limit & 0xFFF0_0000 else 0


@compiled
def _data_index(segment):
    """The place of ES, DS, FS or GS among checks that leave out CS and SS."""
    return 0 if segment == ES else segment - 2


@compiled
def _check_v86(vmcs):
    for i in range(SEGMENTS):
        if _field(vmcs, BASES, i) != _field(vmcs, SELECTORS, i) << 4:
            violate(vmcs, V86_BASE + i)
        if _field(vmcs, LIMITS, i) != 0xFFFF:
            violate(vmcs, V86_LIMIT + i)
        if _field(vmcs, ACCESS_RIGHTS, i) != _V86_RIGHTS:
            violate(vmcs, V86_RIGHTS + i)


@compiled
def _check_bases(vmcs, ldtr_usable):
    if not is_canonical(vmcs.guest_tr_base):
        violate(vmcs, TR_BASE)
    if ldtr_usable and not is_canonical(vmcs.guest_ldtr_base):
        violate(vmcs, LDTR_BASE)
    if not is_canonical(vmcs.guest_fs_base):
        violate(vmcs, FS_BASE)
    if not is_canonical(vmcs.guest_gs_base):
        violate(vmcs, GS_BASE)
    for i in range(FS):
        usable = i == CS or _field(vmcs, ACCESS_RIGHTS, i) & ACCESS_UNUSABLE == 0
        if usable and shr(_field(vmcs, BASES, i), 32):
            violate(vmcs, BASE_HIGH + i)


@compiled
def _check_common(vmcs, segment, rights):
    """What holds for CS, and for every other segment that is usable."""
    if rights & ACCESS_S == 0:
        violate(vmcs, NOT_SYSTEM + segment)
    if rights & ACCESS_P == 0:
        violate(vmcs, PRESENT + segment)
    if rights & _RESERVED_LOW_BITS:
        violate(vmcs, RESERVED_LOW + segment)
    if _wrong_granularity(_field(vmcs, LIMITS, segment), rights):
        violate(vmcs, GRANULARITY + segment)
    if rights & _RESERVED_HIGH_BITS:
        violate(vmcs, RESERVED_HIGH + segment)


@compiled
def _check_code(vmcs, unrestricted, ia32e):
    rights = vmcs.guest_cs_access_rights
    kind = rights & 0xF
    ss_dpl = _dpl(vmcs.guest_ss_access_rights)
    if kind & 9 != 9 and not (unrestricted and kind == 3):
        violate(vmcs, CS_TYPE)
    if kind == 3 and _dpl(rights) != 0:
        violate(vmcs, CS_DPL_DATA)
    if kind & 13 == 9 and _dpl(rights) != ss_dpl:
        violate(vmcs, CS_DPL_NONCONFORMING)
    if kind & 13 == 13 and _dpl(rights) > ss_dpl:
        violate(vmcs, CS_DPL_CONFORMING)
    if ia32e and rights & ACCESS_L and rights & ACCESS_DB:
        violate(vmcs, CS_DB)
    _check_common(vmcs, CS, rights)


@compiled
def _check_stack(vmcs, unrestricted):
    rights = vmcs.guest_ss_access_rights
    if not unrestricted and _dpl(rights) != vmcs.guest_ss_selector & 3:
        violate(vmcs, SS_DPL_RPL)
    if _dpl(rights) != 0 and (vmcs.guest_cs_access_rights & 0xF == 3 or vmcs.guest_cr0 & CR0_PE == 0):
        violate(vmcs, SS_DPL_ZERO)
    if rights & ACCESS_UNUSABLE:
        return
    if rights & 0xB != 3:
        violate(vmcs, SS_TYPE)
    _check_common(vmcs, SS, rights)


@compiled
def _check_data(vmcs, segment, unrestricted):
    rights = _field(vmcs, ACCESS_RIGHTS, segment)
    if rights & ACCESS_UNUSABLE:
        return
    kind = rights & 0xF
    place = _data_index(segment)
    if kind & 1 == 0:
        violate(vmcs, ACCESSED + place)
    if kind & 8 and kind & 2 == 0:
        violate(vmcs, READABLE + place)
    if not unrestricted and kind <= 11 and _dpl(rights) < _field(vmcs, SELECTORS, segment) & 3:
        violate(vmcs, DATA_DPL + place)
    _check_common(vmcs, segment, rights)


@compiled
def _check_tr(vmcs, ia32e):
    rights = vmcs.guest_tr_access_rights
    kind = rights & 0xF
    if kind != 11 and (ia32e or kind != 3):
        violate(vmcs, TR_TYPE)
    if rights & ACCESS_S:
        violate(vmcs, TR_S)
    if rights & ACCESS_P == 0:
        violate(vmcs, TR_PRESENT)
    if rights & _RESERVED_LOW_BITS:
        violate(vmcs, TR_RESERVED_LOW)
    if _wrong_granularity(vmcs.guest_tr_limit, rights):
        violate(vmcs, TR_GRANULARITY)
    if rights & ACCESS_UNUSABLE:
        violate(vmcs, TR_USABLE)
    if rights & _RESERVED_HIGH_BITS:
        violate(vmcs, TR_RESERVED_HIGH)


@compiled
def _check_ldtr(vmcs):
    rights = vmcs.guest_ldtr_access_rights
    if rights & 0xF != 2:
        violate(vmcs, LDTR_TYPE)
    if rights & ACCESS_S:
        violate(vmcs, LDTR_S)
    if rights & ACCESS_P == 0:
        violate(vmcs, LDTR_PRESENT)
    if rights & _RESERVED_LOW_BITS:
        violate(vmcs, LDTR_RESERVED_LOW)
    if _wrong_granularity(vmcs.guest_ldtr_limit, rights):
        violate(vmcs, LDTR_GRANULARITY)
    if rights & _RESERVED_HIGH_BITS:
        violate(vmcs, LDTR_RESERVED_HIGH)


@compiled
def check_segments(vmcs, unrestricted):
    """All segment registers; `unrestricted` is "unrestricted guest"."""
    v86 = vmcs.guest_rflags & FLAG_VM
    ia32e = vmcs.vm_entry_controls & IA32E_MODE_GUEST
    ldtr_usable = vmcs.guest_ldtr_access_rights & ACCESS_UNUSABLE == 0
    if vmcs.guest_tr_selector & 4:
        violate(vmcs, TR_SELECTOR_TI)
    if ldtr_usable and vmcs.guest_ldtr_selector & 4:
        violate(vmcs, LDTR_SELECTOR_TI)
    _check_bases(vmcs, ldtr_usable)
    if v86:
        _check_v86(vmcs)
    else:
        if not unrestricted and (vmcs.guest_ss_selector ^ vmcs.guest_cs_selector) & 3:
            violate(vmcs, SS_RPL)
        _check_code(vmcs, unrestricted, ia32e)
        _check_stack(vmcs, unrestricted)
        for i in range(SEGMENTS):
            if i != CS and i != SS:
                _check_data(vmcs, i, unrestricted)
    _check_tr(vmcs, ia32e)
    if ldtr_usable:
        _check_ldtr(vmcs)

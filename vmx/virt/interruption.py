"""Interruption information: the format that VM-entry, VM-exit and IDT-vectoring information share.

Manual: "VM-Entry Controls for Event Injection", "Information for VM Exits Due to Vectored Events". 7:0
vector, 10:8 type, 11 error code valid (or to be delivered), 12 NMI unblocking due to IRET (exits only), 31
valid.
"""

from vmx.state.jit import compiled

INFO_ERROR_CODE, INFO_NMI_UNBLOCKING, INFO_VALID = 1 << 11, 1 << 12, 1 << 31
TYPE_EXTERNAL, TYPE_NMI, TYPE_EXCEPTION, TYPE_SOFTWARE_INTERRUPT = 0, 2, 3, 4
TYPE_PRIVILEGED_EXCEPTION, TYPE_SOFTWARE_EXCEPTION, TYPE_OTHER = 5, 6, 7


@compiled
def interruption_type(info):
    """Bits 10:8."""
    return info >> 8 & 7


@compiled
def is_software_type(kind):
    """1 for INT n, INT1, INT3 and INTO: events that have an instruction length."""
    return 1 if TYPE_SOFTWARE_INTERRUPT <= kind <= TYPE_SOFTWARE_EXCEPTION else 0

"""Which values registers may hold, as VM entry and the MSR lists ask it.

Manual: "Canonical Addressing", "Control Registers", and the descriptions of IA32_EFER, IA32_PAT,
IA32_DEBUGCTL.
"""

from vmx.mmu.ept import PHYSICAL_ADDRESS_BITS
from vmx.state.bits import shr
from vmx.state.jit import compiled
from vmx.state.processor import EFER_LMA, EFER_LME, EFER_NXE, EFER_SCE

EFER_BITS = EFER_SCE | EFER_LME | EFER_LMA | EFER_NXE
DEBUGCTL_LBR, DEBUGCTL_BTF = 1, 2
DEBUGCTL_BITS = DEBUGCTL_LBR | DEBUGCTL_BTF


@compiled
def is_canonical(address):
    """1 when bits 63:47 are all equal."""
    return 1 if (address << 16) >> 16 == address else 0


@compiled
def is_physical(address):
    """1 when no bit beyond the physical-address width is set."""
    return 1 if shr(address, PHYSICAL_ADDRESS_BITS) == 0 else 0


@compiled
def is_physical_page(address):
    """1 for a 4-KiB-aligned physical address."""
    return 1 if address & 0xFFF == 0 and shr(address, PHYSICAL_ADDRESS_BITS) == 0 else 0


@compiled
def is_memory_type_list(pat):
    """1 when every byte of an IA32_PAT value is 0, 1, 4, 5, 6 or 7."""
    for i in range(8):
        kind = shr(pat, 8 * i) & 0xFF
        if kind > 7 or kind == 2 or kind == 3:
            return 0
    return 1

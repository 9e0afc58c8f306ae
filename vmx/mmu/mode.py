"""What follows from the control registers and segments: privilege, sizes, paging mode, and the TLB bank.

Manual, "Modes of Operation", "Paging Modes and Control Bits", "Operations that Invalidate TLBs and
Paging-Structure Caches".
"""

from vmx.mmu.breakpoints import ENABLED
from vmx.mmu.paging import load_pdptes
from vmx.mmu.tlb import BANK_BYTES, NONE, SUPERVISOR, SUPERVISOR_AC, USER, flush_all, select_context
from vmx.state.bits import shr
from vmx.state.jit import compiled
from vmx.state.processor import (
    ACCESS_DB,
    ACCESS_L,
    CR0_AM,
    CR0_PE,
    CR0_PG,
    CR4_LA57,
    CR4_PAE,
    CR4_SMAP,
    CS,
    EFER_LMA,
    FLAG_AC,
    FLAG_VM,
    PROCESSOR,
    SS,
)
from vmx.state.unit import unit

__all__ = ["load_pdptes", "paging_changed", "update_mode", "update_privilege"]

CODE_16, CODE_32, CODE_64 = 0, 1, 2  # cpu.code_mode


@compiled
def update_privilege(cpu):
    """Derive CPL and the TLB bank: after SS, EFLAGS.AC, EFLAGS.VM or DR7 changed and nothing else did."""
    if cpu.cr0 & CR0_PE == 0:
        cpl = 0
    elif cpu.rflags & FLAG_VM:
        cpl = 3
    else:
        cpl = shr(cpu.segments[SS].access, 5) & 3
    cpu.cpl = cpl
    bank = SUPERVISOR
    if cpu.dr[7] & ENABLED:
        bank = NONE
    elif cpl == 3:
        bank = NONE if cpu.rflags & FLAG_AC and cpu.cr0 & CR0_AM else USER
    elif cpu.cr4 & CR4_SMAP == 0 or cpu.rflags & FLAG_AC:
        bank = SUPERVISOR_AC
    cpu.tlb_bank = cpu.host_tlb + bank * BANK_BYTES


@unit(PROCESSOR)
def update_mode(cpu):
    """Derive everything from CR0, CR4, EFER, RFLAGS, CS and SS, and select the TLB's contexts."""
    long_mode = shr(cpu.efer & EFER_LMA, 10)
    cpu.long_mode = long_mode
    access = cpu.segments[CS].access
    if long_mode and access & ACCESS_L:
        cpu.code_mode = CODE_64
    else:
        cpu.code_mode = CODE_32 if access & ACCESS_DB else CODE_16
    if cpu.cr0 & CR0_PG == 0:
        cpu.paging_mode = 0
    elif cpu.cr4 & CR4_PAE == 0:
        cpu.paging_mode = 1
    elif not long_mode:
        cpu.paging_mode = 2
    else:
        cpu.paging_mode = 4 if cpu.cr4 & CR4_LA57 else 3
    update_privilege(cpu)
    select_context(cpu)
    return 0


@unit(PROCESSOR)
def paging_changed(cpu):
    """CR0.PG, CR4.PAE, PSE, PGE, PCIDE, SMEP or EFER changed: drop this VPID's translations, derive the mode.

    After a change of CR0.WP, CR4.SMAP or EFER.NXE alone `update_mode` does: contexts keep those apart.
    """
    flush_all(cpu)
    update_mode(cpu)
    return 0

"""From a linear address to a physical one: the slow path behind every TLB look-up.

The bank that an access uses says what it is: explicit or implicit, supervisor or user, with or without SMAP.
"""

from vmx.mmu.ept import (
    ADDRESS,
    DIRTY_SET,
    EPT_EXIT,
    FINAL_ACCESS,
    LINEAR_VALID,
    MAY_FETCH,
    MAY_READ,
    MAY_WRITE,
    PHYSICAL_ADDRESS_BITS,
    ept_translate,
)
from vmx.mmu.paging import FETCH, GLOBAL_PAGE, READ, SIZE_MASK, SIZE_SHIFT, WRITE, walk_guest
from vmx.mmu.physical import CODE, DIRTY, WATCHED, ram_offset
from vmx.mmu.tlb import (
    BANK_BYTES,
    PAGE_MASK,
    SUPERVISOR,
    SUPERVISOR_AC,
    entry_of,
    note_large_page,
)
from vmx.mmu.tlb import (
    USER as USER_BANK,
)
from vmx.state.bits import shr
from vmx.state.jit import compiled
from vmx.state.memory import load8, store8
from vmx.state.processor import CR4_SMAP, FAULT, FLAG_AC, GP, PROCESSOR
from vmx.state.unit import unit

__all__ = ["EPT_EXIT", "FETCH", "IMPLICIT", "PHYSICAL_ADDRESS_BITS", "READ", "WRITE", "translate"]

IMPLICIT = 8  # added to the kind: an implicit supervisor access (descriptor tables, TSS)
_NO_PAGING = MAY_READ | MAY_WRITE | MAY_FETCH | DIRTY_SET


@compiled
def _bank_of(cpu, access):
    """The number of the bank for an access. While the bank NONE is in use it follows from the privilege."""
    if access & IMPLICIT or cpu.tlb_bank == cpu.host_tlb + SUPERVISOR * BANK_BYTES:
        return SUPERVISOR
    if cpu.tlb_bank == cpu.host_tlb + SUPERVISOR_AC * BANK_BYTES:
        return SUPERVISOR_AC
    if cpu.tlb_bank == cpu.host_tlb + USER_BANK * BANK_BYTES or cpu.cpl == 3:
        return USER_BANK
    return SUPERVISOR_AC if cpu.cr4 & CR4_SMAP == 0 or cpu.rflags & FLAG_AC else SUPERVISOR


@compiled
def _tag(entry, kind):
    if kind == READ:
        return entry.read
    return entry.write if kind == WRITE else entry.fetch


@compiled
def _adopt(entry, tag):
    """Give a global page's entry the current context."""
    if entry.read != -1:
        entry.read = tag
    if entry.write != -1:
        entry.write = tag
    if entry.fetch != -1:
        entry.fetch = tag


@compiled
def _fill(cpu, entry, linear, kind, guest, rights):
    """Fill the entry for a RAM page: every access that would need neither a fault nor a flag from now on."""
    offset = ram_offset(cpu, cpu.walk_hpa & PAGE_MASK)
    if offset < 0:
        return
    page = linear & PAGE_MASK
    tag = page | cpu.tlb_context
    flags_at = cpu.host_page_flags + shr(offset, 12)
    flags = load8(flags_at)
    write = -1
    if rights & (MAY_WRITE | DIRTY_SET) == MAY_WRITE | DIRTY_SET and flags & (CODE | WATCHED) == 0:
        if kind == WRITE and flags & DIRTY == 0:
            flags |= DIRTY
            store8(flags_at, flags)
        if flags & DIRTY:
            write = tag
    entry.read = tag if rights & MAY_READ else -1
    entry.write = write
    entry.fetch = tag if rights & MAY_FETCH else -1
    entry.host_delta = cpu.host_ram + offset - page
    entry.physical = cpu.walk_hpa & PAGE_MASK
    entry.guest_physical = cpu.walk_gpa & PAGE_MASK
    entry.global_context = cpu.tlb_global_context if guest & GLOBAL_PAGE else 0
    size = 4096 << (shr(guest, SIZE_SHIFT) & SIZE_MASK)
    entry.page_size = size
    if size > 4096:
        note_large_page(cpu, linear, size)


@compiled
def _walk(cpu, entry, linear, kind, bank):
    """Translate by the tables, guest's and EPT's; fill the TLB."""
    cpu.guest_walks += 1
    guest = linear & PAGE_MASK | _NO_PAGING
    if cpu.paging_mode != 0:
        guest = walk_guest(cpu, linear, kind, bank)
        if guest < 0:
            cpu.exit_linear = linear if cpu.fault == EPT_EXIT else cpu.exit_linear
            return cpu.fault
    gpa = guest & ADDRESS | linear & 0xFFF
    translation = guest
    rights = guest
    if cpu.eptp != 0:
        translation = ept_translate(cpu, gpa, 1 << kind | LINEAR_VALID | FINAL_ACCESS)
        if translation < 0:
            cpu.exit_linear = linear
            return EPT_EXIT
        rights &= translation
    cpu.walk_gpa = gpa
    cpu.walk_hpa = translation & ADDRESS | linear & 0xFFF
    _fill(cpu, entry, linear, kind, guest, rights)
    return 0


@unit(PROCESSOR, "i64", "i64")
def translate(cpu, linear, access):
    """Translate for one access (READ, WRITE or FETCH, | IMPLICIT) that stays within a page.

    Returns 0 with cpu.walk_gpa and cpu.walk_hpa set, or the status that is in cpu.fault.
    """
    kind = access & 3
    if not cpu.long_mode:
        linear &= 0xFFFF_FFFF
    elif (linear << 16) >> 16 != linear:
        cpu.fault_vector = GP
        cpu.fault_error = 0
        cpu.fault = FAULT
        return FAULT
    bank = _bank_of(cpu, access)
    entry = entry_of(cpu.host_tlb + bank * BANK_BYTES, linear)
    tag = _tag(entry, kind)
    wanted = linear & PAGE_MASK | cpu.tlb_context
    if tag != wanted:
        known = tag != -1 and tag & PAGE_MASK == linear & PAGE_MASK
        if not known or entry.global_context != cpu.tlb_global_context:
            return _walk(cpu, entry, linear, kind, bank)
        _adopt(entry, wanted)
    cpu.walk_gpa = entry.guest_physical | linear & 0xFFF
    cpu.walk_hpa = entry.physical | linear & 0xFFF
    return 0

"""Guest paging: from linear to guest-physical addresses through the guest's tables.

Manual, "Paging": "32-Bit Paging", "PAE Paging", "4-Level Paging", "Access Rights", "Page-Fault Exceptions",
"Accessed and Dirty Flags". The tables are read through EPT while it is on; entries outside RAM read as ones.
"""

from vmx.mmu.ept import (
    ADDRESS,
    DIRTY_SET,
    EPT_EXIT,
    EPT_VIOLATION,
    LINEAR_VALID,
    MAY_FETCH,
    MAY_READ,
    MAY_WRITE,
    PHYSICAL_ADDRESS_BITS,
    ept_exit,
    ept_translate,
)
from vmx.mmu.physical import host_of, mark_written
from vmx.mmu.tlb import SUPERVISOR, USER
from vmx.state.bits import MIN64, shr
from vmx.state.jit import compiled
from vmx.state.memory import load8, load32, load64, store8
from vmx.state.processor import (
    CR0_WP,
    CR4_PAE,
    CR4_PGE,
    CR4_PSE,
    CR4_SMAP,
    CR4_SMEP,
    EFER_NXE,
    FAULT,
    GP,
    PF,
    PROCESSOR,
)
from vmx.state.unit import unit

READ, WRITE, FETCH = 0, 1, 2  # kinds of access
PAGING_32, PAGING_PAE, PAGING_4_LEVEL = 1, 2, 3  # cpu.paging_mode; 0: paging is off

# bits of a paging-structure entry
PRESENT, WRITABLE, USER_PAGE, ACCESSED, DIRTY, LARGE, GLOBAL = 1, 2, 4, 1 << 5, 1 << 6, 1 << 7, 1 << 8
EXECUTE_DISABLE = MIN64

# bits of a page fault's error code
ERROR_PRESENT, ERROR_WRITE, ERROR_USER, ERROR_RESERVED, ERROR_FETCH = 1, 2, 4, 8, 16

# bits of a translation besides the rights and DIRTY_SET
GLOBAL_PAGE = 1 << 4
SIZE_SHIFT, SIZE_MASK = 5, 31  # log2 of the page's size less 12

_RESERVED_PAE = (1 << 63) - (1 << PHYSICAL_ADDRESS_BITS)
_RESERVED_4_LEVEL = (1 << 52) - (1 << PHYSICAL_ADDRESS_BITS)
_RESERVED_PDPTE = ~(ADDRESS | 0xFFF) | 0x1E6


@compiled
def page_fault(cpu, linear, kind, bank, error):
    """Raise #PF with the bits of the error code that the access itself decides; returns -1."""
    if kind == WRITE:
        error |= ERROR_WRITE
    if bank == USER:
        error |= ERROR_USER
    if kind == FETCH and (cpu.cr4 & CR4_SMEP or (cpu.cr4 & CR4_PAE and cpu.efer & EFER_NXE)):
        error |= ERROR_FETCH
    cpu.fault_vector = PF
    cpu.fault_error = error
    cpu.fault_address = linear
    cpu.fault = FAULT
    return -1


@compiled
def rights_of(cpu, bank, entries, execute_disable):
    """What a bank's privilege may do with a page; `entries` is the AND of its paging-structure entries."""
    rights = MAY_READ | MAY_WRITE | MAY_FETCH
    if execute_disable:
        rights &= ~MAY_FETCH
    if bank == USER:
        if entries & USER_PAGE == 0:
            return 0
        return rights if entries & WRITABLE else rights & ~MAY_WRITE
    if entries & WRITABLE == 0 and cpu.cr0 & CR0_WP:
        rights &= ~MAY_WRITE
    if entries & USER_PAGE:
        if cpu.cr4 & CR4_SMEP:
            rights &= ~MAY_FETCH
        if bank == SUPERVISOR and cpu.cr4 & CR4_SMAP:
            rights &= ~(MAY_READ | MAY_WRITE)
    return rights


@compiled
def _set_flags(cpu, gpa, access, host, physical, entry, flags):
    """Set accessed and dirty flags in a guest's entry; 0 when EPT does not let its page be written."""
    if entry & flags == flags:
        return 1
    if access & MAY_WRITE == 0:
        ept_exit(cpu, EPT_VIOLATION, MAY_WRITE | LINEAR_VALID | (access & 7) << 3, gpa)
        return 0
    if host != 0:
        if mark_written(cpu, physical):
            cpu.code_changed = 1
        store8(host, load8(host) | flags)
    return 1


@compiled
def walk_guest(cpu, linear, kind, bank):
    """Translate a linear address by the guest's tables, check the access, set accessed and dirty flags.

    Returns page address | rights | DIRTY_SET | GLOBAL_PAGE | size, or -1 with a fault or a VM exit staged.
    """
    mode = cpu.paging_mode
    reserved = 0
    if mode == PAGING_32:
        table, level, shift, bits, width = cpu.cr3 & 0xFFFF_F000, 2, 22, 10, 2
    elif mode == PAGING_PAE:
        pdpte = cpu.pdpte[shr(linear, 30) & 3]
        if pdpte & PRESENT == 0:
            return page_fault(cpu, linear, kind, bank, 0)
        table, level, shift, bits, width = pdpte & ADDRESS, 2, 21, 9, 3
        reserved = _RESERVED_PAE
    else:
        table, level, shift, bits, width = cpu.cr3 & ADDRESS, 4, 39, 9, 3
        reserved = _RESERVED_4_LEVEL
    if mode != PAGING_32 and cpu.efer & EFER_NXE == 0:
        reserved |= EXECUTE_DISABLE
    entries = -1
    execute_disable = 0
    while True:
        gpa = table | (shr(linear, shift) & ((1 << bits) - 1)) << width
        physical, access = gpa, MAY_WRITE
        if cpu.eptp != 0:
            access = ept_translate(cpu, gpa, MAY_READ | LINEAR_VALID)
            if access < 0:
                return -1
            physical = access & ADDRESS | gpa & 0xFFF
        host = host_of(cpu, physical)
        if width == 2:
            entry = 0xFFFF_FFFF if host == 0 else load32(host)
        else:
            entry = -1 if host == 0 else load64(host)
        cpu.walk_references += 1
        if entry & PRESENT == 0:
            return page_fault(cpu, linear, kind, bank, 0)
        must_be_zero = reserved
        leaf = level == 1
        if not leaf and entry & LARGE:
            if level == 4:
                must_be_zero |= LARGE
            elif mode == PAGING_32:
                leaf = cpu.cr4 & CR4_PSE != 0
                must_be_zero = 1 << 21 if leaf else 0
            else:
                leaf = True
                must_be_zero |= (1 << shift) - (1 << 13)
        if entry & must_be_zero:
            return page_fault(cpu, linear, kind, bank, ERROR_PRESENT | ERROR_RESERVED)
        entries &= entry
        if mode != PAGING_32:
            execute_disable |= entry & EXECUTE_DISABLE
        if leaf:
            break
        if not _set_flags(cpu, gpa, access, host, physical, entry, ACCESSED):
            return -1
        table = entry & ADDRESS
        level -= 1
        shift -= bits
    rights = rights_of(cpu, bank, entries, execute_disable)
    if rights & 1 << kind == 0:
        return page_fault(cpu, linear, kind, bank, ERROR_PRESENT)
    if not _set_flags(
        cpu, gpa, access, host, physical, entry, ACCESSED | DIRTY if kind == WRITE else ACCESSED
    ):
        return -1
    inside = (1 << shift) - 1
    page = entry & ADDRESS & ~inside | linear & inside & ~0xFFF
    if mode == PAGING_32 and level == 2:
        page |= (entry & 0x1F_E000) << 19  # PSE-36: bits 39:32 of the address
    if kind == WRITE or entry & DIRTY:
        rights |= DIRTY_SET
    if entry & GLOBAL and cpu.cr4 & CR4_PGE:
        rights |= GLOBAL_PAGE
    return page | rights | (shift - 12) << SIZE_SHIFT


@unit(PROCESSOR, "i64")
def load_pdptes(cpu, cr3):
    """Load the PDPTE registers for PAE paging. Returns 0, or a status: #GP(0) for reserved bits, EPT_EXIT."""
    table = cr3 & 0xFFFF_FFE0
    if cpu.eptp != 0:
        translation = ept_translate(cpu, table, MAY_READ)
        if translation < 0:
            return EPT_EXIT
        table = translation & ADDRESS | table & 0xFFF
    host = host_of(cpu, table)
    cpu.walk_references += 4
    for i in range(4):
        entry = -1 if host == 0 else load64(host + 8 * i)
        if entry & PRESENT and entry & _RESERVED_PDPTE:
            cpu.fault_vector = GP
            cpu.fault_error = 0
            cpu.fault = FAULT
            return FAULT
    for i in range(4):
        cpu.pdpte[i] = load64(host + 8 * i)
    return 0

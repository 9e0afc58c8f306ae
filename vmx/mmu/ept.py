"""EPT: the second translation, from guest-physical to physical addresses.

Manual, "The Extended Page Table Mechanism (EPT)": translation, misconfigurations, violations, accessed and
dirty flags; "Exit Qualification for EPT Violations". Walk length 4; pages of 4 KiB, 2 MiB and 1 GiB;
execute-only pages; no mode-based execute control.

A translation, here and in vmx.mmu.paging, is one int64: page address | rights | DIRTY_SET; -1 for none.
"""

from vmx.mmu.physical import host_of, mark_written
from vmx.state.bits import shr
from vmx.state.jit import compiled
from vmx.state.memory import load8, load64, store8
from vmx.state.processor import PROCESSOR
from vmx.state.unit import unit

EPT_EXIT = 7  # a Status: the translation needs a VM exit, with cpu.ept_reason and cpu.ept_qualification
EPT_VIOLATION, EPT_MISCONFIGURATION = 48, 49

PHYSICAL_ADDRESS_BITS = 40  # MAXPHYADDR, as CPUID reports it
NOTHING_THERE = (1 << PHYSICAL_ADDRESS_BITS) - 4096  # a physical page without RAM or device
ADDRESS = (1 << PHYSICAL_ADDRESS_BITS) - 4096
RESERVED_ADDRESS = (1 << 52) - (1 << PHYSICAL_ADDRESS_BITS)

# rights of a translation: R, W and X of an EPT entry, and 2:0 and 5:3 of the exit qualification
MAY_READ, MAY_WRITE, MAY_FETCH = 1, 2, 4
DIRTY_SET = 8  # a store need not set a dirty flag any more

LINEAR_VALID, FINAL_ACCESS = 1 << 7, 1 << 8  # bits of the exit qualification

ACCESSED, DIRTY = 1 << 8, 1 << 9  # of an EPT entry
_EPTP_ACCESSED_DIRTY = 1 << 6
_LARGE = 1 << 7


@compiled
def ept_exit(cpu, reason, qualification, gpa):
    """Stage a VM exit, return -1; while the hypervisor's emulator lets an instruction through, devices pass.

    Every device page does, because a string instruction can touch several. The page that the emulator names
    may be RAM that is not the guest's: what passes there is a page without anything.
    """
    if qualification & FINAL_ACCESS and cpu.device_gpa != -1:
        if host_of(cpu, gpa) == 0:
            return gpa & ~0xFFF
        if gpa & ~0xFFF == cpu.device_gpa:
            return NOTHING_THERE
    cpu.ept_reason = reason
    cpu.ept_qualification = qualification if reason == EPT_VIOLATION else 0
    cpu.exit_physical = gpa
    cpu.exit_linear = 0
    cpu.fault = EPT_EXIT
    return -1


@compiled
def _misconfigured(entry, shift, leaf):
    """The manual's list: write without read, reserved bits, memory types 2, 3 and 7 (of a present entry)."""
    if entry & (MAY_READ | MAY_WRITE) == MAY_WRITE or entry & RESERVED_ADDRESS:
        return 1
    if not leaf:
        return 1 if entry & 0xF8 else 0
    memory_type = shr(entry, 3) & 7
    if memory_type == 2 or memory_type == 3 or memory_type == 7:
        return 1
    return 1 if entry & ((1 << shift) - 4096) else 0


@compiled
def _set_flags(cpu, host, physical, entry, flags):
    if entry & flags != flags:
        if mark_written(cpu, physical):
            cpu.code_changed = 1
        store8(host + 1, load8(host + 1) | flags >> 8)


@unit(PROCESSOR, "i64", "i64")
def ept_translate(cpu, gpa, access):
    """Translate a guest-physical address under cpu.eptp.

    `access` is the exit qualification so far: MAY_READ, MAY_WRITE or MAY_FETCH, LINEAR_VALID, FINAL_ACCESS.
    Returns page address | rights | DIRTY_SET, or -1 with a VM exit staged.
    """
    accessed_dirty = cpu.eptp & _EPTP_ACCESSED_DIRTY
    if accessed_dirty and access & (LINEAR_VALID | FINAL_ACCESS) == LINEAR_VALID:
        access |= (
            MAY_WRITE  # guest paging-structure accesses count as writes; loads of PDPTE registers do not
        )
    table = cpu.eptp & ADDRESS
    rights = MAY_READ | MAY_WRITE | MAY_FETCH
    shift = 39
    while True:
        physical = table | (shr(gpa, shift) & 511) << 3
        host = host_of(cpu, physical)
        entry = -1 if host == 0 else load64(host)
        cpu.walk_references += 1
        rights &= entry
        if entry & 7 == 0:
            return ept_exit(cpu, EPT_VIOLATION, access, gpa)
        leaf = shift == 12 or (entry & _LARGE != 0 and shift < 39)
        if _misconfigured(entry, shift, leaf):
            return ept_exit(cpu, EPT_MISCONFIGURATION, access, gpa)
        if leaf:
            break
        if accessed_dirty:
            _set_flags(cpu, host, physical, entry, ACCESSED)
        table = entry & ADDRESS
        shift -= 9
    if access & 7 & ~rights:
        return ept_exit(cpu, EPT_VIOLATION, access | rights << 3, gpa)
    dirty_set = DIRTY_SET
    if accessed_dirty:
        _set_flags(cpu, host, physical, entry, ACCESSED | DIRTY if access & MAY_WRITE else ACCESSED)
        if access & MAY_WRITE == 0 and entry & DIRTY == 0:
            dirty_set = 0
    inside = (1 << shift) - 1
    return entry & ADDRESS & ~inside | gpa & inside & ~0xFFF | rights | dirty_set

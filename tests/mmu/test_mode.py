"""What update_mode derives, and the PDPTE registers."""

import pytest

from tests.mmu.world import EPT_TABLES
from vmx.mmu.mode import load_pdptes, update_mode
from vmx.mmu.tlb import BANK_BYTES, NONE, SUPERVISOR, SUPERVISOR_AC, USER
from vmx.mmu.translate import EPT_EXIT, READ
from vmx.state.processor import (
    ACCESS_DB,
    ACCESS_L,
    CR0_AM,
    CR0_PE,
    CR0_PG,
    CR4_PAE,
    CR4_SMAP,
    CS,
    EFER_LMA,
    FAULT,
    FLAG_AC,
    FLAG_VM,
    GP,
    SS,
)

LONG = (CR0_PE | CR0_PG, CR4_PAE, EFER_LMA)


@pytest.mark.parametrize(
    ("registers", "code", "expected"),
    [
        ((0, 0, 0), 0, (0, 0, 0)),  # real mode
        ((0, 0, 0), ACCESS_DB, (1, 0, 0)),  # a 32-bit CS kept from protected mode
        ((CR0_PE, 0, 0), ACCESS_DB, (1, 0, 0)),
        ((CR0_PE | CR0_PG, 0, 0), ACCESS_DB, (1, 1, 0)),
        (
            (CR0_PE | CR0_PG, CR4_PAE, 0),
            ACCESS_DB | ACCESS_L,
            (1, 2, 0),
        ),  # L means nothing outside IA-32e mode
        (LONG, ACCESS_L, (2, 3, 1)),
        (LONG, ACCESS_DB, (1, 3, 1)),  # compatibility mode
        (LONG, 0, (0, 3, 1)),
    ],
)
def test_sizes_and_paging_mode(world, registers, code, expected):
    cpu = world.cpu
    cpu.cr0, cpu.cr4, cpu.efer = registers
    cpu.segments[CS].access = code
    update_mode(cpu)
    assert (cpu.code_mode, cpu.paging_mode, cpu.long_mode) == expected


@pytest.mark.parametrize(
    ("cr0", "cr4", "rflags", "dpl", "cpl", "bank"),
    [
        (0, 0, 0, 3, 0, SUPERVISOR_AC),  # real mode: CPL 0 whatever SS says
        (CR0_PE, 0, 0, 0, 0, SUPERVISOR_AC),
        (CR0_PE, CR4_SMAP, 0, 0, 0, SUPERVISOR),
        (CR0_PE, CR4_SMAP, FLAG_AC, 2, 2, SUPERVISOR_AC),
        (CR0_PE, CR4_SMAP, FLAG_AC, 3, 3, USER),
        (CR0_PE | CR0_AM, CR4_SMAP, 0, 3, 3, USER),
        (CR0_PE | CR0_AM, CR4_SMAP, FLAG_AC, 3, 3, NONE),  # alignment is checked
        (CR0_PE | CR0_AM, 0, FLAG_AC, 0, 0, SUPERVISOR_AC),
        (CR0_PE, 0, FLAG_VM, 0, 3, USER),  # virtual-8086 mode
    ],
)
def test_privilege_and_bank(world, cr0, cr4, rflags, dpl, cpl, bank):
    cpu = world.cpu
    cpu.cr0, cpu.cr4, cpu.efer, cpu.rflags = cr0, cr4, 0, rflags
    cpu.segments[SS].access = dpl << 5
    update_mode(cpu)
    assert cpu.cpl == cpl
    assert cpu.tlb_bank - cpu.host_tlb == bank * BANK_BYTES


def test_alignment_checking_uses_no_tag(world):
    """In the NONE bank nothing ever hits, though the translation itself is the user's."""
    for i, address in enumerate((0x10000, 0x11000, 0x12000, 0x13000)):
        world.put(address, (0x11000 + 0x1000 * i if i < 3 else 0x20000) | 0x67)
    world.set_mode("4-level", cr3=0x10000, cr0=CR0_AM, cpl=3, ac=True)
    assert world.translate(0x10, READ) == ("ok", 0x20010, 0x20010)
    assert not world.hit(0x10)
    assert world.translate(0x1010, READ) == ("page fault", 4)


PDPTES = 0x1_3FE0  # the last 32-byte line of a page


@pytest.mark.parametrize("ept", [False, True])
def test_pdptes_are_loaded(world, ept):
    values = [0x20001, 0, 0x7F_FFFF_F019, 0x1E6]  # absent ones may hold anything
    if ept:
        world.map_ept(frames=[page ^ 64 for page in range(128)])
    for i, value in enumerate(values):
        world.put((PDPTES ^ (64 << 12 if ept else 0)) + 8 * i, value)
    assert load_pdptes(world.cpu, PDPTES) == 0
    assert [int(world.cpu.pdpte[i]) for i in range(4)] == values


@pytest.mark.parametrize("position", [*range(1, 3), *range(5, 9), *range(40, 64)])
def test_reserved_bits_of_a_pdpte(world, position):
    world.cpu.pdpte[0] = 0x1234
    world.put(PDPTES, 0x20001)
    world.put(PDPTES + 24, 0x20001 | 1 << position)
    assert load_pdptes(world.cpu, PDPTES) == FAULT
    assert (world.cpu.fault, world.cpu.fault_vector, world.cpu.fault_error) == (FAULT, GP, 0)
    assert world.cpu.pdpte[0] == 0x1234  # nothing is loaded
    world.cpu.fault = 0


@pytest.mark.parametrize("accessed_dirty", [False, True])
def test_pdptes_behind_ept(world, accessed_dirty):
    """Loading PDPTE registers is a plain read: no linear address, and it sets no dirty flag."""
    world.map_ept(accessed_dirty=accessed_dirty)
    entry = EPT_TABLES + 3 * 4096 + 8 * (PDPTES >> 12)
    world.put(entry, PDPTES & ~0xFFF | 0x35)  # not writable
    assert load_pdptes(world.cpu, PDPTES) == 0
    assert world.read(entry) >> 8 & 3 == accessed_dirty
    world.put(entry, 0)
    assert load_pdptes(world.cpu, PDPTES) == EPT_EXIT == world.cpu.fault
    assert (world.cpu.ept_reason, world.cpu.ept_qualification) == (48, 1)
    assert (world.cpu.exit_physical, world.cpu.exit_linear) == (PDPTES, 0)
    world.cpu.fault = 0

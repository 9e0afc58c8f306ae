"""Compiled walks against the plain-Python twin: generated page tables of every mode, with and without EPT."""

from dataclasses import dataclass

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.mmu.world import ACCESSES, EPT_TABLES, LOW, MODES, levels_of
from vmx.mmu.tlb import flush_all

TABLES = [0x10000, 0x11000, 0x12000, 0x13000]  # guest-physical, one per level
TARGET = 0x20000
CR4_BITS = [1 << 4, 1 << 7, 1 << 20, 1 << 21]  # PSE, PGE, SMEP, SMAP
PAGES = 128


@dataclass
class Case:
    linear: int
    cr0: int
    cr4: int
    nxe: bool
    cpl: int
    ac: bool
    entries: list  # per level: low 12 bits, noise to be XORed in
    ept_leaf: int
    ept_accessed_dirty: bool
    ept_upper: list  # noise on PML4E, PDPTE, PDE
    ept_pages: list  # for each table, then for the target: noise on the EPT PTE
    page_flags: int
    accesses: list


QUIET = st.sampled_from(
    [0x67, 0x07, 0x47, 0x27, 0x167]
)  # entries that only their accessed and dirty flags tell
# mostly harmless, sometimes one bit anywhere
noise = st.one_of(
    st.just(0), st.just(0), st.integers(0, 63).map(lambda i: 1 << i), st.integers(0, (1 << 64) - 1)
)
flags = st.one_of(
    st.sampled_from([0x67, 0x07, 0x27, 0x65, 0x63, 0xE7, 0x1E7, 0x87]),
    st.sampled_from([0x67, 0xE7]).flatmap(lambda f: st.integers(0, 11).map(lambda i: f ^ 1 << i)),
    st.integers(0, 0xFFF),
)
high_bit = st.sampled_from([0, 0, 0, 1 << 63, 1 << 39, 1 << 40, 1 << 51, 1 << 52, 1 << 62, 1 << 13, 1 << 21])
ept_noise = st.one_of(
    st.just(0),
    st.just(0),
    st.integers(0, 7),
    st.integers(0, 0xFFF),
    st.sampled_from([0x100, 0x300, 0x200]),
    noise,
)


@st.composite
def cases(draw, mode, ept):
    _, levels = levels_of(mode)
    top = 32 if mode != "4-level" else 48
    linear = draw(st.integers(0, (1 << top) - 1))
    if draw(st.booleans()):  # pages inside RAM also when large ones map them
        linear = linear & ~0x3FFFF000 | draw(st.integers(0, PAGES - 1)) << 12
    if mode == "none":
        linear %= LOW * 2
    if top == 48 and linear >> 47:
        linear |= 0xFFFF << 48
    if top == 48 and draw(st.integers(0, 30)) == 0:
        linear ^= 1 << draw(st.integers(47, 63))
    noisy = draw(st.sets(st.integers(0, 3), max_size=2))
    ept_noisy = draw(st.sets(st.integers(0, 4), max_size=2))
    return Case(
        linear=linear,
        cr0=draw(st.sampled_from([0, 1 << 16])),
        cr4=sum(draw(st.lists(st.sampled_from(CR4_BITS), unique=True))),
        nxe=draw(st.booleans()),
        cpl=draw(st.sampled_from([0, 3])),
        ac=draw(st.booleans()),
        entries=[
            (draw(flags), draw(high_bit), draw(noise)) if i in noisy else (draw(QUIET), 0, 0)
            for i in range(len(levels))
        ],
        ept_leaf=draw(st.sampled_from([4096, 4096, 1 << 21, 1 << 30])) if ept else 0,
        ept_accessed_dirty=draw(st.booleans()) if ept else False,
        ept_upper=[draw(ept_noise) if draw(st.integers(0, 7)) == 0 else 0 for _ in range(3)] if ept else [],
        ept_pages=[draw(ept_noise) if i in ept_noisy else 0 for i in range(len(levels) + 1)] if ept else [],
        page_flags=draw(st.integers(0, 7)),
        accesses=draw(st.lists(st.sampled_from(ACCESSES), min_size=1, max_size=5)),
    )


def build(world, mode, case):
    """Write the case's tables; guest table n is at TABLES[n], its EPT frame 64 pages further."""
    world.reset()
    frames = [(page ^ 64) for page in range(PAGES)]
    moved = 64 << 12 if case.ept_leaf == 4096 else 0
    size, levels = levels_of(mode)
    for i, ((high, low), (low_bits, high_bits, noise_bits)) in enumerate(
        zip(levels, case.entries, strict=True)
    ):
        last = i == len(levels) - 1
        address = TARGET if last else TABLES[i + 1]
        if low_bits & 0x80 and low in (21, 22, 30):
            address = 0
        index = case.linear >> low & (1 << high - low + 1) - 1
        world.put((TABLES[i] ^ moved) + size * index, (address | low_bits | high_bits) ^ noise_bits, size)
    if case.ept_leaf:
        pml4, pdpt, pd, pt = world.map_ept(
            leaf=case.ept_leaf, accessed_dirty=case.ept_accessed_dirty, frames=frames
        )
        for table, bits in zip((pml4, pdpt, pd), case.ept_upper, strict=True):
            world.put(table, world.read(table) ^ bits)
        for gpa, bits in zip([*TABLES[: len(levels)], TARGET], case.ept_pages, strict=True):
            world.put(pt + 8 * (gpa >> 12), world.read(pt + 8 * (gpa >> 12)) ^ bits)
    world.flags[:] = case.page_flags
    for i in range(4):
        world.cpu.pdpte[i] = 0
    cr3 = TABLES[0]
    if mode == "PAE":
        present = case.entries[0][1] != 1 << 52  # now and then an absent PDPTE
        world.cpu.pdpte[case.linear >> 30 & 3] = TABLES[0] | present
    cr4 = case.cr4 & ~(1 << 4) if mode == "32-bit" else case.cr4
    world.set_mode(mode, cr3=cr3, cr0=case.cr0, cr4=cr4, nxe=case.nxe, cpl=case.cpl, ac=case.ac)


def run(world, mode, case):
    build(world, mode, case)
    flush_all(world.cpu)
    results = []
    for access in case.accesses:  # the TLB fills; flags in the tables change; every answer stays the twin's
        results.append(world.check(case.linear, access))
        world.check_tags(case.linear)
    for access in case.accesses:
        world.check(case.linear, access, cold=True)
    return results


@pytest.mark.parametrize("ept", [False, True], ids=["", "EPT"])
@pytest.mark.parametrize("mode", MODES)
def test_generated_tables(world, mode, ept):
    kinds = {}

    @settings(
        max_examples=250,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(cases(mode, ept))
    def against_twin(case):
        for result in run(world, mode, case):
            kinds[result.kind] = kinds.get(result.kind, 0) + 1

    against_twin()
    wanted = {"ok"} | ({"page fault"} if mode != "none" else set()) | ({"EPT violation"} if ept else set())
    assert all(kinds.get(kind, 0) >= 20 for kind in wanted), kinds  # the generator reaches what it is for


def test_ept_tables_lie_apart():
    assert EPT_TABLES >= LOW

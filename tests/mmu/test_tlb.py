"""What the TLB may remember: a Hypothesis state machine over all invalidations, and the tables' own changes.

The model keeps, for each context and page, the translations that accesses have seen since the last
invalidation that the manual requires. An access that walks must agree with the tables as they are; one that
does not walk must agree with a translation in the model.
"""

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tests.mmu.world import EPT_TABLES, World
from vmx.mmu import twin
from vmx.mmu.mode import paging_changed, update_mode
from vmx.mmu.tlb import (
    LAST_CONTEXT,
    PROBES,
    flush_all,
    flush_context,
    invalidate_page,
    invept,
    invpcid,
    invvpid,
    select_context,
)
from vmx.mmu.translate import FETCH, READ, WRITE
from vmx.state.processor import CR0_WP, CR4_PAE, CR4_PCIDE, CR4_PGE

CR3 = [0x10000, 0x18000]  # two address spaces: PML4, PDPT, PD and three page tables each
# pages of 4 KiB, two pairs of which share a TLB entry; the last three lie in the region of the large page
SMALL = [0x1000, 0x2000, 0x40_1000, 0x40_2000]
LARGE = [0x20_1000, 0x20_2000, 0x20_5000]
PAGES = SMALL + LARGE
FRAMES = range(32, 40)  # guest-physical frames that pages map
EPTS = [EPT_TABLES, EPT_TABLES + 0x4000]
MACHINES = [(0, None), (1, 0), (1, 1), (2, 0)]  # (VPID, EPT)
GLOBAL = "global"

pages = st.sampled_from(PAGES)
frames = st.sampled_from(FRAMES)
spaces = st.integers(0, 1)
kinds = st.sampled_from([READ, WRITE, FETCH])
_world = None


class TlbMachine(RuleBasedStateMachine):
    @initialize(pcide=st.booleans())
    def start(self, pcide):
        global _world
        _world = _world or World()
        self.world, self.cpu = _world, _world.cpu
        self.world.reset()
        put = self.world.put
        for cr3 in CR3:
            put(cr3, cr3 + 0x1000 | 0x67)
            put(cr3 + 0x1000, cr3 + 0x2000 | 0x67)
            for i in range(3):
                put(cr3 + 0x2000 + 8 * i, cr3 + 0x3000 + 0x1000 * i | 0x67)
            for page in PAGES:
                put(self.pte(cr3, page), 33 << 12 | 0x67)
        for root in EPTS:
            for i in range(3):
                put(root + 0x1000 * i, root + 0x1000 * (i + 1) | 7)
            for frame in range(128):
                put(root + 0x3000 + 8 * frame, frame << 12 | 0x37)
        self.eptps = [root | 3 << 3 | 6 for root in EPTS]
        self.cpu.pdpte[0] = 0
        self.world.set_mode("4-level", cr3=CR3[0] | pcide, cr4=CR4_PCIDE if pcide else 0, nxe=True)
        paging_changed(self.cpu)
        self.cpu.tlb_next_context = LAST_CONTEXT - 60  # numbers run out now and then
        self.world.tlb[:] = 0xFF
        self.world.tlb[-5000:] = 0
        update_mode(self.cpu)
        self.seen = {}  # (vpid, pcid or GLOBAL, eptp, page) -> {(hpa, kinds, large)}

    @staticmethod
    def pte(cr3, page):
        return cr3 + 0x3000 + 0x1000 * (page >> 21) + 8 * (page >> 12 & 511)

    @property
    def pcid(self):
        return int(self.cpu.cr3) & 0xFFF if self.cpu.cr4 & CR4_PCIDE else 0

    def forget(self, vpid=None, pcid=None, eptp=None, page=None):
        """Remove what matches; `pcid` may be a predicate."""
        for key, translations in self.seen.items():
            if (
                (vpid is None or key[0] == vpid)
                and (pcid is None or pcid(key[1]))
                and (eptp is None or eptp(key[2]))
            ):
                if page is None or key[3] == page:
                    translations.clear()
                elif key[3] >> 21 == page >> 21:  # another address in the same large page
                    translations -= {each for each in translations if each[2]}

    # --- the tables change; nothing is invalidated ---

    @rule(
        space=spaces,
        page=pages,
        frame=frames,
        flags=st.sampled_from([0x67, 0x65, 0x167, 0x167, 0x27, 0, 0x107]),
    )
    def map_page(self, space, page, frame, flags):
        self.world.put(self.pte(CR3[space], page), frame << 12 | flags)

    @rule(space=spaces, large=st.booleans(), flags=st.sampled_from([0x67, 0x167, 0x65]))
    def map_large(self, space, large, flags):
        entry = 0 | 0x80 | flags if large else CR3[space] + 0x4000 | 0x67
        self.world.put(CR3[space] + 0x2008, entry)

    @rule(ept=spaces, frame=frames, to=st.integers(32, 47), rights=st.sampled_from([7, 7, 5, 0]))
    def map_frame(self, ept, frame, to, rights):
        self.world.put(EPTS[ept] + 0x3000 + 8 * frame, to << 12 | 0x30 | rights)

    # --- accesses ---

    @rule(page=pages, kind=kinds)
    def access(self, page, kind):
        cpu = self.cpu
        walks = int(cpu.guest_walks)
        outcome = self.world.translate(page, kind)
        mine = int(cpu.vpid), self.pcid, int(cpu.eptp), page
        everyones = mine[0], GLOBAL, mine[2], page
        if cpu.guest_walks == walks:
            possible = self.seen.get(mine, set()) | self.seen.get(everyones, set())
            assert any(outcome[2] == hpa and kind in ready for hpa, ready, _ in possible), (outcome, possible)
            return
        state = self.world.state()
        now = {each: twin.walk(state, page, each) for each in (READ, WRITE, FETCH)}
        assert outcome == World.expected(now[kind])
        if outcome[0] == "ok":
            ready = frozenset(each for each, r in now.items() if r.kind == "ok" and not r.writes)
            seen = outcome[2], ready, now[kind].page_size > 4096
            self.seen.setdefault(mine, set()).add(seen)
            if now[kind].global_page and cpu.cr4 & CR4_PGE:
                self.seen.setdefault(everyones, set()).add(seen)

    @invariant()
    def every_page_is_read(self):
        """After each step: so what must be gone is looked for, and what may stay is in use."""
        if hasattr(self, "seen"):
            for page in PAGES:
                self.access(page, READ)

    # --- invalidations ---

    @rule(page=pages)
    def invlpg(self, page):
        invalidate_page(self.cpu, page)
        self.forget(self.cpu.vpid, lambda pcid: pcid in (GLOBAL, self.pcid), page=page)

    @rule(space=spaces, keep=st.booleans())
    def mov_to_cr3(self, space, keep):
        pcide = bool(self.cpu.cr4 & CR4_PCIDE)
        self.cpu.cr3 = CR3[space] | (space + 1 if pcide else 0)
        if pcide and keep:  # bit 63 of the source
            select_context(self.cpu)
        else:
            flush_context(self.cpu, 1)
            self.forget(self.cpu.vpid, lambda pcid: pcid == self.pcid)

    @rule(bit=st.sampled_from([CR4_PGE, CR4_PCIDE]))
    def mov_to_cr4(self, bit):
        self.cpu.cr4 = self.cpu.cr4 ^ bit
        if bit == CR4_PCIDE:
            self.cpu.cr3 = int(self.cpu.cr3) & ~0xFFF
        paging_changed(self.cpu)
        assert self.cpu.cr4 & CR4_PAE
        self.forget(self.cpu.vpid)

    @rule(type=st.integers(0, 3), pcid=st.integers(0, 2), page=pages)
    def invpcid(self, type, pcid, page):
        invpcid(self.cpu, type, pcid, page)
        if type == 0:
            self.forget(self.cpu.vpid, lambda each: each == pcid, page=page)
        else:
            covered = {1: lambda each: each == pcid, 2: None, 3: lambda each: each != GLOBAL}[type]
            self.forget(self.cpu.vpid, covered)

    @rule(type=st.integers(0, 3), vpid=st.integers(1, 2), page=pages)
    def invvpid(self, type, vpid, page):
        invvpid(self.cpu, type, vpid, page)
        if type == 0:
            self.forget(vpid, page=page)
        elif type == 2:
            self.forget(1)
            self.forget(2)
        else:
            self.forget(vpid, None if type == 1 else lambda each: each != GLOBAL)

    @rule(type=st.integers(1, 2), ept=spaces)
    def invept(self, type, ept):
        invept(self.cpu, type, self.eptps[ept])
        self.forget(eptp=lambda each: each == self.eptps[ept] if type == 1 else each != 0)

    @rule(machine=st.sampled_from(MACHINES))
    def vm_entry_or_exit(self, machine):
        vpid, ept = machine
        self.cpu.vpid = vpid
        self.cpu.eptp = 0 if ept is None else self.eptps[ept]
        select_context(self.cpu)

    @invariant()
    def contexts_are_numbers_of_twelve_bits(self):
        if hasattr(self, "seen"):
            assert (
                0 < self.cpu.tlb_context <= LAST_CONTEXT and 0 < self.cpu.tlb_global_context <= LAST_CONTEXT
            )
            assert self.cpu.tlb_context != self.cpu.tlb_global_context


TestTlb = TlbMachine.TestCase
TestTlb.settings = settings(
    max_examples=150,
    stateful_step_count=40,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)


# after each operation, made by VPID 1, PCID 2: what is left of (VPID, PCID) translations, local and global
LEFT = {
    "MOV to CR3": (lambda cpu: flush_context(cpu, 1), {(1, 1), (2, 1), (2, 2)}, {1, 2}),
    "CR4.PGE changed": (flush_all, {(2, 1), (2, 2)}, {2}),
    "INVPCID 1": (lambda cpu: invpcid(cpu, 1, 1, 0), {(1, 2), (2, 1), (2, 2)}, {1, 2}),
    "INVPCID 2": (lambda cpu: invpcid(cpu, 2, 0, 0), {(2, 1), (2, 2)}, {2}),
    "INVPCID 3": (lambda cpu: invpcid(cpu, 3, 0, 0), {(2, 1), (2, 2)}, {1, 2}),
    "INVVPID 1": (lambda cpu: invvpid(cpu, 1, 2, 0), {(1, 1), (1, 2)}, {1}),
    "INVVPID 2": (lambda cpu: invvpid(cpu, 2, 0, 0), set(), set()),
    "INVVPID 3": (lambda cpu: invvpid(cpu, 3, 2, 0), {(1, 1), (1, 2)}, {1, 2}),
    "INVEPT 1": (lambda cpu: invept(cpu, 1, EPT_TABLES + 0x4000), {(1, 1), (1, 2), (2, 1), (2, 2)}, {1, 2}),
    "INVEPT 1, this EPTP": (lambda cpu: invept(cpu, 1, EPT_TABLES), set(), set()),
    "INVEPT 2": (lambda cpu: invept(cpu, 2, 0), set(), set()),
}


@pytest.mark.parametrize("operation", LEFT)
def test_each_operation_invalidates_what_it_should_and_no_more(world, operation):
    """A page of its own for each PCID of two VPIDs, and a global one for each VPID."""
    cpu = world.cpu
    world.map_ept()
    for i in range(3):
        world.put(0x10000 + 0x1000 * i, 0x11000 + 0x1000 * i | 0x67)
    for page in range(8):
        world.put(0x13000 + 8 * page, 0x20067 | (page > 4) << 8)
    world.set_mode("4-level", cr3=0x10000, cr4=CR4_PCIDE | CR4_PGE)

    def use(vpid, pcid):
        cpu.vpid, cpu.cr3 = vpid, 0x10000 | pcid
        select_context(cpu)

    local = {(vpid, pcid): 0x1000 * (2 * vpid + pcid - 2) for vpid in (1, 2) for pcid in (1, 2)}
    everyones = {1: 0x5000, 2: 0x6000}
    for (vpid, pcid), page in local.items():
        use(vpid, pcid)
        assert world.translate(page, READ)[0] == world.translate(everyones[vpid], READ)[0] == "ok"
    use(1, 2)
    invalidate, left, left_global = LEFT[operation]
    invalidate(cpu)
    found, found_global = set(), set()
    for (vpid, pcid), page in local.items():
        use(vpid, pcid)
        walks = int(cpu.guest_walks)
        if world.translate(page, READ)[0] == "ok" and cpu.guest_walks == walks:
            found.add((vpid, pcid))
    for vpid, page in everyones.items():
        use(vpid, 1)
        walks = int(cpu.guest_walks)
        if world.translate(page, READ)[0] == "ok" and cpu.guest_walks == walks:
            found_global.add(vpid)
    assert (found, found_global) == (left, left_global)


def test_contexts_are_remembered(world):
    """Going to and fro between guests or PCIDs invalidates nothing."""
    cpu, numbers = world.cpu, {}
    for turn in range(2):
        for vpid in range(PROBES):
            cpu.vpid = vpid
            select_context(cpu)
            assert numbers.setdefault(vpid, int(cpu.tlb_context)) == cpu.tlb_context, turn
    assert len(set(numbers.values())) == PROBES


def test_contexts_run_out(world):
    """After all numbers are used the banks are wiped: an old tag never matches again."""
    world.set_mode("none")
    assert world.translate(0x5000, READ)[0] == "ok" and world.hit(0x5000)
    for _ in range(LAST_CONTEXT + 10):
        flush_context(world.cpu, 0)
        assert not world.hit(0x5000)
    assert world.translate(0x5000, READ)[0] == "ok" and world.hit(0x5000)


def test_permissions_follow_control_bits_without_a_flush(world):
    """CR0.WP is part of the context: setting it needs no flush, clearing it again finds the old entries."""
    for i in range(4):
        world.put(0x10000 + 0x1000 * i, 0x11000 + 0x1000 * i | (0x67 if i < 3 else 0x65))
    world.set_mode("4-level", cr3=0x10000)
    assert world.translate(0, WRITE)[0] == "ok" and world.hit(0, WRITE)
    world.set_mode("4-level", cr3=0x10000, cr0=CR0_WP)
    assert not world.hit(0, WRITE)
    assert world.translate(0, WRITE) == ("page fault", 3)
    world.set_mode("4-level", cr3=0x10000)
    assert world.hit(0, WRITE)

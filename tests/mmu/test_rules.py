"""The manual's rules one by one: every combination of permissions, reserved bits, EPT rights; references."""

from itertools import product

import pytest

from tests.mmu.world import ACCESSES, EPT_TABLES, LOW, levels_of
from vmx.mmu.ept import NOTHING_THERE
from vmx.mmu.translate import FETCH, READ, WRITE
from vmx.state.processor import CR0_WP, CR4_PSE, CR4_SMAP, CR4_SMEP

TABLES = [0x10000, 0x11000, 0x12000, 0x13000]
TARGET = 0x20000
LINEAR = {
    "32-bit": 0x0040_5123,
    "32-bit PSE": 0x0040_5123,
    "PAE": 0x0020_5123,
    "4-level": 0xFFFF_8080_4020_5123,
}


def tables(world, mode, flags, target=TARGET, linear=None, depth=None):
    """Tables with these entry flags per level, `depth` levels of them; returns the entries' addresses."""
    size, levels = levels_of(mode)
    linear = LINEAR[mode] if linear is None else linear
    addresses = []
    for i, (high, low) in enumerate(levels[:depth]):
        last = i == len(levels[:depth]) - 1
        addresses.append(TABLES[i] + size * (linear >> low & (1 << high - low + 1) - 1))
        world.put(addresses[-1], (target if last else TABLES[i + 1]) | flags[i], size)
    if mode == "PAE":
        for i in range(4):
            world.cpu.pdpte[i] = TABLES[0] | 1
    return addresses


@pytest.mark.parametrize("mode", ["32-bit", "PAE", "4-level"])
def test_every_combination_of_access_rights(world, mode):
    """Upper entry x leaf entry (U, W, XD) x WP, SMEP, SMAP, AC, NXE, CPL x six kinds of access."""
    linear = LINEAR[mode]
    size, levels = levels_of(mode)
    disables = [0, 1 << 63] if size == 8 else [0]
    outcomes = set()
    for controls in product([0, CR0_WP], [0, CR4_SMEP], [0, CR4_SMAP], [False, True], [0, 3]):
        wp, smep, smap, ac, cpl = controls
        for upper, leaf in product(product([0, 2], [0, 4], disables), repeat=2):
            upper_flags, leaf_flags = 0x61 | sum(upper), 0x61 | sum(leaf)
            if ac and (smap == 0 or upper_flags & leaf_flags & 4 == 0):
                continue  # AC does not matter there; leave it to the generated cases
            tables(world, mode, [upper_flags] + [0x67] * (len(levels) - 2) + [leaf_flags])
            world.set_mode(mode, cr3=TABLES[0], cr0=wp, cr4=smep | smap, nxe=True, cpl=cpl, ac=ac)
            for access in ACCESSES:
                state = world.state()
                assert state.cpl == cpl
                outcomes.add(world.check(linear, access, cold=access == 0).error_code)
    assert outcomes >= {0, 1, 3, 5, 7}


@pytest.mark.parametrize("nxe", [False, True])
@pytest.mark.parametrize("mode", ["32-bit", "32-bit PSE", "PAE", "4-level"])
def test_every_bit_of_every_entry(world, mode, nxe):
    """Each bit alone set in each entry, also in entries that map large pages."""
    size, levels = levels_of(mode)
    reserved = 0
    for level, large in product(range(len(levels)), [0, 0x80]):
        for position in range(8 * size):
            flags = [0x67] * len(levels)
            target = TARGET
            if large:
                flags[level] |= large
                target = 0
            addresses = tables(world, mode, flags, target, depth=level + 1 if large else None)
            world.put(
                addresses[level], world.read(addresses[level]) & (1 << 8 * size) - 1 ^ 1 << position, size
            )
            world.set_mode(mode, cr3=TABLES[0], nxe=nxe)
            for access in (READ, WRITE, FETCH):
                reserved += world.check(LINEAR[mode], access, cold=True).error_code & 8
    assert (reserved > 0) == (mode != "32-bit")


@pytest.mark.parametrize("accessed_dirty", [False, True])
def test_every_bit_of_every_ept_entry(world, accessed_dirty):
    kinds = set()
    for leaf, position in product([4096, 1 << 21, 1 << 30], range(64)):
        levels = {4096: 4, 1 << 21: 3, 1 << 30: 2}[leaf]
        for level in range(levels):
            tables(world, "4-level", [0x67] * 4)
            roots = world.map_ept(leaf=leaf, accessed_dirty=accessed_dirty)
            address = roots[level] + (8 * (TARGET >> 12) if level == 3 else 0)
            world.put(address, world.read(address) ^ 1 << position)
            world.set_mode("4-level", cr3=TABLES[0])
            for access in (READ, WRITE, FETCH):
                kinds.add(world.check(LINEAR["4-level"], access, cold=True).kind)
    assert kinds >= {"ok", "EPT violation", "EPT misconfiguration"}


@pytest.mark.parametrize("accessed_dirty", [False, True])
def test_every_right_of_ept_for_tables_and_target(world, accessed_dirty):
    """R, W, X of the page of each guest table and of the target; the guest's flags clear and set."""
    qualifications = set()
    for page, rights, guest_flags in product([*TABLES, TARGET], range(8), [0x07, 0x67]):
        for access in (READ, WRITE, FETCH):
            tables(world, "4-level", [guest_flags] * 4)
            *_, pt = world.map_ept(accessed_dirty=accessed_dirty)
            entry = pt + 8 * (page >> 12)
            world.put(entry, world.read(entry) & ~7 | rights)
            world.set_mode("4-level", cr3=TABLES[0])
            result = world.check(LINEAR["4-level"], access, cold=True)
            if result.kind == "EPT violation":
                qualifications.add((page == TARGET, result.qualification))
    expected = {(True, 1 << kind | rights << 3 | 0x180) for kind in range(3) for rights in (0, 1, 3, 4, 5, 7)}
    expected = {(final, q) for final, q in expected if q & 7 & ~(q >> 3)}
    if accessed_dirty:  # reading a table counts as writing it
        expected |= {(False, 3 | rights << 3 | 0x80) for rights in (0, 1, 4, 5)}
    else:  # reads without R; setting a flag without W
        expected |= {(False, 1 | rights << 3 | 0x80) for rights in (0, 4)}
        expected |= {(False, 2 | rights << 3 | 0x80) for rights in (1, 5)}
    assert qualifications == expected


def test_dirty_is_set_by_the_first_write_only(world):
    *_, leaf = tables(world, "4-level", [0x27, 0x27, 0x27, 0x07])
    world.set_mode("4-level", cr3=TABLES[0])
    linear = LINEAR["4-level"]
    assert world.translate(linear, READ)[0] == "ok"
    assert world.read(leaf) & 0x60 == 0x20 and not world.hit(linear, WRITE)
    assert world.translate(linear, WRITE)[0] == "ok"
    assert world.read(leaf) & 0x60 == 0x60 and world.hit(linear, WRITE)


def test_pse_36_reaches_beyond_4_gib(world):
    """A 4-MByte page of 32-bit paging takes address bits 39:32 from bits 20:13 of its entry."""
    world.put(TABLES[0] + 4, 0xC0_0000 | 0x23 << 13 | 0xE7, 4)
    world.set_mode("32-bit PSE", cr3=TABLES[0])
    assert world.translate(0x41_2345, READ) == ("ok", 0x23_00C1_2345, 0x23_00C1_2345)


def test_addresses_above_2_63(world):
    linear = 0xFFFF_FFFF_FFFF_F000
    tables(world, "4-level", [0x67] * 4, linear=linear)
    world.set_mode("4-level", cr3=TABLES[0])
    for _ in range(2):
        assert world.translate(linear, READ) == ("ok", TARGET, TARGET)
    assert world.hit(linear)
    assert world.store(linear + 0xFF8, 8, 0x8877_6655_4433_2211) == 0
    assert world.load(linear + 0xFF8, 8) == (0x8877_6655_4433_2211, 0)
    assert world.read(TARGET + 0xFF8) == 0x8877_6655_4433_2211


@pytest.mark.parametrize(
    "linear", [1 << 47, 0x8000_0000_0000_0000, 0xFFFF_7FFF_FFFF_FFFF, 0x1234_0000_0000_0000]
)
def test_non_canonical_addresses(world, linear):
    world.set_mode("4-level", cr3=TABLES[0])
    for access in ACCESSES:
        assert world.translate(linear, access) == ("general protection", 0)


# guest mode, levels of the guest walk, EPT page, references: (g + 1)(h + 1) - 1
WALKS = [
    ("4-level", 4, 4096, 24),
    ("4-level", 3, 4096, 19),
    ("4-level", 4, 1 << 21, 19),
    ("4-level", 3, 1 << 21, 15),
    ("4-level", 2, 1 << 30, 8),
    ("32-bit", 2, 4096, 14),
    ("32-bit", 2, 1 << 30, 8),
    ("32-bit PSE", 1, 4096, 9),
    ("PAE", 2, 4096, 14),
    ("none", 0, 4096, 4),
    ("4-level", 4, 0, 4),
    ("4-level", 3, 0, 3),
    ("4-level", 2, 0, 2),
    ("PAE", 2, 0, 2),
    ("32-bit", 2, 0, 2),
    ("none", 0, 0, 0),
]


@pytest.mark.parametrize(("mode", "depth", "ept_leaf", "references"), WALKS)
def test_references_of_a_walk(world, mode, depth, ept_leaf, references):
    linear = 0x1234 if mode == "none" else LINEAR[mode] & ~0x3FF000
    if mode != "none":
        levels = len(levels_of(mode)[1])
        large = depth < levels
        tables(
            world,
            mode,
            [0x67] * (depth - 1) + [0xE7 if large else 0x67],
            0 if large else TARGET,
            linear,
            depth,
        )
    if ept_leaf:
        world.map_ept(leaf=ept_leaf)
    world.set_mode(mode, cr3=TABLES[0])
    walks, before = int(world.cpu.guest_walks), int(world.cpu.walk_references)
    assert world.check(linear, READ, cold=True).kind == "ok"
    assert world.cpu.walk_references - before == references
    assert world.cpu.guest_walks - walks == 1
    world.check(linear, READ)
    assert world.cpu.guest_walks - walks == 1  # the TLB answered


def test_the_emulators_device_page_passes_ept(world):
    """While one instruction is let through, all device memory passes, and the named page as an empty one."""
    world.map_ept()
    world.set_mode("none")
    device = 0xFEE0_0000
    assert world.translate(device + 0x20, READ) == ("EPT violation", device + 0x20, 0x181)
    world.cpu.device_gpa = device
    assert world.translate(device + 0x20, READ) == ("ok", device + 0x20, device + 0x20)
    assert not world.hit(device)
    assert world.translate(device + 0x1000, WRITE) == ("ok", device + 0x1000, device + 0x1000)
    world.put(EPT_TABLES + 3 * 4096 + 8 * 5, 0x5000 | 2)  # misconfigured: writable, not readable
    assert world.translate(0x5000, READ)[0] == "EPT misconfiguration"
    world.cpu.device_gpa = 0x5000
    assert world.translate(0x5008, READ) == ("ok", 0x5008, NOTHING_THERE | 8)
    world.cpu.device_gpa = -1
    assert world.translate(device + 0x1000, WRITE) == ("EPT violation", device + 0x1000, 0x182)


def test_tables_outside_ram_read_as_ones(world):
    for mode, error in (("4-level", 9), ("32-bit", None)):
        world.set_mode(mode, cr3=LOW + 0x10000)
        outcome = world.check(LINEAR[mode], READ, cold=True)
        assert outcome.error_code == error if error else outcome.gpa == 0xFFFF_F123


def test_pse_bit_matters_only_with_cr4_pse(world):
    tables(world, "32-bit", [0x67 | 0x80, 0x67])
    for pse in (0, CR4_PSE):
        world.set_mode("32-bit", cr3=TABLES[0], cr4=pse)
        assert world.check(LINEAR["32-bit"], READ, cold=True).page_size == (1 << 22 if pse else 4096)

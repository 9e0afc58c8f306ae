"""Loads and stores through the TLB: page flags, decoded code, page crossings, memory outside RAM."""

import pytest

from tests.mmu.world import LOW
from vmx.mmu.physical import CODE, DIRTY, WATCHED
from vmx.mmu.tlb import code_page, drop_write_tags
from vmx.mmu.translate import FETCH, IMPLICIT, READ, WRITE
from vmx.state.processor import FAULT, STOP

CR3, PT = 0x10000, 0x13000


def map_pages(world, flags=0x67, cpl=0):
    """Linear pages 0..15 map frames 0x20..0x2F."""
    for i in range(3):
        world.put(CR3 + 0x1000 * i, CR3 + 0x1000 * (i + 1) | 0x67)
    for i in range(16):
        world.put(PT + 8 * i, 0x20000 + 0x1000 * i | flags)
    world.set_mode("4-level", cr3=CR3, cpl=cpl)
    world.cpu.code_changed = world.cpu.bus_count = world.cpu.bus_position = 0


def flags_of(world, physical):
    return int(world.flags[physical >> 12])


def test_a_read_of_a_clean_page_gives_no_write_tag(world):
    map_pages(world)
    assert world.load(0x1000, 8) == (0, 0)
    assert world.hit(0x1000) and world.hit(0x1000, FETCH) and not world.hit(0x1000, WRITE)
    assert world.store(0x1000, 4, 0x11223344) == 0
    assert flags_of(world, 0x21000) == DIRTY and world.hit(0x1000, WRITE)
    world.cpu.fault = 0
    assert world.load(0x1002, 2) == (0x1122, 0)


def test_a_store_to_decoded_code(world):
    map_pages(world)
    assert world.store(0x1000, 1, 0) == 0 and world.hit(0x1000, WRITE)
    code_page(world.cpu, 0x21000)
    assert flags_of(world, 0x21000) & CODE
    assert not world.hit(0x1000, WRITE) and world.hit(0x1000)
    stamp = int(world.stamps[0x21])
    assert world.store(0x1008, 8, 1) == 0
    assert world.cpu.code_changed == 1 and world.stamps[0x21] == stamp + 1
    assert flags_of(world, 0x21000) == DIRTY and not world.hit(0x1000, WRITE)
    assert world.store(0x1010, 8, 1) == 0 and world.hit(0x1000, WRITE)
    assert world.stamps[0x21] == stamp + 1


def test_write_tags_of_aliases_are_dropped(world):
    """One frame mapped twice, and in two banks."""
    map_pages(world)
    world.put(PT + 8 * 5, 0x21067)
    assert world.store(0x1000, 1, 0) == world.store(0x5000, 1, 0) == world.store(0x2000, 1, 0) == 0
    assert world.store(0x1000, 1, 0, WRITE | IMPLICIT) == 0
    drop_write_tags(world.cpu, 0x21ABC)
    assert [world.hit(a, WRITE) for a in (0x1000, 0x5000, 0x2000)] == [False, False, True]
    assert not world.hit(0x1000, WRITE | IMPLICIT)


def test_a_watched_page_never_has_a_write_tag(world):
    map_pages(world)
    world.flags[0x21] = WATCHED | DIRTY
    for _ in range(3):
        assert world.store(0x1000, 1, 7) == 0
        assert not world.hit(0x1000, WRITE)
    assert world.load(0x1000, 1) == (7, 0)


@pytest.mark.parametrize("size", [2, 4, 8])
def test_page_crossings(world, size):
    map_pages(world)
    world.put(PT + 8 * 2, 0x2A067)  # the second page lies elsewhere
    value = 0x8877665544332211 & (1 << 8 * size) - 1
    for first in range(1, size):
        linear = 0x2000 - first
        assert world.store(linear, size, value) == 0
        assert world.load(linear, size) == (value, 0)
        low = world.ram[0x22000 - first : 0x22000].tobytes()
        assert low + world.ram[0x2A000 : 0x2A000 + size - first].tobytes() == value.to_bytes(size, "little")


def test_a_crossing_store_writes_nothing_when_the_second_page_faults(world):
    map_pages(world)
    world.put(PT + 8 * 2, 0)
    assert world.store(0x1FFC, 8, -1) == FAULT
    assert world.cpu.fault_address == 0x2000
    assert not world.ram[0x21FF0:0x22000].any()
    assert world.load(0x1FFC, 8)[1] == FAULT


def test_an_access_wraps_at_4_gib_outside_long_mode(world):
    """Linear address 2**32 is 0 without paging (RAM is at both ends of nothing here: the low part only)."""
    world.set_mode("none")
    assert world.translate(1 << 32 | 0x1234, READ) == ("ok", 0x1234, 0x1234)


def test_memory_outside_ram_asks_the_platform(world):
    map_pages(world)
    world.put(PT + 8, 0xFEE00067)
    for linear in (0x1020, 0x1020):
        value, fault = world.load(linear, 4)
        assert fault == STOP and not world.hit(linear)
        assert (world.cpu.bus_address, world.cpu.bus_size, world.cpu.bus_write) == (0xFEE00020, 4, 0)
    assert world.store(0x1080, 4, 0xABCD) == STOP
    assert (world.cpu.bus_write, world.cpu.bus_value) == (1, 0xABCD)
    world.cpu.bus_log[0], world.cpu.bus_count = 0x99, 1
    assert world.load(0x1020, 4) == (0x99, 0)


def test_implicit_accesses_are_the_supervisors(world):
    map_pages(world, flags=0x63, cpl=3)
    assert world.load(0x1000, 8)[1] == FAULT and world.cpu.fault_error == 5
    assert world.load(0x1000, 8, READ | IMPLICIT) == (0, 0)
    assert world.hit(0x1000, READ | IMPLICIT) and not world.hit(0x1000)


def test_high_ram(world):
    """RAM above 4 GiB is where it should be in the host's mapping."""
    map_pages(world)
    world.put(PT + 8, 0x1_0000_3067)
    assert world.store(0x1008, 8, 0x1234) == 0
    assert world.ram[LOW + 0x3008] == 0x34 and world.hit(0x1008, WRITE)
    assert world.translate(0x1008, READ) == ("ok", 0x1_0000_3008, 0x1_0000_3008)


def test_a_walk_that_sets_flags_notices_decoded_code(world):
    """Page tables may lie in a page that holds code: a flag that the walker sets makes that code stale."""
    map_pages(world, flags=0x07)
    code_page(world.cpu, PT)
    assert world.load(0x1000, 8) == (0, 0)
    assert world.read(PT + 8) & 0x20
    assert world.cpu.code_changed == 1 and world.stamps[PT >> 12] == 1

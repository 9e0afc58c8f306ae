"""The decoded-instruction cache: runs of decoded instructions in one physical page, by physical address and mode.

A block ends at a branch, at the end of its page, or after BLOCK_INSTRUCTIONS. Each page of RAM has a stamp; a store to
a page with decoded code changes the stamp, and blocks with another stamp are decoded anew. When the arena is
full everything is forgotten. An instruction that crosses a page is decoded each time: its second page may be
mapped anew, or written, at any moment.
"""

import numpy as np

from vmx.cpu.decode import INVALID, NEED_MORE, TOO_LONG, decode
from vmx.cpu.operands import raise_fault
from vmx.isa.table import F_END, TABLE
from vmx.mmu.physical import CODE, host_of, ram_offset
from vmx.mmu.tlb import ENTRIES as TLB_ENTRIES
from vmx.mmu.tlb import TLB_ENTRY, code_page
from vmx.mmu.translate import FETCH, translate
from vmx.state.bits import shr, ult
from vmx.state.jit import compiled
from vmx.state.memory import copy_bytes, load8, load32, store64
from vmx.state.processor import CS, DECODED, GP, PROCESSOR
from vmx.state.struct import struct
from vmx.state.unit import unit

BLOCK_INSTRUCTIONS = 32
BLOCKS = 1 << 17
ARENA = 1 << 19  # decoded instructions

BLOCK = struct(
    "Block",
    [
        ("physical", "u8"),  # of the first instruction
        ("first", "u8"),  # host address of its first decoded instruction
        ("stamp", "u4"),  # of the page when it was decoded
        ("bytes", "u2"),
        ("mode", "u1"),  # cpu.code_mode + 1; 0: empty
        ("count", "u1"),  # instructions
    ],
)
# the cache in memory: cursor, the bytes of a page-crossing instruction, its block, an empty block, blocks, the arena
_CURSOR, _BYTES, _CROSSING, _NOTHING, _TABLE = 0, 8, 64, 160, 192
_ARENA = _TABLE + BLOCKS * BLOCK.size
CACHE_BYTES = _ARENA + (ARENA + BLOCK_INSTRUCTIONS + 1) * DECODED.size
DECODED_SIZE = DECODED.size
BLOCK_SIZE = BLOCK.size

ROW_FLAGS = TABLE.flags
PAGE_MASK = ~0xFFF
INDEX_MASK = TLB_ENTRIES - 1
ENTRY_SIZE = TLB_ENTRY.size

CODE_CACHE = struct("CodeCache", [("cursor", "u8")])


def new_code_cache() -> np.ndarray:
    """A new, empty cache: its address belongs into `host_code_cache`."""
    return np.zeros(CACHE_BYTES, np.uint8)


@compiled(inline=True)
def _slot(cpu, physical):
    hashed = physical ^ shr(physical, 17)
    return BLOCK.at(cpu.host_code_cache + _TABLE + (hashed & (BLOCKS - 1)) * BLOCK_SIZE)


@compiled
def forget_all(cpu):
    """Empty the cache."""
    base = cpu.host_code_cache
    address = base + _TABLE
    while address < base + _ARENA:
        store64(address + 16, 0)  # stamp, bytes, mode and count
        address += BLOCK_SIZE
    CODE_CACHE.at(base).cursor = 0


@unit(PROCESSOR, "i64", "i64")
def build_block(cpu, physical, linear):
    """Decode the block at a physical address. Returns the host address of its BLOCK, or 0 with `cpu.fault` set."""
    cache = CODE_CACHE.at(cpu.host_code_cache)
    mode = cpu.code_mode
    host = host_of(cpu, physical)
    if host == 0:
        # nothing answers there: the bus floats high
        host = cpu.host_code_cache + _BYTES
        store64(host, -1)
        store64(host + 8, -1)
        return _single(cpu, host, 15)
    to_page_end = 4096 - (physical & 0xFFF)
    if cache.cursor + BLOCK_INSTRUCTIONS > ARENA:
        forget_all(cpu)
    first = cpu.host_code_cache + _ARENA + cache.cursor * DECODED_SIZE
    count = 0
    done = 0
    while count < BLOCK_INSTRUCTIONS and done < to_page_end:
        d = DECODED.at(first + count * DECODED_SIZE)
        result = decode(d, host + done, to_page_end - done, mode, cpu.features)
        if result == NEED_MORE or result == TOO_LONG:
            break
        if result == INVALID:
            d.length = 0
            if count > 0:
                break  # it gets a block of its own, so that it is counted when it is reached
            count = 1
            break
        done += d.length
        count += 1
        if ROW_FLAGS[d.row] & F_END:
            break
    if count == 0:
        return _crossing(cpu, host, to_page_end, linear)
    page = shr(ram_offset(cpu, physical), 12)
    if load8(cpu.host_page_flags + page) & CODE == 0:
        code_page(cpu, physical)
    block = _slot(cpu, physical)
    block.physical = physical
    block.first = first
    block.stamp = load32(cpu.host_page_stamp + page * 4)
    block.bytes = done
    block.mode = mode + 1
    block.count = count
    cache.cursor += count
    return BLOCK.address(block)


@compiled
def _single(cpu, host, available):
    """A block of one instruction that is not kept."""
    block = BLOCK.at(cpu.host_code_cache + _CROSSING)
    d = DECODED.at(cpu.host_code_cache + _CROSSING + BLOCK_SIZE)
    result = decode(d, host, available, cpu.code_mode, cpu.features)
    if result == TOO_LONG or result == NEED_MORE:
        raise_fault(cpu, GP, 0)
        return 0
    if result == INVALID:
        d.length = 0
    block.physical = -1  # no neighbour has this page
    block.mode = 0
    block.first = DECODED.address(d)
    block.count = 1
    block.bytes = d.length
    return BLOCK.address(block)


@compiled
def _crossing(cpu, host, to_page_end, linear):
    """An instruction that goes on in the next page."""
    if to_page_end >= 15:
        raise_fault(cpu, GP, 0)  # longer than 15 bytes
        return 0
    gathered = cpu.host_code_cache + _BYTES
    copy_bytes(gathered, host, to_page_end)
    following = linear + to_page_end
    if cpu.code_mode != 2:
        following &= 0xFFFF_FFFF
    if translate(cpu, following, FETCH):
        return 0
    rest = host_of(cpu, cpu.walk_hpa)
    if rest == 0:
        store64(gathered + to_page_end, -1)
        store64(gathered + to_page_end + 8, -1)
    else:
        copy_bytes(gathered + to_page_end, rest, 15 - to_page_end)
    return _single(cpu, gathered, 15)


@unit(PROCESSOR, "i64", "i64")
def limited_block(cpu, physical, available):
    """One instruction near the CS limit: `available` bytes remain below it. #GP(0) when it needs more."""
    host = host_of(cpu, physical)
    if available <= 0 or host == 0:
        raise_fault(cpu, GP, 0)
        return 0
    to_page_end = 4096 - (physical & 0xFFF)
    return _single(cpu, host, min(available, min(to_page_end, 15)))


@compiled(inline=True)
def find_block(cpu, rip):
    """The host address of the BLOCK at cpu.rip in the current mode; 0 with `cpu.fault` set where there is none."""
    linear = rip
    if cpu.code_mode != 2:
        linear = (rip + cpu.segments[CS].base) & 0xFFFF_FFFF
    entry = TLB_ENTRY.at(cpu.tlb_bank + (shr(linear, 12) & INDEX_MASK) * ENTRY_SIZE)
    if entry.fetch == (linear & PAGE_MASK | cpu.tlb_context):
        physical = entry.physical | linear & 0xFFF
    else:
        if translate(cpu, linear, FETCH):
            return 0
        physical = cpu.walk_hpa
    block = _slot(cpu, physical)
    found = BLOCK.address(block)
    if block.physical != physical or block.mode != cpu.code_mode + 1 or block.stamp != _stamp(cpu, physical):
        found = build_block(cpu, physical, linear)
        if found == 0:
            return 0
    if cpu.code_mode != 2:
        remaining = cpu.segments[CS].limit - rip + 1
        if BLOCK.at(found).bytes > remaining:
            return limited_block(cpu, physical, remaining)
    return found


@compiled(inline=True)
def neighbour(cpu, block, rip):
    """The decoded block at `rip` in the page of `block`, which is being executed; an empty BLOCK where there is none.

    Only where code is not limited by its segment: 64-bit code, and flat segments.
    """
    if cpu.code_mode != 2 and (cpu.segments[CS].limit != 0xFFFF_FFFF or cpu.segments[CS].base != 0):
        return BLOCK.at(cpu.host_code_cache + _NOTHING)
    physical = block.physical & PAGE_MASK | rip & 0xFFF
    found = _slot(cpu, physical)
    if found.physical != physical or found.mode != block.mode or found.stamp != block.stamp:
        return BLOCK.at(cpu.host_code_cache + _NOTHING)
    return found


@compiled(inline=True)
def _stamp(cpu, physical):
    if ult(physical, cpu.ram_low):
        return load32(cpu.host_page_stamp + shr(physical, 12) * 4)
    return _stamp_high(cpu, physical)


@compiled
def _stamp_high(cpu, physical):
    offset = ram_offset(cpu, physical)
    if offset < 0:
        return -1  # never equal: nothing is kept outside RAM
    return load32(cpu.host_page_stamp + shr(offset, 12) * 4)

"""The TLB: direct-mapped banks of translations, one bank per privilege, tagged with a context.

Manual, "Caching Translation Information" (paging) and "Caching Translation Information" (VMX support for
address translation).

A bank answers one question: may code of this privilege access this linear page, and where in host memory is
it? Three tags per entry (read, write, fetch) hold linear page | context when the access is allowed, -1 when
not. A context (12 bits) stands for one (VPID, PCID, EPTP) under one setting of the control bits that
permissions depend on. Invalidating a context means never using its number again, so most invalidations touch
no entry; when the numbers run out the banks are wiped.

An entry covers 4 KiB. Translations of global pages also carry the global context of their (VPID, EPTP): where
it matches, `translate` gives the entry the current context instead of walking. Paging-structure caches do not
exist, which the manual allows, as it allows to invalidate more than was asked for.
"""

import numpy as np

from vmx.mmu.physical import CODE, DIRTY, ram_offset
from vmx.state.bits import shr, signed
from vmx.state.jit import compiled
from vmx.state.memory import load8, store8
from vmx.state.processor import CR4_PCIDE, PROCESSOR
from vmx.state.struct import struct
from vmx.state.unit import unit

ENTRIES = 1024  # per bank; a power of two
SUPERVISOR, SUPERVISOR_AC, USER, NONE = range(4)  # banks; AC: SMAP does not apply; NONE is never filled
BANKS = 4

TLB_ENTRY = struct(
    "TlbEntry",
    [
        ("read", "u8"),
        ("write", "u8"),  # also -1 while the page is clean, holds decoded code, or is watched
        ("fetch", "u8"),
        ("host_delta", "u8"),  # host address = linear address + host_delta
        ("physical", "u8"),  # of the 4 KiB page, after EPT
        ("guest_physical", "u8"),
        ("global_context", "u8"),  # context of global pages of this VPID and EPTP, 0: not global
        ("page_size", "u8"),  # bytes of the guest's page: INVLPG drops all of it
    ],
)
BANK_BYTES = ENTRIES * TLB_ENTRY.size

CONTEXT = struct(
    "TlbContext", [("key", "u8"), ("eptp", "u8"), ("context", "u8")]
)  # context 0: the slot is free
CONTEXTS = (
    64  # remembered at a time; a power of two. A context that is pushed out is a new one when it returns
)
PROBES = 8
LAST_CONTEXT = 0xFFE  # 0 is no context; 0xFFF would make a tag of the last page equal to -1
LARGE_PAGE_WORDS = 64  # a filter of linear regions that hold entries of large pages, see note_large_page

_CONTEXTS_AT = BANKS * BANK_BYTES
_LARGE_PAGES_AT = _CONTEXTS_AT + CONTEXTS * CONTEXT.size
TLB_BYTES = _LARGE_PAGES_AT + LARGE_PAGE_WORDS * 8

LARGE_PAGES = struct("LargePages", [("bits", "u8", (LARGE_PAGE_WORDS,))])

# a context's key: 15:0 VPID, 27:16 PCID, 28 global, 43:32 control bits (see _controls)
_KEY_VPID, _KEY_PCID, _KEY_GLOBAL = 0xFFFF, 0xFFF << 16, 1 << 28
_SPREAD = signed(0x9E37_79B9_7F4A_7C15)  # 2**64 over the golden ratio: its multiples lie far apart
_EP4TA = 0x000F_FFFF_FFFF_F000
PAGE_MASK = ~0xFFF


def new_tlb() -> np.ndarray:
    """Memory for one processor's TLB, empty (uint8, aligned to 64 bytes); `cpu.host_tlb` is its address."""
    raw = np.zeros(TLB_BYTES + 64, np.uint8)
    start = -raw.ctypes.data % 64
    memory = raw[start : start + TLB_BYTES]
    memory[: BANKS * BANK_BYTES] = 0xFF
    return memory


@compiled(inline=True)
def entry_of(bank, linear):
    """The entry that a linear address uses in a bank."""
    return TLB_ENTRY.at(bank + (shr(linear, 12) & (ENTRIES - 1)) * TLB_ENTRY.size)


# --- contexts -----------------------------------------------------------------------------------------------


@compiled
def _controls(cpu):
    """The control bits that a cached permission depends on: WP, PG, PSE, PAE, PGE, SMEP, SMAP, LMA, NXE."""
    return (
        shr(cpu.cr0, 16) & 1
        | (shr(cpu.cr0, 31) & 1) << 1
        | cpu.cr4 & 0xB0
        | (shr(cpu.cr4, 20) & 3) << 8
        | cpu.efer & 0xC00
    )


@compiled
def current_pcid(cpu):
    """The current process-context identifier; 0 while CR4.PCIDE = 0."""
    return cpu.cr3 & 0xFFF if cpu.cr4 & CR4_PCIDE else 0


@compiled(inline=True)
def _slot(cpu, number):
    return CONTEXT.at(cpu.host_tlb + _CONTEXTS_AT + (number & (CONTEXTS - 1)) * CONTEXT.size)


@compiled
def _context_of(cpu, key):
    """The number of the context (key, current EPTP), a new one when it is not remembered."""
    first = shr((key + shr(cpu.eptp, 12) * 0x1F1F_1F1F) * _SPREAD, 50)
    for i in range(PROBES):
        slot = _slot(cpu, first + i)
        if slot.key == key and slot.eptp == cpu.eptp and slot.context != 0:
            return slot.context
    number = cpu.tlb_next_context + 1
    cpu.tlb_next_context = number
    chosen = first + (number & (PROBES - 1))
    for i in range(PROBES):
        if _slot(cpu, first + i).context == 0:
            chosen = first + i
            break
    slot = _slot(cpu, chosen)
    slot.key = key
    slot.eptp = cpu.eptp
    slot.context = number
    return number


@compiled
def _wipe(cpu):
    """Empty everything: context numbers start again."""
    for i in range(NONE * ENTRIES):
        entry = TLB_ENTRY.at(cpu.host_tlb + i * TLB_ENTRY.size)
        entry.read = -1
        entry.write = -1
        entry.fetch = -1
    for i in range(CONTEXTS):
        _slot(cpu, i).context = 0
    filter = LARGE_PAGES.at(cpu.host_tlb + _LARGE_PAGES_AT)
    for i in range(LARGE_PAGE_WORDS):
        filter.bits[i] = 0
    cpu.tlb_next_context = 0


@unit(PROCESSOR)
def select_context(cpu):
    """Use the contexts of the current VPID, PCID, EPTP and control bits; nothing is invalidated."""
    if cpu.host_tlb == 0:
        return 0
    if cpu.tlb_next_context > LAST_CONTEXT - 2:
        _wipe(cpu)
    key = cpu.vpid | _controls(cpu) << 32
    cpu.tlb_global_context = _context_of(cpu, key | _KEY_GLOBAL)
    cpu.tlb_context = _context_of(cpu, key | current_pcid(cpu) << 16)
    return 0


@compiled
def _forget(cpu, mask, key):
    """Invalidate the contexts whose key agrees with `key` in the bits of `mask`, for every EPTP."""
    for i in range(CONTEXTS):
        slot = _slot(cpu, i)
        if slot.key & mask == key:
            slot.context = 0


@unit(PROCESSOR)
def flush_all(cpu):
    """Invalidate everything of the current VPID: all PCIDs, global pages too (CR0.PG, CR4.PGE changed)."""
    if cpu.host_tlb != 0:
        _forget(cpu, _KEY_VPID, cpu.vpid)
    return select_context(cpu)


@unit(PROCESSOR, "i64")
def flush_context(cpu, keep_global):
    """Invalidate the current PCID (CR3 holds it already); MOV to CR3 keeps global pages."""
    if cpu.host_tlb != 0:
        _forget(cpu, _KEY_VPID | _KEY_PCID | _KEY_GLOBAL, cpu.vpid | current_pcid(cpu) << 16)
        if not keep_global:
            _forget(cpu, _KEY_VPID | _KEY_GLOBAL, cpu.vpid | _KEY_GLOBAL)
    return select_context(cpu)


# --- pages --------------------------------------------------------------------------------------------------


@compiled
def _large_page_bit(linear, size):
    """The bit of the filter for a page of 2 or 4 MiB (one bit per 4 MiB of linear addresses), or of 1 GiB."""
    region = shr(linear, 22) if size < 1 << 30 else ~shr(linear, 30)
    return (region ^ shr(region, 12) * 7) & (LARGE_PAGE_WORDS * 64 - 1)


@compiled
def note_large_page(cpu, linear, size):
    """An entry of a large page was filled: INVLPG of another address in that page must look for it."""
    bit = _large_page_bit(linear, size)
    filter = LARGE_PAGES.at(cpu.host_tlb + _LARGE_PAGES_AT)
    filter.bits[shr(bit, 6)] = filter.bits[shr(bit, 6)] | 1 << (bit & 63)


@compiled
def _may_have_large_page(cpu, linear, size):
    bit = _large_page_bit(linear, size)
    filter = LARGE_PAGES.at(cpu.host_tlb + _LARGE_PAGES_AT)
    return shr(filter.bits[shr(bit, 6)], bit & 63) & 1


@compiled
def _drop_if_inside(entry, page, mask):
    """Empty an entry when its page lies in the page that starts at `page` (mask: of its address bits)."""
    read, write, fetch = entry.read, entry.write, entry.fetch
    inside = (read != -1 and read & mask == page) or (write != -1 and write & mask == page)
    if inside or (fetch != -1 and fetch & mask == page):
        entry.read = -1
        entry.write = -1
        entry.fetch = -1


@unit(PROCESSOR, "i64")
def invalidate_page(cpu, linear):
    """Drop the translations of a linear address in every context: INVLPG and the other single-address forms.

    If the address was translated by a large page, all of that page's entries go.
    """
    if cpu.host_tlb == 0:
        return 0
    for bank in range(NONE):
        _drop_if_inside(entry_of(cpu.host_tlb + bank * BANK_BYTES, linear), linear & PAGE_MASK, PAGE_MASK)
    if _may_have_large_page(cpu, linear, 1 << 22) or _may_have_large_page(cpu, linear, 1 << 30):
        for i in range(NONE * ENTRIES):
            entry = TLB_ENTRY.at(cpu.host_tlb + i * TLB_ENTRY.size)
            if entry.page_size > 4096:
                _drop_if_inside(entry, linear & -entry.page_size, -entry.page_size)
    return 0


@unit(PROCESSOR, "i64", "i64", "i64")
def invpcid(cpu, type, pcid, linear):
    """INVPCID, operands checked by the caller. 0: address, 1: PCID, 2: all with global pages, 3: without."""
    if cpu.host_tlb == 0:
        return 0
    if type == 0:
        return invalidate_page(cpu, linear)
    if type == 1:
        _forget(cpu, _KEY_VPID | _KEY_PCID | _KEY_GLOBAL, cpu.vpid | pcid << 16)
    elif type == 2:
        _forget(cpu, _KEY_VPID, cpu.vpid)
    else:
        _forget(cpu, _KEY_VPID | _KEY_GLOBAL, cpu.vpid)
    return select_context(cpu)


@unit(PROCESSOR, "i64", "i64", "i64")
def invvpid(cpu, type, vpid, linear):
    """INVVPID, operands checked by the caller. 0: address, 1: VPID, 2: all, 3: VPID except global pages."""
    if cpu.host_tlb == 0:
        return 0
    if type == 0:
        return invalidate_page(cpu, linear)
    if type == 1:
        _forget(cpu, _KEY_VPID, vpid)
    elif type == 2:
        _forget(cpu, 0, 0)
    else:
        _forget(cpu, _KEY_VPID | _KEY_GLOBAL, vpid)
    return select_context(cpu)


@unit(PROCESSOR, "i64", "i64")
def invept(cpu, type, eptp):
    """INVEPT, operands checked by the caller. 1: the EPTP's paging structures (bits 51:12), 2: all."""
    if cpu.host_tlb == 0:
        return 0
    for i in range(CONTEXTS):
        slot = _slot(cpu, i)
        if slot.eptp != 0 and (type != 1 or (slot.eptp ^ eptp) & _EP4TA == 0):
            slot.context = 0
    return select_context(cpu)


# --- decoded code -------------------------------------------------------------------------------------------


@unit(PROCESSOR, "i64")
def drop_write_tags(cpu, physical):
    """From now on the first store to this physical page takes the slow path (its page flag changes)."""
    if cpu.host_tlb == 0:
        return 0
    page = physical & PAGE_MASK
    for i in range(NONE * ENTRIES):
        entry = TLB_ENTRY.at(cpu.host_tlb + i * TLB_ENTRY.size)
        if entry.physical == page:
            entry.write = -1
    return 0


@unit(PROCESSOR, "i64")
def code_page(cpu, physical):
    """A RAM page holds decoded instructions now: stores to it must be noticed."""
    flags_at = cpu.host_page_flags + shr(ram_offset(cpu, physical), 12)
    flags = load8(flags_at)
    if flags & CODE == 0:
        store8(flags_at, flags | CODE)
        if flags & DIRTY:  # write tags exist only for dirty pages
            drop_write_tags(cpu, physical)
    return 0

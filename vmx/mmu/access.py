"""Memory accesses by linear address: the inline TLB look-up, and the slow path behind it.

All return the value (loads) or nothing of interest (stores); what matters is `cpu.fault`: 0, or the Status that
the instruction must return. `size` is 1, 2, 4 or 8 bytes.
"""

from vmx.mmu.breakpoints import ACCESSES, WRITES, note_access
from vmx.mmu.bus import MEMORY, bus_access
from vmx.mmu.physical import host_of, mark_written
from vmx.mmu.tlb import BANK_BYTES, ENTRIES, NONE, SUPERVISOR, TLB_ENTRY
from vmx.mmu.translate import IMPLICIT, READ, WRITE, translate
from vmx.state.bits import shr
from vmx.state.jit import compiled
from vmx.state.memory import load8, load16, load32, load64, store8, store16, store32, store64
from vmx.state.processor import AC, CR0_AM, FAULT, FLAG_AC, PROCESSOR
from vmx.state.unit import unit

INDEX_MASK = ENTRIES - 1
PAGE_MASK = ~0xFFF
TLB_ENTRY_SIZE = TLB_ENTRY.size


@compiled
def raw_load(host, size):
    if size == 4:
        return load32(host)
    if size == 8:
        return load64(host)
    if size == 1:
        return load8(host)
    return load16(host)


@compiled
def raw_store(host, size, value):
    if size == 4:
        store32(host, value)
    elif size == 8:
        store64(host, value)
    elif size == 1:
        store8(host, value)
    else:
        store16(host, value)


@compiled
def _load_part(cpu, linear, size, access):
    """A load that does not cross a 4 KiB page."""
    fault = translate(cpu, linear, access)
    if fault:
        return 0
    host = host_of(cpu, cpu.walk_hpa)
    if host == 0:
        return bus_access(cpu, MEMORY, cpu.walk_hpa, size, 0, 0)
    if size == 1 or size == 2 or size == 4 or size == 8:
        return raw_load(host, size)
    value = 0
    for i in range(size):
        value |= load8(host + i) << (8 * i)
    return value


@compiled
def _store_part(cpu, linear, size, value, access):
    """A store that does not cross a 4 KiB page."""
    fault = translate(cpu, linear, access)
    if fault:
        return
    physical = cpu.walk_hpa
    host = host_of(cpu, physical)
    if host == 0:
        bus_access(cpu, MEMORY, physical, size, 1, value)
        return
    if mark_written(cpu, physical):
        cpu.code_changed = 1
    if size == 1 or size == 2 or size == 4 or size == 8:
        raw_store(host, size, value)
    else:
        for i in range(size):
            store8(host + i, shr(value, 8 * i))


@compiled
def _misaligned(cpu, linear, size, access):
    """ "Alignment Checking": 1, with #AC(0) recorded, where it applies; it can be on in the bank NONE only."""
    if linear & (size - 1) == 0 or access & IMPLICIT or cpu.tlb_bank != cpu.host_tlb + NONE * BANK_BYTES:
        return 0
    if cpu.cpl != 3 or cpu.rflags & FLAG_AC == 0 or cpu.cr0 & CR0_AM == 0:
        return 0
    cpu.fault_vector = AC
    cpu.fault_error = 0
    cpu.fault = FAULT
    return 1


@unit(PROCESSOR, "i64", "i64", "i64")
def load_slow(cpu, linear, size, access):
    """A load by the page tables; fills the TLB. A page-crossing load is two accesses."""
    if _misaligned(cpu, linear, size, access):
        return 0
    if access & IMPLICIT == 0:
        note_access(cpu, linear, size, ACCESSES)
    first = 4096 - (linear & 0xFFF)
    if first >= size:
        return _load_part(cpu, linear, size, access)
    low = _load_part(cpu, linear, first, access)
    if cpu.fault:
        return 0
    high = _load_part(cpu, linear + first, size - first, access)
    return low | high << (8 * first)


@unit(PROCESSOR, "i64", "i64", "i64", "i64")
def store_slow(cpu, linear, size, value, access):
    """A store by the page tables. Of a page-crossing store nothing is written unless both pages may be."""
    if _misaligned(cpu, linear, size, access):
        return 0
    if access & IMPLICIT == 0:
        note_access(cpu, linear, size, WRITES | ACCESSES)
    first = 4096 - (linear & 0xFFF)
    if first >= size:
        _store_part(cpu, linear, size, value, access)
        return 0
    if translate(cpu, linear, access):
        return 0
    if translate(cpu, linear + first, access):
        return 0
    _store_part(cpu, linear, first, value, access)
    if cpu.fault == 0:
        _store_part(cpu, linear + first, size - first, shr(value, 8 * first), access)
    return 0


@compiled(inline=True)
def _entry(bank, linear):
    return TLB_ENTRY.at(bank + (shr(linear, 12) & INDEX_MASK) * TLB_ENTRY_SIZE)


@compiled(inline=True)
def load(cpu, linear, size):
    """An explicit data load at the current privilege level."""
    entry = _entry(cpu.tlb_bank, linear)
    if entry.read == ((linear + size - 1) & PAGE_MASK | cpu.tlb_context):
        return raw_load(linear + entry.host_delta, size)
    return load_slow(cpu, linear, size, READ)


@compiled(inline=True)
def store(cpu, linear, size, value):
    """An explicit data store at the current privilege level."""
    entry = _entry(cpu.tlb_bank, linear)
    if entry.write == ((linear + size - 1) & PAGE_MASK | cpu.tlb_context):
        raw_store(linear + entry.host_delta, size, value)
    else:
        store_slow(cpu, linear, size, value, WRITE)


@compiled
def load_for_update(cpu, linear, size):
    """The load of a read-modify-write instruction: it faults as a write, before anything is read."""
    entry = _entry(cpu.tlb_bank, linear)
    if entry.write == ((linear + size - 1) & PAGE_MASK | cpu.tlb_context):
        return raw_load(linear + entry.host_delta, size)
    if not check_write(cpu, linear, size):
        return 0
    return load_slow(cpu, linear, size, READ)


@compiled
def check_write(cpu, linear, size):
    """1 when a store of `size` bytes would not fault, else 0 with `cpu.fault` set."""
    if translate(cpu, linear, WRITE):
        return 0
    if (linear & 0xFFF) + size > 4096:
        if translate(cpu, (linear + size - 1) & PAGE_MASK, WRITE):
            return 0
    return 1


@compiled
def load_system(cpu, linear, size):
    """An implicit supervisor load (descriptor tables, TSS, IDT)."""
    entry = _entry(cpu.host_tlb + SUPERVISOR * BANK_BYTES, linear)
    if entry.read == ((linear + size - 1) & PAGE_MASK | cpu.tlb_context):
        return raw_load(linear + entry.host_delta, size)
    return load_slow(cpu, linear, size, READ | IMPLICIT)


@compiled
def store_system(cpu, linear, size, value):
    """An implicit supervisor store."""
    return store_slow(cpu, linear, size, value, WRITE | IMPLICIT)


@compiled
def host_for_read(cpu, linear, size):
    """The host address of `size` readable bytes inside one page, or 0: use `load` then."""
    entry = _entry(cpu.tlb_bank, linear)
    if entry.read == ((linear + size - 1) & PAGE_MASK | cpu.tlb_context):
        return linear + entry.host_delta
    return 0


@compiled
def host_for_write(cpu, linear, size):
    """The host address of `size` writable bytes inside one page, or 0: use `store` then."""
    entry = _entry(cpu.tlb_bank, linear)
    if entry.write == ((linear + size - 1) & PAGE_MASK | cpu.tlb_context):
        return linear + entry.host_delta
    return 0


@compiled
def load_physical(cpu, physical, size):
    """A load by physical address that stays in RAM (VMCS areas, bitmaps); all ones outside RAM."""
    host = host_of(cpu, physical)
    return -1 if host == 0 else raw_load(host, size)

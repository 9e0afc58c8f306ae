"""Segmentation: descriptors, what they say, and loads of segment registers with their checks.

Manual: "Segment Descriptors", "Privilege Levels", and the operation sections of MOV and POP. A function
that can fault returns a Status, or a value with `cpu.fault` set; nothing but a descriptor's accessed bit
changes before the last check.
"""

from vmx.cpu.operands import raise_fault
from vmx.mmu.access import load_system, store_system
from vmx.state.bits import shr, ult
from vmx.state.jit import compiled
from vmx.state.processor import (
    ACCESS_DB,
    ACCESS_L,
    ACCESS_P,
    ACCESS_S,
    ACCESS_UNUSABLE,
    CR0_PE,
    CS,
    DS,
    ES,
    FLAG_VM,
    FS,
    GP,
    GS,
    JUMP,
    LDTR,
    NP,
    OK,
    PROCESSOR,
    SS,
    SS_FAULT,
)
from vmx.state.unit import unit

# bits of an access-rights word (VMCS format) and of its type field
TYPE_ACCESSED, TYPE_WRITABLE, TYPE_EXPAND_DOWN, TYPE_CODE = 1, 2, 4, 8
TYPE_READABLE, TYPE_CONFORMING = 2, 4  # of code segments

# system descriptor types
LDT, TASK_GATE, CALL_GATE, INTERRUPT_GATE, TRAP_GATE = 2, 5, 0xC, 0xE, 0xF
TSS_16_AVAILABLE, TSS_16_BUSY, CALL_GATE_16, INTERRUPT_GATE_16, TRAP_GATE_16 = 1, 3, 4, 6, 7
TSS_AVAILABLE, TSS_BUSY = 9, 11


@compiled
def real_addressing(cpu):
    """1 where a selector is a paragraph number: real-address mode and virtual-8086 mode."""
    return 1 if cpu.cr0 & CR0_PE == 0 or cpu.rflags & FLAG_VM else 0


@compiled(inline=True)
def canonical(address):
    """1 when bits 63:47 of an address are equal."""
    return 1 if (address << 16) >> 16 == address else 0


# --- descriptors --------------------------------------------------------------------------------------------


@compiled
def rights_of(raw):
    """Access rights (VMCS format) of the 8 bytes of a descriptor."""
    return shr(raw, 40) & 0xF0FF


@compiled
def base_of(raw):
    return shr(raw, 16) & 0xFF_FFFF | shr(raw, 56) << 24


@compiled
def limit_of(raw):
    """The limit in bytes, granularity applied."""
    limit = raw & 0xFFFF | shr(raw, 32) & 0xF_0000
    return limit << 12 | 0xFFF if shr(raw, 55) & 1 else limit


@compiled
def dpl_of(access):
    return (access >> 5) & 3


@compiled
def is_code(access):
    """1 for a code segment."""
    return 1 if access & (ACCESS_S | TYPE_CODE) == (ACCESS_S | TYPE_CODE) else 0


@compiled
def is_writable_data(access):
    """1 for a data segment that may be written."""
    return 1 if access & (ACCESS_S | TYPE_CODE | TYPE_WRITABLE) == (ACCESS_S | TYPE_WRITABLE) else 0


@compiled
def descriptor_address(cpu, selector):
    """The linear address of a selector's descriptor."""
    if selector & 4:
        return cpu.segments[LDTR].base + (selector & 0xFFF8)
    return cpu.gdtr_base + (selector & 0xFFF8)


@compiled
def table_holds(cpu, selector, size):
    """1 when the `size` bytes of a selector's descriptor are inside its table."""
    last = (selector & 0xFFF8) + size - 1
    if selector & 4:
        ldt = cpu.segments[LDTR]
        if ldt.access & ACCESS_UNUSABLE:
            return 0
        return 1 if last <= ldt.limit else 0
    return 1 if last <= cpu.gdtr_limit else 0


@unit(PROCESSOR, "i64", "i64", "i64")
def read_descriptor(cpu, selector, vector, external):
    """The 8 bytes of a descriptor; outside its table: fault `vector` with the selector as error code."""
    if not table_holds(cpu, selector, 8):
        raise_fault(cpu, vector, selector & 0xFFFC | external)
        return 0
    return load_system(cpu, descriptor_address(cpu, selector), 8)


@unit(PROCESSOR, "i64", "i64")
def set_descriptor_type(cpu, selector, bits):
    """Set bits in a descriptor's type field in memory (accessed, busy). Returns OK or a status."""
    address = descriptor_address(cpu, selector) + 5
    byte = load_system(cpu, address, 1)
    if cpu.fault:
        return cpu.fault
    if byte & bits != bits:
        store_system(cpu, address, 1, byte | bits)
    return cpu.fault


@compiled
def mark_accessed(cpu, selector, raw):
    """Set the accessed bit of a code or data descriptor that has just been read as `raw`."""
    if shr(raw, 40) & TYPE_ACCESSED:
        return OK
    return set_descriptor_type(cpu, selector, TYPE_ACCESSED)


# --- segment registers --------------------------------------------------------------------------------------


@compiled
def put_segment(cpu, register, selector, raw):
    """Fill a segment register from a descriptor that has been checked and marked."""
    segment = cpu.segments[register]
    segment.selector = selector
    segment.base = base_of(raw)
    segment.limit = limit_of(raw)
    segment.access = rights_of(raw) | TYPE_ACCESSED


@compiled
def put_flat(cpu, register, selector, access):
    """Fill a segment register as SYSCALL and its relatives do: base 0, limit 4 GiB - 1."""
    segment = cpu.segments[register]
    segment.selector = selector
    segment.base = 0
    segment.limit = 0xFFFF_FFFF
    segment.access = access


@compiled
def put_null(cpu, register, selector, dpl):
    """Fill a segment register from a null selector; SS keeps the privilege level in its DPL."""
    segment = cpu.segments[register]
    segment.selector = selector
    segment.base = 0
    segment.limit = 0
    segment.access = ACCESS_UNUSABLE | dpl << 5


@compiled
def put_real(cpu, register, selector):
    """A load in real-address or virtual-8086 mode: only selector and base change ("unreal mode")."""
    segment = cpu.segments[register]
    segment.selector = selector
    segment.base = selector << 4
    if segment.access & ACCESS_UNUSABLE:
        segment.access = 0x93
        segment.limit = 0xFFFF


@compiled
def check_stack_segment(cpu, selector, access, cpl, vector, external):
    """SS for privilege level `cpl`: RPL, DPL and type; `vector` is #GP or #TS."""
    if selector & 3 != cpl or dpl_of(access) != cpl or not is_writable_data(access):
        return raise_fault(cpu, vector, selector & 0xFFFC | external)
    if not access & ACCESS_P:
        return raise_fault(cpu, SS_FAULT, selector & 0xFFFC | external)
    return OK


@compiled
def _load_ss(cpu, selector):
    if selector & 0xFFFC == 0:
        if cpu.code_mode == 2 and cpu.cpl < 3 and selector & 3 == cpu.cpl:
            put_null(cpu, SS, selector, cpu.cpl)
            return OK
        return raise_fault(cpu, GP, 0)
    raw = read_descriptor(cpu, selector, GP, 0)
    if cpu.fault:
        return cpu.fault
    status = check_stack_segment(cpu, selector, rights_of(raw), cpu.cpl, GP, 0)
    if status:
        return status
    status = mark_accessed(cpu, selector, raw)
    if status:
        return status
    put_segment(cpu, SS, selector, raw)
    return OK


@unit(PROCESSOR, "i64", "i64")
def load_segment(cpu, register, selector):
    """Load ES, SS, DS, FS or GS as MOV and POP do. Returns OK or a status; nothing is loaded then."""
    selector &= 0xFFFF
    if real_addressing(cpu):
        put_real(cpu, register, selector)
        return OK
    if register == SS:
        return _load_ss(cpu, selector)
    if selector & 0xFFFC == 0:
        put_null(cpu, register, selector, 0)
        return OK
    raw = read_descriptor(cpu, selector, GP, 0)
    if cpu.fault:
        return cpu.fault
    access = rights_of(raw)
    if not access & ACCESS_S or access & (TYPE_CODE | TYPE_READABLE) == TYPE_CODE:
        return raise_fault(cpu, GP, selector & 0xFFFC)
    if access & (TYPE_CODE | TYPE_CONFORMING) != (TYPE_CODE | TYPE_CONFORMING):
        dpl = dpl_of(access)
        if selector & 3 > dpl or cpu.cpl > dpl:
            return raise_fault(cpu, GP, selector & 0xFFFC)
    if not access & ACCESS_P:
        return raise_fault(cpu, NP, selector & 0xFFFC)
    status = mark_accessed(cpu, selector, raw)
    if status:
        return status
    put_segment(cpu, register, selector, raw)
    return OK


@compiled
def drop_inner_segments(cpu, cpl):
    """After a return to an outer level: data segments that it may not use become null (RET, IRET)."""
    for i in range(4):
        register = ES if i == 0 else DS if i == 1 else FS if i == 2 else GS
        access = cpu.segments[register].access
        conforming = access & (TYPE_CODE | TYPE_CONFORMING) == (TYPE_CODE | TYPE_CONFORMING)
        if not access & ACCESS_UNUSABLE and not conforming and dpl_of(access) < cpl:
            put_null(cpu, register, 0, 0)


@compiled
def code_offset_fits(cpu, raw, offset, wide):
    """1 when a far transfer's offset is inside its code segment (canonical when `wide`: a 64-bit segment)."""
    if wide:
        return canonical(offset)
    return 0 if ult(limit_of(raw), offset) else 1


@compiled
def put_code_segment(cpu, selector, raw, cpl):
    """CS after all checks: its RPL is the new privilege level."""
    put_segment(cpu, CS, selector & 0xFFFC | cpl, raw)


@compiled
def is_64_bit(cpu, code):
    """1 when a code segment's rights mean 64-bit mode."""
    return 1 if cpu.long_mode and code & ACCESS_L else 0


@compiled
def real_transfer(cpu, selector, offset):
    """Finish a far transfer in real-address or virtual-8086 mode."""
    code = cpu.segments[CS]
    if offset & ~0xFFFF and offset > code.limit:
        return raise_fault(cpu, GP, 0)
    code.selector = selector
    code.base = selector << 4
    cpu.next_rip = offset
    return JUMP


# --- stacks -------------------------------------------------------------------------------------------------


@compiled
def stack_holds(access, limit, offset, size):
    """1 when `size` bytes at `offset` are inside a stack segment (no wrap-around is accepted)."""
    last = offset + size - 1
    if access & TYPE_EXPAND_DOWN:
        top = 0xFFFF_FFFF if access & ACCESS_DB else 0xFFFF
        return 1 if offset > limit and last <= top else 0
    return 1 if last <= limit else 0

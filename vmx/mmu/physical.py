"""Physical memory: where guest RAM lies in this process, and its page flags.

RAM is one host mapping: `ram_low` bytes from address 0, `ram_high` bytes from 4 GiB. Everything else belongs to
the platform's buses.
"""

from vmx.state.bits import shr, ult
from vmx.state.jit import compiled
from vmx.state.memory import load8, load32, store8, store32
from vmx.state.processor import PageFlag

HIGH_RAM = 1 << 32
PAGE = 4096
CODE, DIRTY, WATCHED = int(PageFlag.CODE), int(PageFlag.DIRTY), int(PageFlag.WATCHED)


@compiled
def ram_offset(cpu, physical):
    """The offset into guest RAM of a physical address, or -1 where there is no RAM."""
    if ult(physical, cpu.ram_low):
        return physical
    above = physical - HIGH_RAM
    if ult(above, cpu.ram_high):
        return cpu.ram_low + above
    return -1


@compiled
def host_of(cpu, physical):
    """The host address of a physical address in RAM, or 0. Valid up to the end of its 4 KiB page."""
    offset = ram_offset(cpu, physical)
    return 0 if offset < 0 else cpu.host_ram + offset


@compiled
def page_flags(cpu, physical):
    """PageFlag bits of a RAM page."""
    return load8(cpu.host_page_flags + shr(ram_offset(cpu, physical), 12))


@compiled
def mark_written(cpu, physical):
    """A store reaches this RAM page: it is dirty, and decoded code in it is stale. Returns 1 if it held code."""
    page = shr(ram_offset(cpu, physical), 12)
    flags = load8(cpu.host_page_flags + page)
    store8(cpu.host_page_flags + page, flags & ~CODE | DIRTY)
    if flags & CODE:
        stamp = cpu.host_page_stamp + page * 4
        store32(stamp, load32(stamp) + 1)
        return 1
    return 0

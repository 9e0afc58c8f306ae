"""Ports: IN, OUT, and who may use them ("I/O Permission Bit Map").

A port access goes to the platform (vmx.mmu.bus): the instruction stops, is answered, and runs again.
"""

from vmx.cpu.operands import gpr_write, mask, raise_fault
from vmx.mmu.access import load_system
from vmx.mmu.breakpoints import PORTS, note_access
from vmx.mmu.bus import PORT, bus_access
from vmx.state.bits import shr
from vmx.state.jit import compiled
from vmx.state.processor import (
    CR0_PE,
    CR4_DE,
    DECODED,
    FLAG_VM,
    GP,
    OPERAND_IMMEDIATE,
    PROCESSOR,
    RAX,
    RDX,
    TR,
)
from vmx.state.unit import unit
from vmx.virt.conditions import io_exits, io_qualification
from vmx.virt.exit import vm_exit
from vmx.virt.reasons import ExitReason

IO_INSTRUCTION = int(ExitReason.IO_INSTRUCTION)
BITMAP_OFFSET = 102  # of the I/O map base in a 32- or 64-bit TSS


@unit(PROCESSOR, "i64", "i64")
def io_permitted(cpu, port, size):
    """1 when IOPL or the TSS's bitmap allows `size` ports from `port`; else 0 with cpu.fault set (#GP(0)).

    In virtual-8086 mode the bitmap alone decides.
    """
    if cpu.cr0 & CR0_PE == 0 or cpu.rflags & FLAG_VM == 0 and cpu.cpl <= shr(cpu.rflags, 12) & 3:
        return 1
    tr = cpu.segments[TR]
    permitted = 0
    if tr.access & 0xD == 9 and tr.limit >= BITMAP_OFFSET + 1:  # a TSS of 32 bits or more, busy or not
        base = load_system(cpu, tr.base + BITMAP_OFFSET, 2)
        if cpu.fault:
            return 0
        at = base + (port >> 3)
        if at + 1 <= tr.limit:
            bits = load_system(cpu, tr.base + at, 2)
            if cpu.fault:
                return 0
            permitted = 1 if bits >> (port & 7) & mask_of_ports(size) == 0 else 0
    if not permitted:
        raise_fault(cpu, GP, 0)
    return permitted


@compiled
def mask_of_ports(size):
    """One bit per byte port of an access."""
    return (1 << size) - 1


@compiled
def _note_port(cpu, port, size):
    """I/O breakpoints, which exist while CR4.DE is 1."""
    if cpu.cr4 & CR4_DE:
        note_access(cpu, port, size, PORTS)


@compiled
def port_in(cpu, port, size):
    """Read a port; 0 with cpu.fault set while there is no answer."""
    _note_port(cpu, port, size)
    return bus_access(cpu, PORT, port, size, 0, 0) & mask(size)


@compiled
def port_out(cpu, port, size, value):
    """Write a port; cpu.fault is set while there is no answer."""
    _note_port(cpu, port, size)
    bus_access(cpu, PORT, port, size, 1, value & mask(size))


@compiled
def _port(cpu, code, d):
    """The port number: an immediate byte or DX."""
    return d.immediate & 0xFF if code == OPERAND_IMMEDIATE else cpu.gpr[RDX] & 0xFFFF


@unit(PROCESSOR, DECODED)
def group_portio(cpu, d):
    """IN and OUT."""
    is_in = 1 if d.op & 31 == 0 else 0
    code = d.src if is_in else d.dst
    port = _port(cpu, code, d)
    if not io_permitted(cpu, port, d.size):
        return cpu.fault
    if io_exits(cpu, port, d.size):
        cpu.exit_length = d.length
        immediate = 1 if code == OPERAND_IMMEDIATE else 0
        return vm_exit(cpu, IO_INSTRUCTION, io_qualification(d.size, is_in, 0, 0, immediate, port))
    if is_in:
        value = port_in(cpu, port, d.size)
        if cpu.fault == 0:
            gpr_write(cpu, RAX, d.size, value)
    else:
        port_out(cpu, port, d.size, cpu.gpr[RAX])
    return cpu.fault

"""Breakpoint addresses: what the debug registers match.

Manual: "Debug Registers", "Debug Address Registers (DR0-DR3)", "Breakpoint Field Recognition". While DR7 enables any
breakpoint the TLB bank NONE is in use (vmx.mmu.mode), so that every data access comes by the slow path and asks
here, and the run loop goes instruction by instruction (vmx.cpu.events). Implicit accesses, to descriptor tables and
the TSS, are not watched.

A data or I/O breakpoint is a trap: what the running instruction has met waits in bits 35:32 of cpu.pending_debug, and
is forgotten when the instruction does not complete.
"""

from vmx.state.bits import ult
from vmx.state.jit import compiled
from vmx.state.processor import PROCESSOR
from vmx.state.unit import unit

ENABLED = 0xFF  # DR7: L0 G0 ... L3 G3
EXECUTE, WRITES, PORTS, ACCESSES = 1 << 0, 1 << 1, 1 << 2, 1 << 3  # kinds: 1 << the R/W field
MET_SHIFT = 32  # in cpu.pending_debug
MET = 0xF << MET_SHIFT


@unit(PROCESSOR, "i64", "i64", "i64")
def matching(cpu, address, size, kinds):
    """The enabled breakpoints (bits 3:0, as in DR6) of these kinds that `size` bytes at an address touch."""
    dr7 = cpu.dr[7]
    found = 0
    for i in range(4):
        kind = 1 << (dr7 >> (16 + 4 * i) & 3)
        if dr7 >> (2 * i) & 3 and kind & kinds:
            code = dr7 >> (18 + 4 * i) & 3
            length = 8 if code == 2 else code + 1
            start = cpu.dr[i] & -length
            if ult(address - start, length) or ult(start - address, size):
                found |= 1 << i
    return found


@compiled
def note_access(cpu, address, size, kinds):
    """An access by the running instruction: remember the breakpoints that it meets."""
    if cpu.dr[7] & ENABLED:
        cpu.pending_debug |= matching(cpu, address, size, kinds) << MET_SHIFT

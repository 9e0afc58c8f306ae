"""Breakpoints on instructions, and what becomes of those that an instruction has met.

Manual: "Debug Exception (#DB)": "Instruction-Breakpoint Exception Condition" (a fault, before the instruction, held
off by RF), "Data Memory and I/O Breakpoint Exception Conditions" (traps, after it), "Resume flag". The
matching is in `vmx.mmu.breakpoints`.
"""

from vmx.mmu.breakpoints import ENABLED, EXECUTE, MET, MET_SHIFT, matching
from vmx.state.bits import shr
from vmx.state.jit import compiled
from vmx.state.processor import CS, FLAG_RF

ENABLED_BREAKPOINT = 1 << 12  # of the VMCS's pending debug exceptions
STEP_TF, STEP_RF = 1, 2  # cpu.step_trap: flags that were set before the instruction


@compiled
def watching(cpu):
    """Nonzero while DR7 enables a breakpoint: every instruction runs alone."""
    return cpu.dr[7] & ENABLED


@compiled
def instruction_breakpoints(cpu):
    """The breakpoints at the instruction that comes next."""
    linear = cpu.rip
    if cpu.code_mode != 2:
        linear = (linear + cpu.segments[CS].base) & 0xFFFF_FFFF
    return matching(cpu, linear, 1, EXECUTE)


@compiled
def keep_resume_flag(cpu):
    """This instruction has loaded RF itself, or is a repeated one with iterations left: RF outlives it."""
    cpu.step_trap &= ~STEP_RF


@compiled
def begin_step(cpu):
    """Nothing has been met by the instruction that runs next."""
    cpu.pending_debug &= ~MET
    if cpu.rflags & FLAG_RF:
        cpu.step_trap |= STEP_RF


@compiled
def end_step(cpu):
    """The instruction is complete: RF has served, and what was met becomes a pending debug exception."""
    if cpu.step_trap & STEP_RF:
        cpu.rflags &= ~FLAG_RF
    met = shr(cpu.pending_debug, MET_SHIFT)
    if met:
        cpu.pending_debug = cpu.pending_debug & ~MET | met | ENABLED_BREAKPOINT

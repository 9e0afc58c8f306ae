"""Fast system calls and the FS and GS bases: SYSCALL to SYSEXIT, SWAPGS, RDFSBASE and relatives.

Manual: "Fast System Calls in 64-Bit Mode" and the instructions' own sections. Called by the FAR group
(vmx.cpu.far).
"""

from vmx.cpu.operands import gpr_read, gpr_write, raise_fault
from vmx.cpu.segmentation import canonical, put_flat
from vmx.mmu.mode import update_mode
from vmx.state.bits import shr
from vmx.state.flags import get_rflags, set_rflags
from vmx.state.jit import compiled
from vmx.state.processor import (
    CR0_PE,
    CR4_FSGSBASE,
    CS,
    EFER_SCE,
    FLAG_IF,
    FLAG_RF,
    FLAG_TF,
    FLAG_VM,
    FS,
    GP,
    GS,
    JUMP,
    OK,
    R11,
    RCX,
    RDX,
    RSP,
    SS,
    UD,
)

# access rights that these instructions load: flat, present, accessed
CODE_64, CODE_32, DATA = 0xA09B, 0xC09B, 0xC093
DPL_3 = 3 << 5
SYSRET_FLAGS = 0x3C_7FD7  # without RF and VM


@compiled
def syscall(cpu, d):
    if cpu.efer & EFER_SCE == 0 or cpu.code_mode != 2:
        return raise_fault(cpu, UD, 0)
    flags = get_rflags(cpu)
    cpu.gpr[RCX] = cpu.next_rip
    cpu.gpr[R11] = flags
    if cpu.fmask & FLAG_TF:
        cpu.step_trap = 0
    set_rflags(cpu, flags & ~cpu.fmask & ~FLAG_RF)
    cpu.next_rip = cpu.lstar
    selector = shr(cpu.star, 32) & 0xFFFC
    put_flat(cpu, CS, selector, CODE_64)
    put_flat(cpu, SS, selector + 8, DATA)
    update_mode(cpu)
    return JUMP


@compiled
def sysret(cpu, d):
    if cpu.efer & EFER_SCE == 0 or cpu.code_mode != 2:
        return raise_fault(cpu, UD, 0)
    if cpu.cpl != 0:
        return raise_fault(cpu, GP, 0)
    selector = shr(cpu.star, 48) | 3
    target = cpu.gpr[RCX]
    if d.size == 8:
        if not canonical(target):
            return raise_fault(cpu, GP, 0)
        put_flat(cpu, CS, selector + 16, CODE_64 | DPL_3)
    else:
        target &= 0xFFFF_FFFF
        put_flat(cpu, CS, selector, CODE_32 | DPL_3)
    put_flat(cpu, SS, selector + 8, DATA | DPL_3)
    set_rflags(cpu, cpu.gpr[R11] & SYSRET_FLAGS)
    cpu.next_rip = target
    cpu.attention = 1
    update_mode(cpu)
    return JUMP


@compiled
def sysenter(cpu, d):
    selector = cpu.sysenter_cs & 0xFFFC
    if cpu.cr0 & CR0_PE == 0 or selector == 0:
        return raise_fault(cpu, GP, 0)
    cpu.rflags &= ~(FLAG_VM | FLAG_IF)
    if cpu.long_mode:
        put_flat(cpu, CS, selector, CODE_64)
        cpu.gpr[RSP] = cpu.sysenter_esp
        cpu.next_rip = cpu.sysenter_eip
    else:
        put_flat(cpu, CS, selector, CODE_32)
        cpu.gpr[RSP] = cpu.sysenter_esp & 0xFFFF_FFFF
        cpu.next_rip = cpu.sysenter_eip & 0xFFFF_FFFF
    put_flat(cpu, SS, selector + 8, DATA)
    update_mode(cpu)
    return JUMP


@compiled
def sysexit(cpu, d):
    selector = cpu.sysenter_cs & 0xFFFC | 3
    if selector == 3 or cpu.cr0 & CR0_PE == 0 or cpu.cpl != 0:
        return raise_fault(cpu, GP, 0)
    stack = cpu.gpr[RCX]
    target = cpu.gpr[RDX]
    if d.size == 8:
        if not canonical(stack) or not canonical(target):
            return raise_fault(cpu, GP, 0)
        put_flat(cpu, CS, selector + 32, CODE_64 | DPL_3)
        put_flat(cpu, SS, selector + 40, DATA | DPL_3)
    else:
        stack &= 0xFFFF_FFFF
        target &= 0xFFFF_FFFF
        put_flat(cpu, CS, selector + 16, CODE_32 | DPL_3)
        put_flat(cpu, SS, selector + 24, DATA | DPL_3)
    cpu.gpr[RSP] = stack
    cpu.next_rip = target
    update_mode(cpu)
    return JUMP


@compiled
def swapgs(cpu, d):
    if cpu.code_mode != 2:
        return raise_fault(cpu, UD, 0)
    if cpu.cpl != 0:
        return raise_fault(cpu, GP, 0)
    base = cpu.segments[GS].base
    cpu.segments[GS].base = cpu.kernel_gs_base
    cpu.kernel_gs_base = base
    return OK


@compiled
def read_base(cpu, d, register):
    """RDFSBASE, RDGSBASE."""
    if cpu.cr4 & CR4_FSGSBASE == 0 or cpu.code_mode != 2:
        return raise_fault(cpu, UD, 0)
    gpr_write(cpu, d.dst, d.size, cpu.segments[register].base)
    return OK


@compiled
def write_base(cpu, d, register):
    """WRFSBASE, WRGSBASE."""
    if cpu.cr4 & CR4_FSGSBASE == 0 or cpu.code_mode != 2:
        return raise_fault(cpu, UD, 0)
    value = gpr_read(cpu, d.dst, d.size)
    if not canonical(value):
        return raise_fault(cpu, GP, 0)
    cpu.segments[register].base = value
    return OK


@compiled
def fs_or_gs(position):
    """The register of RDFSBASE RDGSBASE WRFSBASE WRGSBASE by their position in the group, from 0."""
    return GS if position & 1 else FS

"""FXSAVE, FXRSTOR and the XSAVE feature set for the two state components here: x87 and SSE.

SDM volume 1, "FXSAVE Area" and "Managing State Using the XSAVE Feature Set". Only the standard form of the
XSAVE area is supported: CPUID does not report XSAVEC and XSAVES. Both components always count as in use.
"""

from vmx.cpu.operands import linear_address, plus, raise_fault
from vmx.cpu.vector import (
    FX_DP,
    FX_IP,
    FX_MXCSR,
    FX_MXCSR_MASK,
    FX_ST,
    FX_STATUS,
    FX_TAGS,
    FX_XMM,
    MXCSR_MASK,
    block_address,
    fx_address,
)
from vmx.cpu.x87 import INITIAL_CONTROL, X87_OFFSET, load_area, set_control, store_area
from vmx.isa.operations import OPERATION
from vmx.mmu.access import check_write
from vmx.state.jit import compiled
from vmx.state.memory import copy_bytes, load16, load32, load64, store8, store16, store32, store64
from vmx.state.processor import (
    CR0_EM,
    CR0_TS,
    CR4_OSXSAVE,
    DECODED,
    GP,
    NM,
    OK,
    PROCESSOR,
    RAX,
    RDX,
    UD,
)
from vmx.state.unit import unit

X87, SSE = 1, 2  # state components, as in XCR0
SUPPORTED = X87 | SSE
FXSAVE_BYTES = 512
XSTATE_BV, XCOMP_BV, HEADER_END = 512, 520, 576
AREA_BYTES = HEADER_END

OP_FXSAVE, OP_FXRSTOR, OP_XSAVE, OP_XRSTOR = (
    OPERATION[name] for name in ("FXSAVE", "FXRSTOR", "XSAVE", "XRSTOR")
)


def xsave_leaf() -> dict[int, tuple[int, int, int, int]]:
    """CPUID leaf 0DH by sub-leaf: (EAX, EBX, ECX, EDX); sub-leaves that are not there are zero."""
    xsaveopt = 1
    return {0: (SUPPORTED, AREA_BYTES, AREA_BYTES, 0), 1: (xsaveopt, 0, 0, 0)}


@compiled
def xsetbv_value_ok(index, value):
    """Whether XSETBV may write this: XCR0 only, the x87 bit set, nothing that is not supported."""
    return index == 0 and value & X87 and value & ~SUPPORTED == 0


@compiled
def _xmm_bytes(cpu):
    """XMM8 to XMM15 are saved and restored in 64-bit mode only."""
    return 256 if cpu.code_mode == 2 else 128


@compiled
def _image(cpu, wide, area):
    """Write the FXSAVE image. Without REX.W the pointers are 32 bits, and selectors zero: deprecated."""
    copy_bytes(area, fx_address(cpu), FX_XMM + 256)
    store8(area + FX_TAGS + 1, 0)
    store32(area + FX_MXCSR_MASK, MXCSR_MASK)
    for i in range(8):
        store16(area + FX_ST + 16 * i + 10, 0)
        store32(area + FX_ST + 16 * i + 12, 0)
    if not wide:
        store32(area + FX_IP + 4, 0)
        store32(area + FX_DP + 4, 0)


@compiled
def _restore_x87(cpu, wide, area):
    """The x87 part of an FXSAVE image."""
    fx = fx_address(cpu)
    copy_bytes(fx + FX_STATUS, area + FX_STATUS, 6)
    store8(fx + FX_TAGS + 1, 0)
    store64(fx + FX_IP, load64(area + FX_IP) if wide else load32(area + FX_IP))
    store64(fx + FX_DP, load64(area + FX_DP) if wide else load32(area + FX_DP))
    for i in range(8):
        store64(fx + FX_ST + 16 * i, load64(area + FX_ST + 16 * i))
        store64(fx + FX_ST + 16 * i + 8, load16(area + FX_ST + 16 * i + 8))
    set_control(cpu, load16(area))


@compiled
def _clear(target, size):
    for i in range(0, size, 8):
        store64(target + i, 0)


@compiled
def _initialize_x87(cpu):
    """The initial configuration of component 0."""
    fx = fx_address(cpu)
    _clear(fx, FX_MXCSR)
    _clear(fx + FX_ST, FX_XMM - FX_ST)
    set_control(cpu, INITIAL_CONTROL)


@compiled
def _operand(cpu, d, size, alignment, write):
    """The linear address of the area; #GP unless aligned."""
    linear = linear_address(cpu, d, size, write)
    if cpu.fault == 0 and linear & (alignment - 1):
        raise_fault(cpu, GP, 0)
    return linear


@compiled
def _fxsave(cpu, d):
    linear = _operand(cpu, d, FXSAVE_BYTES, 16, 1)
    if cpu.fault:
        return cpu.fault
    area = block_address(cpu) + X87_OFFSET
    _image(cpu, d.rex & 8, area)
    store_area(cpu, linear, FX_XMM + _xmm_bytes(cpu), area)
    return cpu.fault


@compiled
def _fxrstor(cpu, d):
    linear = _operand(cpu, d, FXSAVE_BYTES, 16, 0)
    area = block_address(cpu) + X87_OFFSET
    if cpu.fault == 0:
        load_area(cpu, linear, FXSAVE_BYTES, area)
    if cpu.fault:
        return cpu.fault
    if load32(area + FX_MXCSR) & ~MXCSR_MASK:
        return raise_fault(cpu, GP, 0)
    _restore_x87(cpu, d.rex & 8, area)
    store32(fx_address(cpu) + FX_MXCSR, load32(area + FX_MXCSR))
    copy_bytes(fx_address(cpu) + FX_XMM, area + FX_XMM, _xmm_bytes(cpu))
    return OK


@compiled
def _requested(cpu):
    """RFBM: the components that EDX:EAX asks for and XCR0 enables."""
    return cpu.xcr0 & (cpu.gpr[RAX] & 0xFFFF_FFFF | cpu.gpr[RDX] << 32)


@compiled
def _xsave(cpu, d):
    """XSAVE, and XSAVEOPT, which may skip what has not changed but need not."""
    linear = _operand(cpu, d, AREA_BYTES, 64, 1)
    if cpu.fault == 0:
        check_write(cpu, linear, AREA_BYTES)
    if cpu.fault:
        return cpu.fault
    area = block_address(cpu) + X87_OFFSET
    _image(cpu, d.rex & 8, area)
    load_area(cpu, plus(cpu, linear, XSTATE_BV), 8, area + XSTATE_BV)
    if cpu.fault:
        return cpu.fault
    requested = _requested(cpu)
    present = load64(area + XSTATE_BV)
    store64(area + XSTATE_BV, present & ~requested | SUPPORTED & requested)
    if requested & X87:
        store_area(cpu, linear, FX_MXCSR, area)
        store_area(cpu, plus(cpu, linear, FX_ST), FX_XMM - FX_ST, area + FX_ST)
    if requested & SSE:
        store_area(cpu, plus(cpu, linear, FX_MXCSR), 8, area + FX_MXCSR)
        store_area(cpu, plus(cpu, linear, FX_XMM), _xmm_bytes(cpu), area + FX_XMM)
    store_area(cpu, plus(cpu, linear, XSTATE_BV), 8, area + XSTATE_BV)
    return cpu.fault


@compiled
def _xrstor(cpu, d):
    linear = _operand(cpu, d, AREA_BYTES, 64, 0)
    area = block_address(cpu) + X87_OFFSET
    if cpu.fault == 0:
        load_area(cpu, linear, AREA_BYTES, area)
    if cpu.fault:
        return cpu.fault
    requested = _requested(cpu)
    present = load64(area + XSTATE_BV)
    reserved = load64(area + XCOMP_BV) | load64(area + XCOMP_BV + 8)
    bad_mxcsr = requested & SSE and load32(area + FX_MXCSR) & ~MXCSR_MASK
    if present & ~cpu.xcr0 or reserved or bad_mxcsr:
        return raise_fault(cpu, GP, 0)
    if requested & X87:
        if present & X87:
            _restore_x87(cpu, d.rex & 8, area)
        else:
            _initialize_x87(cpu)
    if requested & SSE:
        store32(fx_address(cpu) + FX_MXCSR, load32(area + FX_MXCSR))
        if present & SSE:
            copy_bytes(fx_address(cpu) + FX_XMM, area + FX_XMM, _xmm_bytes(cpu))
        else:
            _clear(fx_address(cpu) + FX_XMM, _xmm_bytes(cpu))
    return OK


@unit(PROCESSOR, DECODED)
def execute_xstate(cpu, d):
    """FXSAVE, FXRSTOR, XSAVE, XSAVEOPT, XRSTOR."""
    op = d.op
    if op == OP_FXSAVE or op == OP_FXRSTOR:
        if cpu.cr0 & (CR0_EM | CR0_TS):
            return raise_fault(cpu, NM, 0)
        return _fxsave(cpu, d) if op == OP_FXSAVE else _fxrstor(cpu, d)
    if cpu.cr4 & CR4_OSXSAVE == 0:
        return raise_fault(cpu, UD, 0)
    if cpu.cr0 & CR0_TS:
        return raise_fault(cpu, NM, 0)
    return _xrstor(cpu, d) if op == OP_XRSTOR else _xsave(cpu, d)

"""VMX instructions in non-root operation: the VM exit, its qualification, its instruction information.

The information is spelt here by the manual's tables: bits 1:0 scaling, 6:3 Reg1, 9:7 address size, 10 register,
17:15 segment, 21:18 index (22: none), 26:23 base (27: none), 31:28 Reg2.
"""

import pytest

from tests.vmx_instructions.root import CODES, GUEST_RIP, Root, Status, unsigned
from vmx.state.processor import CR0_PE, UD
from vmx.virt.reasons import ExitReason

ES, CS, SS, DS, FS, GS = range(6)
RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI = range(8)


def memory(base=None, index=None, scale=0, *, size=2, segment=DS, reg2=0):
    info = scale | size << 7 | segment << 15 | reg2 << 28
    info |= 1 << 22 if index is None else index << 18
    return info | (1 << 27 if base is None else base << 23)


def register(reg1, reg2):
    return reg1 << 3 | 1 << 10 | reg2 << 28


# 64-bit code: (bytes, exit reason, instruction information, qualification)
CASES = [
    ("0f01c1", "VMCALL", 0, 0),
    ("0f01c2", "VMLAUNCH", 0, 0),
    ("0f01c3", "VMRESUME", 0, 0),
    ("0f01c4", "VMXOFF", 0, 0),
    ("660fc733", "VMCLEAR", memory(RBX), 0),
    ("660fc77310", "VMCLEAR", memory(RBX), 0x10),
    ("0fc77598", "VMPTRLD", memory(RBP, segment=SS), -0x68),
    ("0fc7b42410010000", "VMPTRLD", memory(RSP, segment=SS), 0x110),
    ("430fc7bccc80000000", "VMPTRST", memory(12, 9, 3), 0x80),
    ("640fc73c2500200000", "VMPTRST", memory(segment=FS), 0x2000),
    ("65f30fc73433", "VMXON", memory(RBX, RSI, segment=GS), 0),
    ("f30fc73500010000", "VMXON", memory(), GUEST_RIP + 8 + 0x100),  # RIP-relative
    ("67660fc733", "VMCLEAR", memory(RBX, size=1), 0),
    ("0f78c1", "VMREAD", register(RCX, RAX), 0),
    ("450f78fc", "VMREAD", register(12, 15), 0),
    ("0f785108", "VMREAD", memory(RCX, reg2=RDX), 8),
    ("440f787cb3fc", "VMREAD", memory(RBX, RSI, 2, reg2=15), -4),
    ("0f79c1", "VMWRITE", register(RCX, RAX), 0),
    ("450f79fc", "VMWRITE", register(12, 15), 0),
    ("0f795108", "VMWRITE", memory(RCX, reg2=RDX), 8),
    ("660f388003", "INVEPT", memory(RBX, reg2=RAX), 0),
    ("66440f388045f8", "INVEPT", memory(RBP, segment=SS, reg2=8), -8),
    ("660f38814b20", "INVVPID", memory(RBX, reg2=RCX), 0x20),
]
CASES_32 = [
    ("0f78c1", "VMREAD", register(RCX, RAX), 0),
    ("0f794e04", "VMWRITE", memory(RSI, size=1, reg2=RCX), 4),
    ("260fc7349d00010000", "VMPTRLD", memory(None, RBX, 2, size=1, segment=ES), 0x100),
    ("67660fc732", "VMCLEAR", memory(RBP, RSI, size=0, segment=SS), 0),  # [BP+SI]
    ("0fc77d00", "VMPTRST", memory(RBP, size=1, segment=SS), 0),
]


def in_guest(mode="long64"):
    world = Root(mode)
    world.build_vmcs()
    cpu = world.cpu
    cpu.non_root = 1
    cpu.rip = GUEST_RIP
    return world


def check(world, code, reason, information, qualification):
    vmcs = world.vmcs
    code = bytes.fromhex(code)
    assert world.execute(code) == Status.EXIT
    assert vmcs.exit_reason == ExitReason[reason]
    assert vmcs.vm_exit_instruction_info == information, (
        f"{vmcs.vm_exit_instruction_info:#x} {information:#x}"
    )
    assert unsigned(vmcs.exit_qualification) == unsigned(qualification)
    assert vmcs.vm_exit_instruction_length == len(code)
    assert vmcs.guest_rip == GUEST_RIP and world.cpu.non_root == 0


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[1]} {case[0]}")
@pytest.mark.parametrize("mode", ["long64", "ring3"])
def test_64_bit_code(case, mode):
    """At every privilege level: the exit comes before #GP."""
    check(in_guest(mode), *case)


@pytest.mark.parametrize("case", CASES_32, ids=lambda case: f"{case[1]} {case[0]}")
def test_32_bit_code(case):
    world = in_guest("protected32")
    world.cpu.cr4 |= 1 << 13
    check(world, *case)


@pytest.mark.parametrize("name", [name for name in CODES if name != "vmcall"])
def test_the_wrong_mode_is_undefined_first(name):
    world = in_guest("compat")
    world.cpu.cr4 |= 1 << 13
    assert world.execute(CODES[name]) == Status.FAULT and world.fault() == (UD, 0)


def test_vmcall_exits_in_every_mode():
    for mode in ("real", "compat", "protected32_ring3"):
        world = in_guest(mode)
        check(world, "0f01c1", "VMCALL", 0, 0)
    assert not in_guest("real").cpu.cr0 & CR0_PE

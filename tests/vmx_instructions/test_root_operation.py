"""VMX instructions in root operation: exceptions, VMfailInvalid, VMfailValid with its number, success."""

import pytest

from tests.vmx_instructions.root import (
    BEYOND,
    CODES,
    EPT_ROOT,
    GUEST_RIP,
    HOST_RIP,
    NO_POINTER,
    OPERAND,
    OTHER_REGION,
    REGION,
    STATUS,
    VMXON_REGION,
    WITH_MEMORY,
    Root,
    Status,
    unsigned,
)
from vmx.boot import states
from vmx.mmu.mode import update_mode
from vmx.state.processor import CR4_VMXE, GP, PF, RAX, RBX, RCX, UD
from vmx.virt.controls import HOST_ADDRESS_SPACE_SIZE
from vmx.virt.exit import vm_exit
from vmx.virt.fields import BY_NAME, FIELDS, VMCS_REVISION

COMPLETED = (Status.OK, Status.JUMP)
NEEDS_CURRENT = (
    "vmread",
    "vmread_memory",
    "vmwrite",
    "vmwrite_memory",
    "vmlaunch",
    "vmresume",
)


def faults(world, name, vector):
    before = world.cpu.rip
    assert world.do(name) == Status.FAULT and world.fault() == (vector, 0)
    assert world.cpu.rip == before


# --- exceptions ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in CODES if name != "vmxon"])
def test_undefined_outside_vmx_operation(name):
    faults(Root(root=False), name, UD)


@pytest.mark.parametrize("name", CODES)
@pytest.mark.parametrize("mode", ["real", "compat", "virtual8086"])
def test_undefined_in_the_wrong_mode(name, mode):
    world = Root("protected32" if mode == "virtual8086" else mode)
    world.cpu.cr4 |= CR4_VMXE
    if mode == "virtual8086":
        world.cpu.rflags |= 1 << 17
        update_mode(world.cpu)
    code = CODES[name]
    if mode == "real" and name in WITH_MEMORY:  # [BX] is ModRM.rm = 7 there
        code = code[:-1] + bytes([code[-1] | 7])
    assert world.execute(code) == Status.FAULT and world.fault() == (UD, 0)


@pytest.mark.parametrize("name", CODES)
def test_privileged(name):
    world = Root("ring3")
    faults(world, name, GP)


@pytest.mark.parametrize("name", WITH_MEMORY)
def test_memory_operand_faults_and_changes_nothing(name):
    world = Root(root=name != "vmxon")
    world.cpu.gpr[RBX] = 1 << 30  # not mapped
    world.cpu.gpr[RAX] = BY_NAME["guest_rip"].encoding if name.startswith("vm") else 2
    world.rflags = STATUS | 2
    assert world.do(name) == Status.FAULT and world.fault()[0] == PF
    assert world.cpu.fault_address == 1 << 30
    assert world.rflags & STATUS == STATUS
    assert world.cpu.vmx_on == (name != "vmxon") and world.cpu.vmcs_pointer == (
        REGION if name != "vmxon" else 0
    )


@pytest.mark.parametrize("name", NEEDS_CURRENT)
def test_without_current_vmcs(name):
    world = Root()
    world.current(NO_POINTER)
    assert world.do(name, 0, rax=0x681E) in COMPLETED
    assert world.result() == "invalid"


# --- VMXON, VMXOFF ------------------------------------------------------------------------------------------


def test_vmxon_and_vmxoff():
    world = Root(root=False)
    cpu = world.cpu
    world.rflags = STATUS | 2
    assert world.do("vmxon", VMXON_REGION) in COMPLETED
    assert world.result() == "succeed" and cpu.vmx_on == 1 and cpu.vmxon_pointer == VMXON_REGION
    world.do("vmptrst", 0)
    assert world.get(OPERAND) == NO_POINTER  # there is no current VMCS
    world.do("vmptrld", REGION)
    assert world.do("vmxoff") in COMPLETED
    assert world.result() == "succeed" and cpu.vmx_on == 0 and cpu.host_vmcs == 0
    faults(world, "vmcall", UD)
    world.do("vmxon", VMXON_REGION)
    world.do("vmptrst", 0)
    assert world.get(OPERAND) == NO_POINTER  # VMXOFF forgot it


def test_vmxon_without_vmxe():
    world = Root(root=False)
    world.cpu.cr4 &= ~CR4_VMXE
    faults(world, "vmxon", UD)


@pytest.mark.parametrize(
    "register, value",
    [
        ("feature_control", 0),
        ("feature_control", 1),
        ("feature_control", 4),
        ("feature_control", 3),
        ("cr0", 0x8001_0013),  # NE clear
        ("cr0", 0x0001_0033),  # PG clear
        ("cr4", 0x2020 | 1 << 23),  # a bit that the processor does not have
    ],
)
def test_vmxon_general_protection(register, value):
    world = Root(root=False)
    setattr(world.cpu, register, value)
    faults(world, "vmxon", GP)


@pytest.mark.parametrize("pointer", [VMXON_REGION + 8, VMXON_REGION | BEYOND, 0x8000_0000])
def test_vmxon_pointer(pointer):
    world = Root(root=False)
    world.do("vmxon", pointer)
    assert world.result() == "invalid" and world.cpu.vmx_on == 0


@pytest.mark.parametrize("revision", [VMCS_REVISION + 1, VMCS_REVISION | 1 << 31, 0])
def test_vmxon_revision(revision):
    world = Root(root=False)
    world.put(VMXON_REGION, revision, 4)
    world.do("vmxon", VMXON_REGION)
    assert world.result() == "invalid" and world.cpu.vmx_on == 0


# --- VMfail -------------------------------------------------------------------------------------------------

RIP, EXIT_REASON = BY_NAME["guest_rip"].encoding, BY_NAME["exit_reason"].encoding
NO_FIELD = 0x6FFE

# name of the test: (VM-instruction error, instruction, operand in memory, RAX)
FAILURES = {
    "vmcall in root operation": (1, "vmcall", None, 0),
    "vmclear, not aligned": (2, "vmclear", OTHER_REGION + 4, 0),
    "vmclear, beyond the width": (2, "vmclear", OTHER_REGION | BEYOND, 0),
    "vmclear, VMXON pointer": (3, "vmclear", VMXON_REGION, 0),
    "vmresume, not launched": (5, "vmresume", None, 0),
    "vmptrld, not aligned": (9, "vmptrld", OTHER_REGION + 0x800, 0),
    "vmptrld, beyond the width": (9, "vmptrld", OTHER_REGION | BEYOND, 0),
    "vmptrld, VMXON pointer": (10, "vmptrld", VMXON_REGION, 0),
    "vmptrld, revision": (11, "vmptrld", OPERAND, 0),
    "vmptrld, no memory there": (11, "vmptrld", 0x8000_0000, 0),
    "vmread, no such field": (12, "vmread", None, NO_FIELD),
    "vmread, high half of a natural-width field": (12, "vmread", None, RIP | 1),
    "vmread, bits 63:32": (12, "vmread", None, RIP | 1 << 32),
    "vmread to memory, no such field": (12, "vmread_memory", 0, NO_FIELD),
    "vmwrite, no such field": (12, "vmwrite", None, NO_FIELD),
    "vmwrite from memory, no such field": (12, "vmwrite_memory", 0, NO_FIELD),
    "vmwrite, read-only": (13, "vmwrite", None, EXIT_REASON),
    "vmwrite from memory, read-only": (13, "vmwrite_memory", 0, EXIT_REASON),
    "vmxon in root operation": (15, "vmxon", OTHER_REGION, 0),
    "invept, type 0": (28, "invept", EPT_ROOT | 0x1E, 0),
    "invept, type 3": (28, "invept", EPT_ROOT | 0x1E, 3),
    "invept, bits 63:32 of the type": (28, "invept", EPT_ROOT | 0x1E, 1 << 32 | 1),
    "invept, memory type": (28, "invept", EPT_ROOT | 0x1D, 1),
    "invept, walk length": (28, "invept", EPT_ROOT | 0x16, 1),
    "invept, reserved bits": (28, "invept", EPT_ROOT | 0x9E, 1),
    "invept, beyond the width": (28, "invept", EPT_ROOT | 0x1E | BEYOND, 1),
    "invvpid, type 4": (28, "invvpid", 1, 4),
    "invvpid, address of VPID 0": (28, "invvpid", 0, 0),
    "invvpid, VPID 0": (28, "invvpid", 0, 1),
    "invvpid, VPID 0 but globals": (28, "invvpid", 0, 3),
    "invvpid, reserved bits": (28, "invvpid", 0x1_0001, 2),
    "invvpid, address not canonical": (28, "invvpid", 1, 0),
}


@pytest.mark.parametrize("case", FAILURES)
def test_failure(case):
    number, name, operand, rax = FAILURES[case]
    world = Root()
    world.put(OPERAND + 8, 1 << 47)  # not canonical, where an address is looked at
    before = world.cpu.vmcs_pointer
    world.rflags = 0x2 | STATUS ^ 0x40
    assert world.do(name, operand, rax=rax, rcx=5) in COMPLETED
    assert world.result() == number
    assert world.vmcs.vm_instruction_error == number
    assert world.cpu.vmcs_pointer == before and world.cpu.non_root == 0 and world.cpu.gpr[RCX] == 5
    world.current(NO_POINTER)  # nowhere to put the number
    world.do(name, operand, rax=rax)
    assert world.result() == "invalid"


# --- VMCS regions -------------------------------------------------------------------------------------------


def test_vmptrld_and_vmptrst():
    world = Root()
    world.do("vmptrld", OTHER_REGION)
    assert world.result() == "succeed"
    world.do("vmptrst", 0)
    assert world.result() == "succeed" and world.get(OPERAND) == OTHER_REGION
    world.do("vmwrite", rax=RIP, rcx=0x1234_5678_9ABC)
    world.do("vmptrld", REGION)
    world.do("vmread", rax=RIP, rcx=-1)
    assert world.cpu.gpr[RCX] == 0
    world.do("vmptrld", OTHER_REGION)
    world.do("vmread", rax=RIP)
    assert world.cpu.gpr[RCX] == 0x1234_5678_9ABC


def test_a_shadow_vmcs_is_refused():
    world = Root()
    world.put(OTHER_REGION, VMCS_REVISION | 1 << 31, 4)
    world.do("vmptrld", OTHER_REGION)
    assert world.result() == 11


def test_vmclear():
    world = Root()
    world.vmcs.launch_state = 1
    world.do("vmclear", OTHER_REGION)
    assert world.result() == "succeed" and world.cpu.vmcs_pointer == REGION
    world.do("vmclear", REGION)
    assert world.result() == "succeed" and world.vmcs.launch_state == 0
    world.do("vmptrst", 0)
    assert world.get(OPERAND) == NO_POINTER
    world.do("vmclear", 0x8000_0000)  # no memory there: nothing to clear
    assert world.result() == "succeed"


@pytest.mark.parametrize("field", FIELDS.values(), ids=lambda field: field.name)
def test_every_field(field):
    """VMWRITE truncates, VMREAD zero-extends; 64-bit fields have a high half."""
    world = Root()
    value = 0xFEDC_BA98_7654_3210
    world.do("vmwrite", rax=field.encoding, rcx=value)
    if field.access == "ro":
        assert world.result() == 13
        return
    kept = value & (1 << field.width) - 1
    world.do("vmread_memory", 0, rax=field.encoding)
    assert world.result() == "succeed" and world.get(OPERAND) == kept
    high = field.encoding >> 13 & 3 == 1
    world.do("vmread", rax=field.encoding | 1)
    assert world.result() == ("succeed" if high else 12)
    if high:
        assert world.cpu.gpr[RCX] == kept >> 32
        world.do("vmwrite_memory", 0xFFFF_FFFF_1111_2222, rax=field.encoding | 1)
        world.do("vmread", rax=field.encoding)
        assert unsigned(world.cpu.gpr[RCX]) == 0x1111_2222_7654_3210


def test_operands_are_32_bits_outside_64_bit_mode():
    world = Root("protected32")
    world.cpu.cr4 |= CR4_VMXE
    world.vmcs.guest_rip = 0x1111_2222_3333_4444
    world.do("vmread", rax=RIP | 1 << 40, rcx=-1)
    assert world.result() == "succeed" and world.cpu.gpr[RCX] == 0x3333_4444
    world.put(OPERAND, 0)
    world.do("vmread_memory", -1 & (1 << 64) - 1, rax=RIP)
    assert world.get(OPERAND) == 0xFFFF_FFFF_3333_4444
    world.do("vmwrite", rax=RIP, rcx=-1)
    assert unsigned(world.vmcs.guest_rip) == 0xFFFF_FFFF


# --- VMLAUNCH, VMRESUME -------------------------------------------------------------------------------------


def test_launch_state():
    world = Root()
    vmcs, cpu = world.build_vmcs(), world.cpu
    world.do("vmresume")
    assert world.result() == 5
    assert world.do("vmlaunch") == Status.JUMP
    assert cpu.non_root == 1 and cpu.rip == GUEST_RIP and vmcs.launch_state == 1
    assert vm_exit(cpu, 12, 0) == Status.EXIT
    assert cpu.non_root == 0 and cpu.rip == HOST_RIP and cpu.code_mode == 2
    world.cpu.rip = cpu.rip
    world.do("vmlaunch")
    assert world.result() == 4
    assert world.do("vmresume") == Status.JUMP and cpu.non_root == 1
    vm_exit(cpu, 12, 0)
    world.do("vmclear", REGION)
    world.do("vmptrld", REGION)
    world.do("vmresume")
    assert world.result() == 5


@pytest.mark.parametrize("name", ["vmlaunch", "vmresume"])
def test_entry_blocked_by_mov_ss(name):
    world = Root()
    vmcs = world.build_vmcs()
    vmcs.launch_state = 1 if name == "vmlaunch" else 0  # the blocking comes before the launch state
    world.cpu.shadow = 2
    assert world.do(name) in COMPLETED
    assert world.result() == 26
    world.cpu.shadow = 1  # blocking by STI does not matter
    vmcs.launch_state = 0 if name == "vmlaunch" else 1
    assert world.do(name) == Status.JUMP and world.cpu.non_root == 1


@pytest.mark.parametrize("field, value, number", [("pin_based_controls", 0, 7), ("host_cr4", 0, 8)])
def test_entry_with_bad_controls_or_host_state(field, value, number):
    world = Root()
    vmcs = world.build_vmcs()
    setattr(vmcs, field, value)
    at = world.cpu.rip
    assert world.do("vmlaunch") in COMPLETED
    assert world.result() == number and vmcs.launch_state == 0
    assert world.cpu.non_root == 0 and world.cpu.rip == at + 3


def test_entry_with_bad_guest_state():
    """Fails like a VM exit: HOST_RIP comes next, and the VMCS is not launched."""
    world = Root()
    vmcs = world.build_vmcs()
    vmcs.guest_rflags = 0
    world.cpu.step_trap = world.cpu.step_shadow = 1
    assert world.do("vmlaunch") == Status.JUMP
    assert world.cpu.rip == HOST_RIP and world.cpu.non_root == 0
    assert vmcs.exit_reason == 1 << 31 | 33 and vmcs.launch_state == 0
    assert world.cpu.step_trap == 0 and world.cpu.step_shadow == 0


def test_a_single_step_over_vmlaunch_is_not_the_guests():
    world = Root()
    world.build_vmcs().guest_interruptibility_state = 0
    world.cpu.step_trap = world.cpu.step_shadow = 1
    assert world.do("vmlaunch") == Status.JUMP
    assert world.cpu.step_trap == 0 and world.cpu.step_shadow == 0 and world.cpu.pending_debug == 0


def test_preemption_timer_counts_from_the_next_instruction():
    world = Root()
    vmcs = world.build_vmcs()
    vmcs.pin_based_controls |= 1 << 6
    vmcs.vmx_preemption_timer_value = 2  # 64 ticks: 64 instructions of 1 ns
    assert world.do("vmlaunch") == Status.JUMP
    assert world.cpu.preemption_deadline - world.cpu.retired == 64


# --- INVEPT, INVVPID ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [1, 2])
def test_invept(kind):
    world = Root()
    assert world.do("invept", EPT_ROOT | 0x1E if kind == 1 else 0, rax=kind) == Status.JUMP
    assert world.result() == "succeed"


@pytest.mark.parametrize("kind", [0, 1, 2, 3])
def test_invvpid(kind):
    world = Root()
    world.put(OPERAND + 8, 0xFFFF_8000_0000_0000)
    assert world.do("invvpid", 0 if kind == 2 else 0xFFFF, rax=kind) == Status.JUMP
    assert world.result() == "succeed"


def test_a_32_bit_host_and_guest():
    """From and to a host outside IA-32e mode."""
    world = Root("protected32")
    vmcs, cpu = world.build_vmcs(states.protected32), world.cpu
    vmcs.vm_exit_controls &= ~HOST_ADDRESS_SPACE_SIZE
    vmcs.host_cr4, vmcs.host_ia32_efer, vmcs.host_rip, vmcs.host_rsp = CR4_VMXE, 0, HOST_RIP, 0x7000
    assert world.do("vmlaunch") == Status.JUMP and world.result() == "succeed"
    assert cpu.non_root == 1 and cpu.rip == GUEST_RIP and cpu.code_mode == 1
    cpu.gpr[RAX] = 7
    assert world.execute(CODES["vmcall"]) == Status.EXIT
    assert cpu.rip == HOST_RIP and cpu.gpr[4] == 0x7000 and cpu.code_mode == 1 and cpu.long_mode == 0
    assert cpu.gpr[RAX] == 7 and vmcs.exit_reason == 18 and vmcs.guest_rip == GUEST_RIP
    assert cpu.cr4 == CR4_VMXE and cpu.paging_mode == 1 and world.rflags == 2


def test_a_64_bit_host_size_needs_ia32e_mode():
    world = Root("protected32")
    world.build_vmcs()
    world.do("vmlaunch")
    assert world.result() == 8

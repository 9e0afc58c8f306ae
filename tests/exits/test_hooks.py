"""Hooks on VM exits, and the VMCS and registers that they and other users see."""

import pytest

from tests.exits.guests import code_of, machine, run
from tests.exits.rows import CODE
from vmx import ExitReason as R
from vmx import Machine, MachineConfig
from vmx.virt.fields import FIELDS, VmcsFieldError


def test_hooks_by_reason_and_for_all(tmp_path):
    built = machine("cpuid_twice", tmp_path)
    by_reason, general = [], []
    built.on_exit(lambda exit: by_reason.append(exit.reason), R.CPUID)
    remove = built.on_exit(lambda exit: general.append((R(exit.reason), exit.guest_rip, exit.length)))
    run(built, "cpuid_twice")
    assert by_reason == [R.CPUID] * 2
    assert [reason for reason, *_ in general] == [R.CPUID, R.CPUID, R.IO_INSTRUCTION]
    assert general[0][2] == 2 and general[2][1] == CODE + code_of("cpuid_twice")["finish"]
    remove()
    assert built.hypervisor.hooks[None] == []


def test_a_true_answer_replaces_the_handler(tmp_path):
    built = machine("cpuid_twice", tmp_path)

    def answer(exit):
        if exit.cpu.gpr(0) & 0xFFFF_FFFF != 1:
            return False
        for number, value in enumerate((0x1111, 0x2222, 0x3333, 0x4444)):
            exit.cpu.set_gpr(number, value)
        exit.cpu.skip_instruction()
        return True

    built.on_exit(answer, R.CPUID)
    registers = run(built, "cpuid_twice").registers
    assert [registers[name] for name in ("rax", "rcx", "rdx", "rbx")] == [0x1111, 0x2222, 0x3333, 0x4444]


def test_hooks_read_and_write_registers_and_fields(tmp_path):
    built = machine("cpuid_twice", tmp_path)
    seen = []

    def hook(exit):
        registers = exit.cpu.registers
        seen.append((registers["rip"], registers["cs"], registers["r12"], registers["rsp"]))
        assert registers["rip"] == exit.cpu.read("guest_rip") == exit.cpu.fields()["guest_rip"]
        exit.cpu.set_register("r12", 0x77)
        exit.cpu.write("guest_rsp", 0x6000)
        exit.cpu.set_register("rflags", exit.cpu.read("guest_rflags") | 1)

    remove = built.on_exit(hook, R.CPUID)
    outcome = run(built, "cpuid_twice")
    remove()
    assert [each[1:] for each in seen] == [(0x10, 0x11, 0x7000), (0x10, 0x77, 0x6000)]
    assert outcome.registers["r12"] == 0x77 and outcome.registers["rsp"] == 0x6000
    assert built.vmcs().read("guest_rflags") & 1


def test_an_error_in_a_hook_reaches_the_user(tmp_path):
    built = machine("cpuid_twice", tmp_path)
    built.on_exit(lambda exit: exit.cpu.read("guest_ripp"), R.CPUID)
    with pytest.raises(VmcsFieldError, match="did you mean 'guest_rip'"):
        built.run()


def test_fields_by_name_and_encoding(tmp_path):
    cpu = machine("read_cr0", tmp_path).vmcs()
    assert cpu.read(0x681E) == cpu.read("guest_rip") == CODE
    cpu.write(0x2010, 0x1_2345_6789)
    assert cpu.read(0x2011) == 1
    cpu.write(0x2011, 2)
    assert cpu.read(0x2010) == 0x2_2345_6789
    cpu.write("guest_cs_limit", 0x1_FFFF_FFFF)
    assert cpu.read("guest_cs_limit") == 0xFFFF_FFFF
    assert len(cpu.fields()) == len(FIELDS)
    with pytest.raises(VmcsFieldError, match="read-only"):
        cpu.write("exit_reason", 1)
    with pytest.raises(VmcsFieldError, match="no field"):
        cpu.write("guest_rpi", 1)


def test_registers_of_a_guest_that_was_stopped_while_it_ran(tmp_path):
    built = machine("wait", tmp_path)
    built.run(max_instructions=5)
    registers = built.vmcs().registers
    assert registers["rip"] == built.inspect().registers["rip"] != built.vmcs().read("guest_rip")
    assert registers["cs"] == 0x10 and registers["fs_base"] == 0
    built.vmcs().set_register("r14", 1)
    with pytest.raises(KeyError, match="cr0"):
        built.vmcs().set_register("cr0", 1)
    assert run(built, "wait").stop == "DEBUG_EXIT"


def test_port_and_msr_interception_by_call(tmp_path):
    built = machine("read_cr0", tmp_path)
    with pytest.raises(ValueError, match="always exits"):
        built.hypervisor.intercept_msr(0x4000_0000)


def test_a_bare_machine_has_no_exits(tmp_path):
    bare = Machine(MachineConfig(guest="hello", bare=True))
    with pytest.raises(RuntimeError, match="bare"):
        bare.vmcs()
    with pytest.raises(RuntimeError, match="bare"):
        bare.on_exit(lambda exit: None)

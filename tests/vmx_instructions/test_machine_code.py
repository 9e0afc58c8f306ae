"""Whole machines: a hypervisor in machine code (hypervisor.S), and what a guest sees with and without `vmx`."""

from pathlib import Path

import numpy as np
import pytest

from tests.machine.world import run_flat
from vmx import Machine, MachineConfig
from vmx.errors import ConfigurationError
from vmx.state.memory import host_address
from vmx.virt.controls import ACTIVATE_VMX_PREEMPTION_TIMER, EXTERNAL_INTERRUPT_EXITING, HLT_EXITING
from vmx.virt.fields import VMCS
from vmx.virt.reasons import ExitReason

HYPERVISOR = Path(__file__).with_name("hypervisor.bin").read_bytes()
VMCS_REGION, EPT_PDPT, COUNTS, ROUNDS = 0x2_1000, 0x2_3000, 0x2_4000, 3
NO_VMX, UNEXPECTED_EXIT = 0x60, 0x72  # what hypervisor.S leaves with
CR4_VMXE_THEN_LEAVE = bytes.fromhex("0f20e0 0fbae80d 0f22e0 b007 e6f4")  # MOV, BTS, MOV; out 0xF4, 7


def run(tmp_path, **options):
    options = {"bare": True, "vmx": True, "load_mode": "long64", **options}
    return run_flat(tmp_path, HYPERVISOR, limit=100_000, **options)


def test_a_hypervisor_in_machine_code(tmp_path):
    machine, result = run(tmp_path)
    assert result.stop == "DEBUG_EXIT", result.message
    counts = machine.memory.bytes[COUNTS : COUNTS + 256].view("<u4")
    assert {ExitReason(int(i)): int(counts[i]) for i in np.nonzero(counts)[0]} == {
        ExitReason.CPUID: ROUNDS,
        ExitReason.HLT: ROUNDS,
        ExitReason.VMCALL: ROUNDS + 1,
    }
    assert machine.debug_exit_value == 3 * ROUNDS + 1
    cpu = machine.processors[0].view
    assert cpu.vm_exits == 3 * ROUNDS + 1 and cpu.vmx_on == 0 and cpu.non_root == 0


def test_it_runs_the_same_in_single_steps(tmp_path):
    """Limits that cut the run anywhere change nothing."""
    whole, result = run(tmp_path)
    cut = Machine(whole.config)
    step = None
    for size in [1, 2, 3, 7] * 100:
        step = cut.run(max_instructions=size)
        if step.stop != "INSTRUCTION_LIMIT":
            break
    assert (step.stop, step.retired, cut.debug_exit_value) == (
        result.stop,
        result.retired,
        whole.debug_exit_value,
    )


def launched(tmp_path):
    """The machine where its guest has begun to run, and its VMCS: the next VMRESUME takes what is changed in it."""
    machine, _ = run(tmp_path)
    machine = Machine(machine.config)
    while not machine.processors[0].view.non_root:
        machine.run(max_instructions=1)
    return machine, VMCS.view(host_address(machine.memory.bytes) + VMCS_REGION)


def count(machine, reason):
    return int(machine.memory.bytes[COUNTS : COUNTS + 256].view("<u4")[reason])


def test_the_timer_wakes_a_halted_guest(tmp_path):
    """HLT without an exit and with interrupts off: the VMX-preemption timer goes on counting in HLT."""
    machine, vmcs = launched(tmp_path)
    vmcs.primary_controls &= ~HLT_EXITING
    vmcs.pin_based_controls |= ACTIVATE_VMX_PREEMPTION_TIMER
    vmcs.vmx_preemption_timer_value = 100_000
    start = machine.virtual_ns
    machine.run(max_instructions=10_000)
    assert machine.debug_exit_value == UNEXPECTED_EXIT
    assert (
        count(machine, ExitReason.VMX_PREEMPTION_TIMER_EXPIRED) == 1 and count(machine, ExitReason.HLT) == 0
    )
    assert vmcs.guest_activity_state == 1
    assert machine.virtual_ns - start >= 100_000 * 32  # ticks of the TSC, which has 1 GHz


def test_an_external_interrupt_exits_whatever_if_is(tmp_path):
    machine, vmcs = launched(tmp_path)
    vmcs.pin_based_controls |= EXTERNAL_INTERRUPT_EXITING
    cpu = machine.processors[0].view
    while not (cpu.non_root and cpu.pin_controls & EXTERNAL_INTERRUPT_EXITING):
        machine.run(max_instructions=1)
    cpu.intr_pin = cpu.attention = 1
    machine.run(max_instructions=10_000)
    assert machine.debug_exit_value == UNEXPECTED_EXIT and count(machine, ExitReason.EXTERNAL_INTERRUPT) == 1


def test_an_event_is_injected(tmp_path):
    """#UD through a guest IDT with limit 0 ends in a triple fault, which exits."""
    machine, vmcs = launched(tmp_path)
    while machine.processors[0].view.non_root:  # the first exit clears the valid bit
        machine.run(max_instructions=1)
    vmcs.vm_entry_interruption_info = 1 << 31 | 3 << 8 | 6
    machine.run(max_instructions=10_000)
    assert machine.debug_exit_value == UNEXPECTED_EXIT and count(machine, ExitReason.TRIPLE_FAULT) == 1


def test_an_ept_violation(tmp_path):
    """The guest's code is not executable any more."""
    machine, vmcs = launched(tmp_path)
    machine.memory.bytes[EPT_PDPT] &= 0xFB
    machine.run(max_instructions=10_000)
    assert machine.debug_exit_value == UNEXPECTED_EXIT and count(machine, ExitReason.EPT_VIOLATION) == 1
    assert vmcs.exit_qualification & 4 and vmcs.guest_physical_address == vmcs.guest_rip


def test_a_vmx_abort_says_so(tmp_path):
    machine, vmcs = launched(tmp_path)
    vmcs.vm_exit_msr_load_count = 1  # of the MSR at physical address 0: there is none of that number
    result = machine.run(max_instructions=10_000)
    assert result.stop == "TRIPLE_FAULT" and "VMX abort 4" in result.message
    assert vmcs.abort_indicator == 4


def test_without_vmx_cpuid_does_not_report_it(tmp_path):
    machine, result = run(tmp_path, vmx=False)
    assert result.stop == "DEBUG_EXIT" and machine.debug_exit_value == NO_VMX


@pytest.mark.parametrize("vmx, stop", [(True, "DEBUG_EXIT"), (False, "TRIPLE_FAULT")])
def test_cr4_vmxe_needs_vmx(tmp_path, vmx, stop):
    code = CR4_VMXE_THEN_LEAVE
    _, result = run_flat(tmp_path, code, bare=True, vmx=vmx, load_mode="long64")
    assert result.stop == stop


def test_vmx_needs_a_bare_machine():
    with pytest.raises(ConfigurationError, match="vmx = true needs bare = true"):
        MachineConfig(vmx=True)
    with pytest.raises(ConfigurationError, match="vmx = 'yes'"):
        MachineConfig(vmx="yes", bare=True)

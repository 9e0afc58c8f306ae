"""Whole machines: a hypervisor in machine code (hypervisor.S), and what a guest sees with and without `vmx`."""

from pathlib import Path

import numpy as np
import pytest

from tests.machine.world import run_flat
from vmx import Machine, MachineConfig
from vmx.errors import ConfigurationError
from vmx.virt.reasons import ExitReason

HYPERVISOR = Path(__file__).with_name("hypervisor.bin").read_bytes()
VMCS_REGION, COUNTS, ROUNDS = 0x2_1000, 0x2_4000, 3
NO_VMX = 0x60  # hypervisor.S: CPUID does not report VMX
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

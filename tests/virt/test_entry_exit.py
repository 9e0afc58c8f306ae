"""VM entry and VM exit: what is loaded, saved, staged and cleared."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.virt.vmx_bench import RAM, Bench, guest_states, rflags_of
from vmx.state.bits import signed, unsigned
from vmx.state.processor import (
    CR0_CD,
    CR0_NW,
    EFER_LMA,
    FLAG_IF,
    FLAG_RF,
    FLAG_TF,
    Status,
    Stop,
)
from vmx.virt.exit import vm_exit
from vmx.virt.fields import BY_NAME, vmread
from vmx.virt.reasons import ExitReason
from vmx.virt.setup import HOST_RIP

GUEST_FIELDS = [name for name, field in BY_NAME.items() if field.type == "guest"]
CPUID, HLT, EPT_VIOLATION = int(ExitReason.CPUID), int(ExitReason.HLT), int(ExitReason.EPT_VIOLATION)
VALID = 1 << 31


def guest_area(bench):
    return {name: vmread(bench.region, name) for name in GUEST_FIELDS}


@pytest.mark.parametrize("mode", guest_states())
def test_entry_then_exit_keeps_the_guest_state(mode):
    bench = Bench(mode)
    bench.set(guest_ia32_sysenter_cs=0x10, guest_ia32_sysenter_esp=-1, guest_ia32_sysenter_eip=0x1234)
    bench.set(guest_fs_base=-(1 << 40), guest_gs_base=0x7FFF_0000_0000, guest_rflags=0xED7 | FLAG_IF)
    bench.set(guest_interruptibility_state=9, guest_pending_debug_exceptions=0x1003, guest_rsp=-8)
    bench.set(guest_pdpte0=0x5001, guest_pdpte3=0x6001)
    before, controls = guest_area(bench), bench.vmcs.vm_entry_controls
    assert bench.enter() == 0
    assert vm_exit(bench.cpu, CPUID, 0) == Status.EXIT
    after = guest_area(bench)
    after["guest_pending_debug_exceptions"] = before[
        "guest_pending_debug_exceptions"
    ]  # see the test of BS below
    assert after == before
    assert bench.vmcs.vm_entry_controls == controls
    assert bench.enter() == 0


def test_entry_loads_the_processor():
    bench = Bench("long64")
    cpu = bench.cpu
    cpu.cr0 = CR0_CD | CR0_NW
    bench.set(guest_dr7=0xFFFF_FFFF, guest_rflags=0x2 | FLAG_IF, guest_rsp=0x8000, tsc_offset=5)
    assert bench.enter() == 0
    assert cpu.non_root == 1 and cpu.attention == 1 and cpu.vpid == 1 and cpu.tsc_offset == 0
    assert cpu.cr0 & (CR0_CD | CR0_NW) == CR0_CD | CR0_NW  # VM entry does not change them
    assert cpu.dr[7] == 0xFFFF_27FF
    assert cpu.long_mode == 1 and cpu.code_mode == 2 and cpu.paging_mode == 3 and cpu.cpl == 0
    assert cpu.rip == cpu.next_rip == 0x10000 and cpu.gpr[4] == 0x8000 and rflags_of(cpu) == 0x202
    assert cpu.eptp == bench.vmcs.eptp and cpu.primary_controls == bench.vmcs.primary_controls


def test_exit_loads_the_host():
    bench = Bench("real")
    assert bench.enter() == 0
    cpu = bench.cpu
    assert vm_exit(cpu, HLT, 0) == Status.EXIT
    assert cpu.non_root == cpu.primary_controls == cpu.secondary_controls == cpu.pin_controls == 0
    assert cpu.eptp == cpu.vpid == cpu.exception_bitmap == 0 and cpu.preemption_deadline == -1
    assert unsigned(cpu.rip) == HOST_RIP and rflags_of(cpu) == 2
    assert cpu.long_mode == 1 and cpu.code_mode == 2 and cpu.efer & EFER_LMA
    assert cpu.stop == Stop.VM_EXIT and cpu.vm_exits == 1 and cpu.dr[7] == 0x400
    assert cpu.segments[1].selector == 8 and cpu.segments[4].access >> 16 & 1 == 1  # FS: null selector
    assert bench.vmcs.exit_reason == HLT


def test_exit_information_is_staged_and_cleared():
    bench = Bench()
    bench.enter()
    cpu, vmcs = bench.cpu, bench.vmcs
    cpu.exit_length, cpu.exit_instruction_info = 3, 0x77
    cpu.exit_interruption_info, cpu.exit_interruption_error = VALID | 3 << 8 | 1 << 11 | 14, 6
    cpu.exit_linear, cpu.exit_physical = -4096, 0x123000
    cpu.vectoring_info, cpu.vectoring_error = VALID | 3 << 8 | 1 << 11 | 13, 0x18
    vm_exit(cpu, 0, signed(0xFFFF_8000_0000_0000))
    assert (vmcs.vm_exit_instruction_length, vmcs.vm_exit_instruction_info) == (3, 0x77)
    assert vmcs.vm_exit_interruption_info == VALID | 0xB0E and vmcs.vm_exit_interruption_error_code == 6
    assert (vmcs.guest_linear_address, vmcs.guest_physical_address) == (-4096, 0x123000)
    assert vmcs.idt_vectoring_info == VALID | 0xB0D and vmcs.idt_vectoring_error_code == 0x18
    assert unsigned(vmcs.exit_qualification) == 0xFFFF_8000_0000_0000
    staged = "length instruction_info interruption_info interruption_error linear physical".split()
    assert all(getattr(cpu, f"exit_{name}") == 0 for name in staged)
    assert cpu.vectoring_info == cpu.vectoring_error == 0


@pytest.mark.parametrize(
    ("reason", "info"), [(int(ExitReason.TRIPLE_FAULT), 0), (0, VALID | 3 << 8 | 1 << 11 | 8)]
)
def test_double_and_triple_faults_have_no_vectoring_information(reason, info):
    bench = Bench()
    bench.enter()
    bench.cpu.vectoring_info, bench.cpu.exit_interruption_info = VALID | 0xB0E, info
    vm_exit(bench.cpu, reason, 0)
    assert bench.vmcs.idt_vectoring_info == 0


@pytest.mark.parametrize(
    ("reason", "info", "vectoring", "before", "after"),
    [
        (CPUID, 0, 0, 1, 0),  # instructions that exit
        (0, VALID | 3 << 8 | 14, 0, 0, 1),  # faults
        (0, VALID | 3 << 8 | 1, 0, 0, 0),  # #DB
        (0, VALID | 6 << 8 | 3, 0, 0, 0),  # INT3
        (int(ExitReason.EXTERNAL_INTERRUPT), 0, 0, 1, 1),
        (EPT_VIOLATION, 0, 0, 0, 1),
        (EPT_VIOLATION, 0, VALID | 0x20, 0, 0),
        (int(ExitReason.XSETBV), 0, 0, 1, 0),
        (int(ExitReason.WRMSRNS), 0, 0, 1, 0),
    ],
)
def test_saved_rf(reason, info, vectoring, before, after):
    bench = Bench()
    bench.enter()
    cpu = bench.cpu
    cpu.rflags |= FLAG_RF if before else 0
    cpu.exit_interruption_info, cpu.vectoring_info = info, vectoring
    vm_exit(cpu, reason, 0)
    assert bool(bench.vmcs.guest_rflags & FLAG_RF) == after


def test_pending_single_step_is_told_while_events_are_blocked():
    bench = Bench()
    bench.enter()
    bench.cpu.rflags |= FLAG_TF
    bench.cpu.shadow = 2
    vm_exit(bench.cpu, CPUID, 0)
    assert bench.vmcs.guest_pending_debug_exceptions == 1 << 14
    assert bench.enter() == 0


def test_nmi_exit_blocks_nmis_in_the_host_only():
    bench = Bench()
    bench.enter()
    bench.cpu.exit_interruption_info = VALID | 2 << 8 | 2
    vm_exit(bench.cpu, 0, 0)
    assert bench.vmcs.guest_interruptibility_state == 0 and bench.cpu.shadow == 8


def test_injection_is_staged_and_its_valid_bit_cleared_by_the_exit():
    bench = Bench()
    bench.set(vm_entry_interruption_info=VALID | 4 << 8 | 0x80, vm_entry_instruction_length=2)
    bench.set(guest_pending_debug_exceptions=1)
    assert bench.enter() == 0
    cpu = bench.cpu
    assert cpu.has_injected == 1 and cpu.vectoring_info == VALID | 0x480 and cpu.exit_length == 2
    assert cpu.pending_debug == 0
    vm_exit(cpu, EPT_VIOLATION, 0)
    assert bench.vmcs.idt_vectoring_info == VALID | 0x480
    assert bench.vmcs.vm_entry_interruption_info == 0x480 and cpu.has_injected == 0


def test_injection_wakes_a_halted_guest():
    bench = Bench()
    bench.set(guest_activity_state=1)
    assert bench.enter() == 0 and bench.cpu.activity == 1
    vm_exit(bench.cpu, 1, 0)
    assert bench.vmcs.guest_activity_state == 1 and bench.cpu.activity == 0
    bench.set(vm_entry_interruption_info=VALID | 0x20, guest_rflags=2 | FLAG_IF)
    assert bench.enter() == 0 and bench.cpu.activity == 0


def msr_list(bench, address, *entries):
    for i, (index, value) in enumerate(entries):
        words = bench.ram[address + 16 * i :][:16].view("u8")
        words[:] = index, value


def test_msr_areas():
    bench = Bench()
    msr_list(bench, 0x3000, (0xC0000081, 1 << 63), (0xC0000102, 0xFFFF_8000_0000_0000))
    msr_list(bench, 0x4000, (0xC0000081, 0))
    msr_list(bench, 0x5000, (0xC0000081, 7))
    bench.set(vm_entry_msr_load_address=0x3000, vm_entry_msr_load_count=2)
    bench.set(vm_exit_msr_store_address=0x4000, vm_exit_msr_store_count=1)
    bench.set(vm_exit_msr_load_address=0x5000, vm_exit_msr_load_count=1)
    assert bench.enter() == 0
    assert unsigned(bench.cpu.star) == 1 << 63 and bench.cpu.kernel_gs_base == -(1 << 47)
    assert vm_exit(bench.cpu, CPUID, 0) == Status.EXIT
    assert bench.ram[0x4008:0x4010].view("u8")[0] == 1 << 63 and bench.cpu.star == 7


@pytest.mark.parametrize(
    "entry", [(0xC0000100, 0), (0xC0000082, 1 << 47), (0x802, 0), (1 << 32 | 0xC0000081, 0), (0x277, 2)]
)
def test_msr_that_cannot_be_loaded_fails_the_entry(entry):
    bench = Bench()
    msr_list(bench, 0x3000, (0xC0000081, 1), entry)
    bench.set(vm_entry_msr_load_address=0x3000, vm_entry_msr_load_count=2)
    assert bench.enter() == 34
    assert bench.vmcs.exit_reason == 34 | 1 << 31 and bench.vmcs.exit_qualification == 2
    assert bench.cpu.non_root == 0 and unsigned(bench.cpu.rip) == HOST_RIP


def test_msr_area_outside_ram_aborts_the_exit():
    bench = Bench()
    bench.set(vm_exit_msr_store_address=RAM, vm_exit_msr_store_count=1)
    assert bench.enter() == 0
    assert vm_exit(bench.cpu, CPUID, 0) == Status.STOP
    assert bench.cpu.stop == Stop.SHUTDOWN and bench.vmcs.abort_indicator == 1


def test_pae_guest_without_ept_reads_its_pdptes():
    bench = Bench("pae32", controls={"ENABLE_EPT": False, "UNRESTRICTED_GUEST": False})
    bench.ram[0x2000:0x2008].view("u8")[0] = 0x7001
    assert bench.enter() == 0 and bench.cpu.pdpte[0] == 0x7001


def test_preemption_timer():
    on = {"ACTIVATE_VMX_PREEMPTION_TIMER": True, "SAVE_VMX_PREEMPTION_TIMER": True}
    bench = Bench(controls=on)
    bench.cpu.retired = 1000
    bench.set(vmx_preemption_timer_value=100)  # 3200 ticks of 1 ns, 16 ns per instruction
    assert bench.enter() == 0 and bench.cpu.preemption_deadline == 1200
    bench.cpu.retired = 1050
    vm_exit(bench.cpu, CPUID, 0)
    assert bench.vmcs.vmx_preemption_timer_value == 75
    bench.enter()
    bench.cpu.retired = 5000
    vm_exit(bench.cpu, CPUID, 0)
    assert bench.vmcs.vmx_preemption_timer_value == 0


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 10_000_000), st.integers(1, 1000))
@example(2**32 - 1, 10_000_000, 1000)
@example(2**32 - 1, 1, 1)
def test_preemption_timer_keeps_its_value(value, khz, ns):
    on = {"ACTIVATE_VMX_PREEMPTION_TIMER": True, "SAVE_VMX_PREEMPTION_TIMER": True}
    bench = Bench(controls=on)
    bench.cpu.tsc_khz, bench.cpu.ns_per_instruction = khz, ns
    bench.set(vmx_preemption_timer_value=value)
    assert bench.enter() == 0
    vm_exit(bench.cpu, CPUID, 0)
    per_instruction = ns * khz // 1_000_000 // 32 + 2  # one instruction's ticks is the resolution
    assert value <= bench.vmcs.vmx_preemption_timer_value + 1
    assert bench.vmcs.vmx_preemption_timer_value <= min(value + per_instruction, 2**32 - 1)


def test_failed_entry_leaves_the_injection_and_the_guest_alone():
    bench = Bench()
    bench.set(vm_entry_interruption_info=VALID | 0x20, guest_rflags=2)
    before = guest_area(bench)
    assert bench.enter() == 33
    assert guest_area(bench) == before and bench.vmcs.vm_entry_interruption_info == VALID | 0x20


def test_vpid_off_forgets_translations_on_both_ways():
    bench = Bench(controls={"ENABLE_VPID": False})
    assert bench.enter() == 0 and bench.cpu.vpid == 0
    inside = bench.cpu.tlb_context
    vm_exit(bench.cpu, CPUID, 0)
    bench.enter()
    assert bench.cpu.tlb_context != inside
    tagged = Bench()
    tagged.enter()
    inside = tagged.cpu.tlb_context
    vm_exit(tagged.cpu, CPUID, 0)
    assert tagged.cpu.tlb_context != inside
    tagged.enter()
    assert tagged.cpu.tlb_context == inside

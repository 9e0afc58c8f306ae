"""Events that exit, and what the hypervisor does between an exit and the next entry."""

import pytest

from tests.exits.guests import code_of, machine, run
from tests.exits.rows import CODE, INTERRUPT_VECTOR, TS, interrupt_at
from vmx import ExitReason as R
from vmx.errors import ConfigurationError, EntryFailureError
from vmx.virt.capability import allowed
from vmx.virt.controls import WORDS, find_control
from vmx.virt.preemption import ns_to_expiry, time_passed

RAM_PAGE = 0x20_0000
# They belong to the address space of the host, or stand on each other.
NEEDED_BY_OTHERS = {
    *("ENABLE_EPT", "UNRESTRICTED_GUEST", "ACTIVATE_SECONDARY_CONTROLS", "HOST_ADDRESS_SPACE_SIZE"),
    "SAVE_VMX_PREEMPTION_TIMER",
}
NS = 16  # virtual time of an instruction


def reasons(outcome):
    return [R(int(reason)) for reason in outcome.exits["reason"]]


@pytest.mark.parametrize("acknowledge", [False, True])
def test_external_interrupt(tmp_path, acknowledge):
    on = machine("wait", tmp_path, controls={"ACKNOWLEDGE_INTERRUPT_ON_EXIT": acknowledge})
    interrupt_at(100 * NS)(on)
    on = run(on, "wait")
    assert reasons(on) == [R.EXTERNAL_INTERRUPT]
    information = 1 << 31 | INTERRUPT_VECTOR if acknowledge else 0
    assert int(on.exits[0]["interruption_info"]) == information
    assert int(on.exits[0]["retired"]) == 100
    off = machine("wait", tmp_path, controls={"EXTERNAL_INTERRUPT_EXITING": False})
    interrupt_at(100 * NS)(off)
    off = run(off, "wait")
    assert reasons(off) == []
    assert on.registers == off.registers and on.handled == off.handled
    assert on.registers["r14"] == INTERRUPT_VECTOR


@pytest.mark.parametrize("acknowledge", [False, True])
def test_an_interrupt_waits_for_its_window(tmp_path, acknowledge):
    built = machine("window", tmp_path, controls={"ACKNOWLEDGE_INTERRUPT_ON_EXIT": acknowledge})
    interrupt_at(0)(built)
    outcome = run(built, "window")
    assert reasons(outcome) == [R.EXTERNAL_INTERRUPT, R.INTERRUPT_WINDOW]
    assert int(outcome.exits[1]["guest_rip"]) == CODE + code_of("window")["exit"] - 1  # one behind the shadow
    assert outcome.registers["r14"] == INTERRUPT_VECTOR


def test_interrupt_window_exiting_alone(tmp_path):
    outcome = run(machine("window", tmp_path, controls={"INTERRUPT_WINDOW_EXITING": True}), "window")
    assert reasons(outcome) == [R.INTERRUPT_WINDOW]
    assert int(outcome.exits[0]["guest_rip"]) == CODE + code_of("window")["exit"] - 1
    assert outcome.handled == []


def test_preemption_timer_slices(tmp_path):
    slice_ = {"preemption_timer": 50}  # 50 * 32 ticks of 1 ns: 100 instructions
    on = run(machine("spin", tmp_path, controls={"ACTIVATE_VMX_PREEMPTION_TIMER": True}, **slice_), "spin")
    assert reasons(on) == [R.VMX_PREEMPTION_TIMER_EXPIRED] * 4
    assert on.exits["retired"].tolist() == [100, 200, 300, 400]
    off = run(machine("spin", tmp_path, **slice_), "spin")
    assert reasons(off) == []
    assert on.registers == off.registers


def test_preemption_timer_goes_on_over_other_exits_when_it_is_saved(tmp_path):
    controls = {"ACTIVATE_VMX_PREEMPTION_TIMER": True, "SAVE_VMX_PREEMPTION_TIMER": True}
    built = machine("spin", tmp_path, controls=controls, preemption_timer=50, exception_bitmap=0)
    left = []
    built.on_exit(lambda exit: left.append(exit.cpu.read("vmx_preemption_timer_value")))
    run(built, "spin")
    assert left[:4] == [0, 0, 0, 0]
    assert 0 < left[4] < 50  # at the final OUT


def test_time_that_passes_in_hlt_counts_on_the_preemption_timer(tmp_path):
    built = machine("spin", tmp_path, controls={"ACTIVATE_VMX_PREEMPTION_TIMER": True}, preemption_timer=50)
    view = built.processors[0].view
    assert ns_to_expiry(view) == 100 * NS
    time_passed(view, 60 * NS)
    assert ns_to_expiry(view) == 40 * NS
    time_passed(view, 1000 * NS)
    assert ns_to_expiry(view) == 0
    outcome = run(built, "spin")
    assert outcome.exits["retired"].tolist()[:2] == [0, 100]


def test_no_timer_no_expiry(tmp_path):
    view = machine("spin", tmp_path).processors[0].view
    time_passed(view, 1000)
    assert ns_to_expiry(view) is None


def test_an_interrupt_ends_hlt_without_hlt_exiting(tmp_path):
    built = machine("halt_loop", tmp_path, controls={"HLT_EXITING": False})
    interrupt_at(1_000_000)(built)
    outcome = run(built, "halt_loop")
    assert reasons(outcome) == [R.EXTERNAL_INTERRUPT]
    assert outcome.registers["r14"] == INTERRUPT_VECTOR


def test_triple_fault(tmp_path):
    outcome = run(machine("triple", tmp_path), "triple")
    assert outcome.stop == "TRIPLE_FAULT" and "ud2" in outcome.message.lower()
    assert reasons(outcome) == [R.TRIPLE_FAULT]


def test_a_triple_fault_through_intercepted_exceptions(tmp_path):
    outcome = run(machine("triple", tmp_path, exception_bitmap=1 << 6 | 1 << 8 | 1 << 13), "triple")
    assert outcome.stop == "TRIPLE_FAULT"
    assert [int(each) & 0xFF for each in outcome.exits["interruption_info"]] == [6, 13, 13, 13]


# --- control registers --------------------------------------------------------------------------------------


def test_read_shadows_are_what_the_guest_sees(tmp_path):
    built = machine("read_cr0", tmp_path)
    cpu = built.vmcs()
    cpu.write("cr0_guest_host_mask", TS | 1 << 5)
    cpu.write("cr0_read_shadow", TS)
    cpu.write("cr4_guest_host_mask", 1 << 13 | 1 << 2)
    cpu.write("cr4_read_shadow", 1 << 2)
    outcome = run(built, "read_cr0")
    assert reasons(outcome) == []
    assert outcome.registers["rax"] == 0x8000_0019 and outcome.registers["rbx"] == 0x24
    assert outcome.registers["rcx"] == 0x8000_0019
    assert outcome.registers["cr0"] == 0x8000_0031


@pytest.mark.parametrize("count, exits", [(0, 1), (1, 0)])
def test_cr3_target_values(tmp_path, count, exits):
    built = machine("write_cr3", tmp_path, controls={"CR3_LOAD_EXITING": True})
    built.vmcs().write("cr3_target_count", count)
    built.vmcs().write("cr3_target_value_0", int(built.processors[0].state["cr3"]))
    assert len(reasons(run(built, "write_cr3"))) == exits


def test_a_single_step_trap_follows_an_emulated_instruction(tmp_path):
    outcome = run(machine("cpuid_in_trap_mode", tmp_path), "cpuid_in_trap_mode")
    assert reasons(outcome) == [R.CPUID]
    behind = int(outcome.exits[0]["guest_rip"]) + 2
    assert [entry[0] for entry in outcome.handled] == [1] * 4
    assert outcome.handled[0][2] == behind


def test_instructions_without_their_enabling_control_are_undefined_and_not_reported(tmp_path):
    built = machine("undefined_rdtscp", tmp_path, controls={"ENABLE_RDTSCP": False})
    outcome = run(built, "undefined_rdtscp")
    assert [entry[0] for entry in outcome.handled] == [6]
    assert not outcome.registers["rdx"] & 1 << 27


# --- EPT ----------------------------------------------------------------------------------------------------


def _set_ept(built, value):
    table, index = built.hypervisor.allocator.ept_entry(RAM_PAGE)
    old = int(table[index])
    table[index] = value(old)
    built.hypervisor.flush(built.vmcs())
    return old


@pytest.mark.parametrize("rights, qualifications", [(0, [0x181]), (1, [0x18A]), (5, [0x1AA])])
def test_ept_violation_in_ram_is_served_by_a_hook(tmp_path, rights, qualifications):
    built = machine("touch_ram", tmp_path)
    built.memory.write(RAM_PAGE, (41).to_bytes(8, "little"))
    old = _set_ept(built, lambda entry: entry & ~7 | rights)
    seen = []

    def serve(exit):
        seen.append((exit.qualification, exit.cpu.read("guest_physical_address")))
        _set_ept(built, lambda entry: old)
        return True

    built.on_exit(serve, R.EPT_VIOLATION)
    outcome = run(built, "touch_ram")
    assert outcome.stop == "DEBUG_EXIT", outcome.message
    assert seen == [(q, RAM_PAGE) for q in qualifications]
    assert int.from_bytes(built.memory.read(RAM_PAGE, 8), "little") == 42


def test_ept_violation_in_ram_without_a_hook_stops(tmp_path):
    built = machine("touch_ram", tmp_path)
    _set_ept(built, lambda entry: 0)
    outcome = run(built, "touch_ram")
    assert outcome.stop == "NOT_MODELLED" and hex(RAM_PAGE) in outcome.message


def test_ept_misconfiguration(tmp_path):
    built = machine("touch_ram", tmp_path)
    _set_ept(built, lambda entry: entry & ~7 | 2)  # writable, not readable
    outcome = run(built, "touch_ram")
    assert outcome.stop == "ERROR" and "misconfiguration" in outcome.message
    assert reasons(outcome) == [R.EPT_MISCONFIGURATION]
    assert int(outcome.exits[0]["guest_physical"]) == RAM_PAGE
    assert int(outcome.exits[0]["qualification"]) == 0


# --- configuration ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["HLT_EXITING", "hlt_exiting", "HLT_VMEXIT", "proc1.HLT_VMEXIT"])
def test_any_spelling_of_a_control(tmp_path, name):
    built = machine("read_cr0", tmp_path, controls={name: False})
    assert not built.vmcs().read("primary_controls") & 1 << 7


@pytest.mark.parametrize(
    "controls, words",
    [
        ({"HLT_EXITING": True, "HLT_VMEXIT": False}, "are the same VMX control HLT_EXITING"),
        ({"ENABLE_PML": True}, "ENABLE_PML cannot be 1"),
        ({"proc3.LOADIWKEY_VMEXIT": True}, "does not model that control word"),
        ({"HLT_EXITTING": True}, "did you mean"),
    ],
)
def test_a_choice_that_cannot_be_is_one_message(tmp_path, controls, words):
    with pytest.raises(ConfigurationError, match=words):
        machine("read_cr0", tmp_path, controls=controls)


def _switchable():
    for key, word in WORDS.items():
        must, may = allowed(key)
        yield from (name for name, bit in word.names.items() if may & bit and not must & bit)


@pytest.mark.parametrize("name", _switchable())
def test_every_control_switched_works_or_names_the_violated_check(tmp_path, name):
    """The other controls keep their defaults; those that some other control needs are refused by VM entry."""
    field, bit = find_control(name)[0].field, find_control(name)[1]
    on = machine("cpuid_twice", tmp_path).vmcs().read(field) & bit
    try:
        built = machine("cpuid_twice", tmp_path, controls={name: not on})
    except EntryFailureError as error:
        assert "VM entry failed: " in str(error) and "check " in str(error)
        assert name in NEEDED_BY_OTHERS
        return
    outcome = run(built, "cpuid_twice")
    assert outcome.stop == "DEBUG_EXIT"
    assert reasons(outcome).count(R.CPUID) == 2

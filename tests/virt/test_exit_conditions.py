"""Each exit condition, with its control on and off, and never in root operation."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.virt.vmx_bench import RAM, Bench
from vmx.state.bits import signed, unsigned
from vmx.state.processor import CR0_PE, CR0_PG, CR0_TS, CR4_VMXE, PROCESSOR
from vmx.state.unit import unit
from vmx.virt import conditions as k
from vmx.virt.controls import WORDS, control_names
from vmx.virt.setup import DEFAULT_CONTROLS

BITMAP_A, BITMAP_B, MSR_BITMAPS = 0x3000, 0x4000, 0x5000


BY_BIT = {  # condition -> its control
    "mov_from_cr3_exits": "CR3_STORE_EXITING",
    "cr8_load_exits": "CR8_LOAD_EXITING",
    "cr8_store_exits": "CR8_STORE_EXITING",
    "mov_dr_exits": "MOV_DR_EXITING",
    "hlt_exits": "HLT_EXITING",
    "invlpg_exits": "INVLPG_EXITING",
    "rdtsc_exits": "RDTSC_EXITING",
    "rdpmc_exits": "RDPMC_EXITING",
    "pause_exits": "PAUSE_EXITING",
    "monitor_exits": "MONITOR_EXITING",
    "mwait_exits": "MWAIT_EXITING",
    "wbinvd_exits": "WBINVD_EXITING",
    "descriptor_table_exiting": "DESCRIPTOR_TABLE_EXITING",
    "external_interrupt_exits": "EXTERNAL_INTERRUPT_EXITING",
    "nmi_exiting": "NMI_EXITING",
    "interrupt_window_exiting": "INTERRUPT_WINDOW_EXITING",
    "acknowledge_on_exit": "ACKNOWLEDGE_INTERRUPT_ON_EXIT",
    "rdtscp_enabled": "ENABLE_RDTSCP",
    "invpcid_enabled": "ENABLE_INVPCID",
}
NAMES = [
    *"mov_from_cr3_exits cr8_load_exits cr8_store_exits mov_dr_exits hlt_exits invlpg_exits".split(),
    *"rdtsc_exits rdpmc_exits pause_exits monitor_exits mwait_exits wbinvd_exits".split(),
    *"descriptor_table_exiting external_interrupt_exits nmi_exiting interrupt_window_exiting".split(),
    *"acknowledge_on_exit rdtscp_enabled invpcid_enabled xsaves_enabled cr0_read cr4_read".split(),
    *"clts_action".split(),
    *"mov_to_cr0 cr0_write_value mov_to_cr4 cr4_write_value mov_to_cr3_exits lmsw_exits".split(),
    *"rdmsr_exits wrmsr_exits".split(),
    *"io_exits exception_exits".split(),
]


@unit(PROCESSOR, "i64", "i64", "i64")
def condition(cpu, which, a, b):
    """One condition by its place in NAMES: compiled conditions cannot be called from Python."""
    if which == 0:
        return k.mov_from_cr3_exits(cpu)
    elif which == 1:
        return k.cr8_load_exits(cpu)
    elif which == 2:
        return k.cr8_store_exits(cpu)
    elif which == 3:
        return k.mov_dr_exits(cpu)
    elif which == 4:
        return k.hlt_exits(cpu)
    elif which == 5:
        return k.invlpg_exits(cpu)
    elif which == 6:
        return k.rdtsc_exits(cpu)
    elif which == 7:
        return k.rdpmc_exits(cpu)
    elif which == 8:
        return k.pause_exits(cpu)
    elif which == 9:
        return k.monitor_exits(cpu)
    elif which == 10:
        return k.mwait_exits(cpu)
    elif which == 11:
        return k.wbinvd_exits(cpu)
    elif which == 12:
        return k.descriptor_table_exiting(cpu)
    elif which == 13:
        return k.external_interrupt_exits(cpu)
    elif which == 14:
        return k.nmi_exiting(cpu)
    elif which == 15:
        return k.interrupt_window_exiting(cpu)
    elif which == 16:
        return k.acknowledge_on_exit(cpu)
    elif which == 17:
        return k.rdtscp_enabled(cpu)
    elif which == 18:
        return k.invpcid_enabled(cpu)
    elif which == 19:
        return k.xsaves_enabled(cpu)
    elif which == 20:
        return k.cr0_read(cpu)
    elif which == 21:
        return k.cr4_read(cpu)
    elif which == 22:
        return k.clts_action(cpu)
    elif which == 23:
        return k.mov_to_cr0(cpu, a)
    elif which == 24:
        return k.cr0_write_value(cpu, a)
    elif which == 25:
        return k.mov_to_cr4(cpu, a)
    elif which == 26:
        return k.cr4_write_value(cpu, a)
    elif which == 27:
        return k.mov_to_cr3_exits(cpu, a)
    elif which == 28:
        return k.lmsw_exits(cpu, a)
    elif which == 29:
        return k.rdmsr_exits(cpu, a)
    elif which == 30:
        return k.wrmsr_exits(cpu, a)
    elif which == 31:
        return k.io_exits(cpu, a, b)
    elif which == 32:
        return k.exception_exits(cpu, a, b)
    return -1


def _ask(which):
    return lambda cpu, a=0, b=0: condition(cpu, which, a, b)


ask = {name: _ask(which) for which, name in enumerate(NAMES)}


@unit(PROCESSOR, "i64", "i64", "i64", "i64", "i64", "i64")
def io_qualification(cpu, size, is_in, string, rep, immediate, port):
    return k.io_qualification(size, is_in, string, rep, immediate, port)


@unit(PROCESSOR, "i64", "i64", "i64", "i64", "i64")
def cr_qualification(cpu, cr, access, gpr, memory, source):
    return k.cr_qualification(cr, access, gpr, memory, source)


@unit(PROCESSOR, "i64", "i64", "i64")
def dr_qualification(cpu, dr, direction, gpr):
    return k.dr_qualification(dr, direction, gpr)


def entered(controls=None, prepare=None, **options):
    bench = Bench("protected32", controls=controls or {}, **options)
    if prepare:
        bench.set(**prepare)
    assert bench.enter() == 0
    return bench


@pytest.mark.parametrize(("name", "control"), BY_BIT.items())
def test_control_on_and_off(name, control):
    assert ask[name](entered({control: True}).cpu) == 1
    assert ask[name](entered({control: False}).cpu) == 0


def test_nothing_exits_in_root_operation():
    cpu = Bench().cpu
    for name in NAMES:
        if name.startswith(("cr0_", "cr4_")) or name.endswith("_enabled"):
            continue
        assert ask[name](cpu, 0xFF, 0xFF) == 0, name
    for name in ("rdtscp_enabled", "invpcid_enabled", "xsaves_enabled"):
        assert ask[name](cpu) == 1
    cpu.cr0, cpu.cr4 = 0x1234, 0x20
    assert ask["cr0_read"](cpu) == 0x1234 and ask["cr4_read"](cpu) == 0x20
    assert ask["cr0_write_value"](cpu, signed(1 << 63)) == signed(1 << 63)


def test_secondary_controls_count_only_when_activated():
    controls = {"ACTIVATE_SECONDARY_CONTROLS": False, "WBINVD_EXITING": True}
    bench = Bench("paged32", eptp=0, controls={"ENABLE_EPT": False, "UNRESTRICTED_GUEST": False} | controls)
    assert bench.enter() == 0
    assert ask["wbinvd_exits"](bench.cpu) == 0 and ask["rdtscp_enabled"](bench.cpu) == 0


U64 = st.one_of(st.integers(0, 2**64 - 1), st.sampled_from([0, 1, 2**63, 2**64 - 1]))
BENCH = entered()


@given(U64, U64, U64, U64)
def test_masks_and_shadows(mask, shadow, real, value):
    cpu = BENCH.cpu
    for register in ("cr0", "cr4"):
        BENCH.set(**{f"{register}_guest_host_mask": mask, f"{register}_read_shadow": shadow})
        setattr(cpu, register, signed(real))
        assert unsigned(ask[f"{register}_read"](cpu)) == real & ~mask | shadow & mask
        assert ask[f"mov_to_{register}"](cpu, signed(value)) == int((value ^ shadow) & mask != 0)
        assert unsigned(ask[f"{register}_write_value"](cpu, signed(value))) == value & ~mask | real & mask


def test_guests_may_write_cr4_without_vmxe_by_default():
    bench = entered()
    assert ask["mov_to_cr4"](bench.cpu, 0x20) == 0
    assert ask["cr4_write_value"](bench.cpu, 0x20) == 0x20 | CR4_VMXE
    assert ask["cr4_read"](bench.cpu) == 0


@pytest.mark.parametrize(("mask", "shadow", "action"), [(0, CR0_TS, 0), (CR0_TS, CR0_TS, 1), (CR0_TS, 0, 2)])
def test_clts(mask, shadow, action):
    bench = entered(prepare={"cr0_guest_host_mask": mask, "cr0_read_shadow": shadow})
    assert ask["clts_action"](bench.cpu) == action


@pytest.mark.parametrize(
    ("mask", "shadow", "value", "exits"),
    [
        (CR0_PE, 0, 1, 1),
        (CR0_PE, 1, 0, 0),  # LMSW cannot clear PE
        (CR0_PE, 1, 1, 0),
        (CR0_TS, 0, CR0_TS, 1),
        (CR0_TS, CR0_TS, 0, 1),
        (0x10, 0x10, 0, 0),  # only bits 3:0 matter
        (CR0_PG, CR0_PG, 0, 0),
    ],
)
def test_lmsw(mask, shadow, value, exits):
    bench = entered(prepare={"cr0_guest_host_mask": mask, "cr0_read_shadow": shadow})
    assert ask["lmsw_exits"](bench.cpu, value) == exits


def test_cr3_targets():
    targets = {f"cr3_target_value_{i}": v for i, v in enumerate((0x1000, 1 << 63, 0x3000, 0x4000))}
    for count in range(5):
        bench = entered({"CR3_LOAD_EXITING": True}, {**targets, "cr3_target_count": count})
        results = [ask["mov_to_cr3_exits"](bench.cpu, signed(v)) for v in (*targets.values(), 0x5000)]
        assert results == [int(i >= count) for i in range(4)] + [1]
    off = entered({"CR3_LOAD_EXITING": False})
    assert ask["mov_to_cr3_exits"](off.cpu, 0x5000) == 0


def test_io_without_bitmaps():
    assert ask["io_exits"](entered().cpu, 0x80, 1) == 1
    assert ask["io_exits"](entered({"UNCONDITIONAL_IO_EXITING": False}).cpu, 0xFFFF, 4) == 0


def test_io_bitmaps_override_the_unconditional_control():
    bench = entered({"UNCONDITIONAL_IO_EXITING": True}, io_bitmaps=(BITMAP_A, BITMAP_B))
    for port in (0x80, 0x7FFF, 0x8001):
        base = BITMAP_B if port & 0x8000 else BITMAP_A
        bench.ram[base + (port & 0x7FFF) // 8] |= 1 << (port & 7)
    exits = {0x80: 1, 0x7FFF: 1, 0x8001: 1}
    for port in (
        0x7C,
        0x7D,
        0x7F,
        0x80,
        0x81,
        0x7FFE,
        0x7FFF,
        0x8000,
        0x8001,
        0x8002,
        0xFFFC,
        0xFFFD,
        0xFFFF,
    ):
        for size in (1, 2, 4):
            wraps = port + size > 0x10000
            expected = wraps or any(port + i in exits for i in range(size))
            assert ask["io_exits"](bench.cpu, port, size) == expected, (hex(port), size)


def test_bitmaps_outside_ram_exit():
    bench = entered(io_bitmaps=(RAM, RAM), msr_bitmaps=RAM)
    assert ask["io_exits"](bench.cpu, 0, 1) == 1
    assert ask["rdmsr_exits"](bench.cpu, 0x10) == 1


def test_msr_bitmaps():
    assert ask["rdmsr_exits"](entered().cpu, 0x10) == 1  # no bitmaps: all exit
    bench = entered(msr_bitmaps=MSR_BITMAPS)
    indices = (0, 0x1FFF, 0xC000_0000, 0xC000_1FFF)
    for quarter, index in ((0, 0x1FFF), (1024, 0xC000_0000), (2048, 0), (3072, 0xC000_1FFF)):
        low = index & 0x1FFF
        bench.ram[MSR_BITMAPS : MSR_BITMAPS + 4096] = 0
        bench.ram[MSR_BITMAPS + quarter + low // 8] = 1 << (low & 7)
        for other in indices:
            assert ask["rdmsr_exits"](bench.cpu, other) == (quarter < 2048 and other == index)
            assert ask["wrmsr_exits"](bench.cpu, other) == (quarter >= 2048 and other == index)
    for outside in (0x2000, 0x4000_0000, 0x8000_0010, 0xBFFF_FFFF, 0xC000_2000, 0xFFFF_FFFF):
        assert ask["rdmsr_exits"](bench.cpu, outside) == ask["wrmsr_exits"](bench.cpu, outside) == 1


@given(st.integers(0, 2**32 - 1), st.integers(0, 31), *[st.integers(0, 0x1F)] * 3)
def test_exception_bitmap(bitmap, vector, error, mask, match):
    cpu = BENCH.cpu
    cpu.exception_bitmap = bitmap
    BENCH.set(page_fault_error_code_mask=mask, page_fault_error_code_match=match)
    expected = bitmap >> vector & 1
    if vector == 14:
        expected ^= error & mask != match
    assert ask["exception_exits"](cpu, vector, error) == expected


def test_qualifications():
    cpu = BENCH.cpu
    assert io_qualification(cpu, 4, 1, 1, 1, 0, 0xCFC) == 0x0CFC_003B
    assert io_qualification(cpu, 1, 0, 0, 0, 1, 0x80) == 0x0080_0040
    assert cr_qualification(cpu, 3, k.CR_MOV_FROM, 10, 0, 0) == 0xA13
    assert cr_qualification(cpu, 0, k.CR_LMSW, 0, 1, 0x1FFFF) == 0xFFFF_0070
    assert dr_qualification(cpu, 7, 1, 15) == 0xF17


def test_the_default_takes_only_the_exits_that_the_platform_needs():
    vmcs = Bench().vmcs
    primary = WORDS["primary"]
    named = control_names(primary, int(vmcs.primary_controls) & ~primary.default1)
    expected = {name for name in DEFAULT_CONTROLS if name in primary.names} | {"UNCONDITIONAL_IO_EXITING"}
    assert set(named) == expected and vmcs.exception_bitmap == 0
    assert not {"RDTSC_EXITING", "INVLPG_EXITING", "CR3_LOAD_EXITING", "PAUSE_EXITING"} & expected

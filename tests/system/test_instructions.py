"""System instructions, far transfers and fast system calls against expectations from the manual."""

import pytest

from vmx.cpu.cpuid import cpuid_table
from vmx.cpu.msr import read_msr, write_msr
from vmx.mmu.bus import answer
from vmx.mmu.mode import update_mode
from vmx.state.bits import signed, unsigned
from vmx.state.memory import host_address
from vmx.state.processor import CS, DS, FS, GS, SS, TR, Status, Stop

from .world import (
    CODE,
    CODE32,
    CODE32_3,
    CODE64,
    CODE64_3,
    DATA0,
    DATA3,
    GDT,
    SPARE,
    STACK0,
    STACK3,
    TASK,
    TSS,
    UNUSABLE,
    World,
    descriptor,
    gate,
)

GP, UD, NP = 13, 6, 11
IF, TF, IOPL = 1 << 9, 1 << 8, 3 << 12
RAX, RCX, RDX, RBX, RSP, R11 = 0, 1, 2, 3, 4, 11
MASK64 = (1 << 64) - 1


# --- control registers --------------------------------------------------------------------------------------

MOV_CR0, MOV_CR3, MOV_CR4, MOV_CR8 = b"\x0f\x22\xc0", b"\x0f\x22\xd8", b"\x0f\x22\xe0", b"\x44\x0f\x22\xc0"


@pytest.mark.parametrize(
    "code,value,good",
    [
        (MOV_CR0, 0x8000_0011, True),
        (MOV_CR0, 0x8000_0010, False),  # PG without PE
        (MOV_CR0, 0x1_8000_0011, False),
        (MOV_CR0, 0xA000_0011, False),  # NW without CD
        (MOV_CR0, 0x0000_0011, False),  # paging off in 64-bit mode
        (MOV_CR3, 0x1000, True),
        (MOV_CR3, 1 << 40, False),
        (MOV_CR3, 1 << 63, False),
        (MOV_CR4, 0x20, True),
        (MOV_CR4, 0x00, False),  # PAE off in IA-32e mode
        (MOV_CR4, 0x2_0020, True),
        (MOV_CR4, 0x1020, False),  # LA57
        (MOV_CR4, 0x2020, False),  # VMXE
        (MOV_CR8, 0x10, False),
    ],
)
def test_mov_to_cr_64(code, value, good):
    world = World()
    world.cpu.gpr[RAX] = signed(value)
    assert world.execute(code) == (Status.JUMP if good else Status.FAULT)
    assert world.fault() == (None if good else (GP, 0))


def test_mov_cr_privilege_and_numbers():
    world = World("ring3")
    assert world.execute(b"\x0f\x20\xc0") == Status.FAULT and world.fault() == (GP, 0)
    assert world.execute(b"\x0f\x20\xc8") == Status.FAULT and world.fault() == (UD, 0)  # CR1


def test_the_way_to_long_mode():
    world = World("protected32")
    cpu = world.cpu
    cpu.gpr[RAX] = 0x20
    assert world.execute(MOV_CR4) == Status.JUMP
    cpu.gpr[RAX] = 0x1000
    assert world.execute(MOV_CR3) == Status.JUMP
    cpu.gpr[RCX], cpu.gpr[RAX], cpu.gpr[RDX] = 0xC000_0080, 0x100, 0
    assert world.execute(b"\x0f\x30") == Status.JUMP
    assert cpu.efer == 0x100 and cpu.long_mode == 0
    cpu.gpr[RAX] = 0x8000_0011
    assert world.execute(MOV_CR0) == Status.JUMP
    assert cpu.efer == 0x500 and cpu.long_mode == 1 and cpu.code_mode == 1 and cpu.paging_mode == 3
    jump = b"\xea" + (CODE + 0x100).to_bytes(4, "little") + CODE64.to_bytes(2, "little")
    assert world.execute(jump) == Status.JUMP
    assert cpu.code_mode == 2 and cpu.rip == CODE + 0x100
    cpu.gpr[RAX] = 0  # LME cannot change now
    assert world.execute(b"\x0f\x30") == Status.FAULT and world.fault() == (GP, 0)


def test_pcid_rules():
    world = World()
    cpu = world.cpu
    cpu.cr3 = 0x1001
    cpu.gpr[RAX] = 0x2_0020
    assert world.execute(MOV_CR4) == Status.FAULT
    cpu.cr3 = 0x1000
    assert world.execute(MOV_CR4) == Status.JUMP
    cpu.gpr[RAX] = signed(1 << 63 | 0x1005)
    assert world.execute(MOV_CR3) == Status.JUMP and cpu.cr3 == 0x1005


def test_cr8_stops_once():
    world = World()
    world.cpu.gpr[RAX] = 5
    assert world.execute(MOV_CR8) == Status.STOP
    assert world.cpu.stop == Stop.TASK_PRIORITY and world.cpu.cr8 == 5
    assert world.execute(MOV_CR8) == Status.JUMP


def test_clts_lmsw_smsw():
    world = World()
    cpu = world.cpu
    cpu.cr0 |= 8
    assert world.execute(b"\x0f\x06") == Status.JUMP and cpu.cr0 & 8 == 0
    cpu.gpr[RAX] = 0xE
    assert world.execute(b"\x0f\x01\xf0") == Status.JUMP and cpu.cr0 & 0xF == 0xF
    assert world.execute(b"\x48\x0f\x01\xe0") == Status.OK and cpu.gpr[RAX] == cpu.cr0


def test_debug_registers():
    world = World()
    cpu = world.cpu
    cpu.gpr[RAX] = 0xFFFF_FFFF
    assert world.execute(b"\x0f\x23\xf0") == Status.OK and cpu.dr[6] == 0xFFFF_EFFF  # DR6
    cpu.gpr[RAX] = 0
    assert world.execute(b"\x0f\x23\xe0") == Status.OK and cpu.dr[6] == 0xFFFF_0FF0  # DR4 is DR6
    cpu.cr4 |= 8
    assert world.execute(b"\x0f\x23\xe0") == Status.FAULT and world.fault() == (UD, 0)
    cpu.gpr[RAX] = 1 << 32
    assert world.execute(b"\x0f\x23\xf8") == Status.FAULT and world.fault() == (GP, 0)
    cpu.dr[7] = 1 << 13
    assert world.execute(b"\x0f\x21\xc0") == Status.FAULT and world.fault()[0] == 1
    assert cpu.pending_debug == 1 << 13


# --- MSRs, time, CPUID --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "index,value,good",
    [
        (0xC000_0082, 0x7FFF_FFFF_FFFF, True),
        (0xC000_0082, 1 << 47, False),
        (0x277, 0x0007_0406_0007_0406, True),
        (0x277, 0x02, False),
        (0xC000_0080, 0xD01, True),
        (0xC000_0080, 1 << 12, False),
        (0xC000_0101, MASK64, True),
        (0xC000_0101, 1 << 48, False),
        (0x200, (1 << 39) | 6, True),
        (0x200, 1 << 40, False),
        (0x10A, 0, False),
        (0x8B, 0, True),
        (0x12345, 0, False),
    ],
)
def test_wrmsr(index, value, good):
    world = World()
    assert write_msr(world.cpu, index, signed(value)) == (Status.OK if good else Status.FAULT)
    if good and index != 0x8B:
        assert unsigned(read_msr(world.cpu, index)) == value


def test_unknown_msr_faults():
    world = World()
    world.cpu.gpr[RCX] = 0x4000_0000
    assert world.execute(b"\x0f\x32") == Status.FAULT and world.fault() == (GP, 0)


def test_platform_msr():
    world = World()
    cpu = world.cpu
    cpu.gpr[RCX] = 0x802
    assert world.execute(b"\x0f\x32") == Status.STOP
    assert (cpu.stop, cpu.bus_address, cpu.bus_write) == (Stop.MSR, 0x802, 0)
    answer(cpu, 1)
    answer(cpu, 0x1234_5678_9ABC)
    assert world.execute(b"\x0f\x32") == Status.OK
    assert (cpu.gpr[RDX], cpu.gpr[RAX]) == (0x1234, 0x5678_9ABC)
    cpu.bus_count = cpu.bus_position = 0
    assert world.execute(b"\x0f\x30") == Status.STOP and cpu.bus_write == 1
    answer(cpu, 0)
    assert world.execute(b"\x0f\x30") == Status.FAULT


@pytest.mark.parametrize("khz", [1_000_000, 2_400_000, 3_333_333, 1_234_567])
@pytest.mark.parametrize("ns", [0, 999_999, 1 << 40, (1 << 50) + 12345])
def test_time_stamp_counter(khz, ns):
    world = World()
    cpu = world.cpu
    cpu.tsc_khz, cpu.time_base_ns, cpu.retired, cpu.ns_per_instruction = khz, ns, 7, 16
    cpu.tsc_base, cpu.tsc_aux = 1 << 60, 3
    expected = ((ns + 7 * 16) * khz // 1_000_000 + (1 << 60)) & MASK64
    assert world.execute(b"\x0f\x01\xf9") == Status.OK
    assert unsigned(cpu.gpr[RDX]) << 32 | unsigned(cpu.gpr[RAX]) == expected
    assert cpu.gpr[RCX] == 3


def test_tsc_adjust_follows_the_tsc():
    world = World()
    cpu = world.cpu
    cpu.retired = 1000
    assert write_msr(cpu, 0x10, 0) == 0
    assert read_msr(cpu, 0x10) == 0 and read_msr(cpu, 0x3B) == -1000
    assert write_msr(cpu, 0x3B, 0) == 0 and read_msr(cpu, 0x10) == 1000


def run_cpuid(world, leaf, subleaf=0):
    world.cpu.gpr[RAX], world.cpu.gpr[RCX] = leaf, subleaf
    assert world.execute(b"\x0f\xa2") in (Status.OK, Status.JUMP)
    return tuple(unsigned(world.cpu.gpr[i]) for i in (RAX, RBX, RCX, RDX))


def test_cpuid():
    world = World()
    a, b, c, d = run_cpuid(world, 0)
    assert a == 0x16 and b"".join(v.to_bytes(4, "little") for v in (b, d, c)) == b"GenuineIntel"
    assert run_cpuid(world, 1)[2] & 1 << 27 == 0
    world.cpu.cr4 |= 1 << 18
    world.cpu.apic_id = 5
    one = run_cpuid(world, 1)
    assert one[2] & 1 << 27 and one[1] >> 24 == 5 and one[2] & (1 << 5 | 1 << 31) == 0
    assert run_cpuid(world, 0x9999) == run_cpuid(world, 0x16)  # beyond the highest leaf
    assert run_cpuid(world, 0x8000_0008)[0] == 48 << 8 | 40
    brand = b"".join(v.to_bytes(4, "little") for i in range(3) for v in run_cpuid(world, 0x8000_0002 + i))
    assert brand.startswith(b"vmx ")
    denominator, numerator, crystal, _ = run_cpuid(world, 0x15)
    assert crystal * numerator // denominator == 1_000_000_000


def test_cpuid_table_options():
    world = World()
    world.cpuid = cpuid_table(cpus=4, vmx=True, hypervisor=True, without={"x2apic"})
    world.cpu.host_cpuid = host_address(world.cpuid)
    one = run_cpuid(world, 1)
    assert one[2] & (1 << 5 | 1 << 31 | 1 << 21) == 1 << 5 | 1 << 31 and one[3] & 1 << 28
    assert run_cpuid(world, 0xB, 1)[:2] == (2, 4)
    with pytest.raises(ValueError, match="no feature 'avx9'"):
        cpuid_table(without={"avx9"})


# --- fast system calls --------------------------------------------------------------------------------------


def test_syscall_and_sysret():
    world = World("ring3")
    cpu = world.cpu
    cpu.star = signed(0x0023_0010 << 32)
    cpu.lstar, cpu.fmask = signed(0xFFFF_8000_0000_1000), 0x4_7700
    world.rflags = 2 | IF | 0x41
    cpu.rip = CODE
    assert world.execute(b"\x0f\x05") == Status.JUMP
    assert unsigned(cpu.rip) == 0xFFFF_8000_0000_1000
    assert (cpu.gpr[RCX], cpu.gpr[R11]) == (CODE + 2, 2 | IF | 0x41)
    assert world.rflags == 2 | 0x41 and cpu.cpl == 0 and cpu.code_mode == 2
    assert (cpu.segments[CS].selector, cpu.segments[SS].selector) == (0x10, 0x18)
    cpu.rip = CODE
    assert world.execute(b"\x48\x0f\x07") == Status.JUMP
    assert (cpu.rip, cpu.cpl, cpu.code_mode) == (CODE + 2, 3, 2)
    assert (cpu.segments[CS].selector, cpu.segments[SS].selector) == (0x33, 0x2B)
    assert world.rflags == 2 | IF | 0x41
    cpu.efer &= ~1
    assert world.execute(b"\x0f\x05") == Status.FAULT and world.fault() == (UD, 0)


def test_sysret_to_compatibility_mode_and_bad_targets():
    world = World()
    cpu = world.cpu
    cpu.star = signed(0x0023_0010 << 32)
    cpu.gpr[RCX] = 1 << 47
    assert world.execute(b"\x48\x0f\x07") == Status.FAULT and world.fault() == (GP, 0)
    cpu.gpr[RCX] = 0x1_0000_9000
    assert world.execute(b"\x0f\x07") == Status.JUMP
    assert (cpu.rip, cpu.code_mode, cpu.segments[CS].selector) == (0x9000, 1, 0x23)


def test_sysenter_and_sysexit():
    world = World("ring3")
    cpu = world.cpu
    assert world.execute(b"\x0f\x34") == Status.FAULT and world.fault() == (GP, 0)
    cpu.sysenter_cs, cpu.sysenter_esp, cpu.sysenter_eip = 0x10, STACK0, CODE + 0x40
    assert world.execute(b"\x0f\x34") == Status.JUMP
    assert (cpu.rip, cpu.gpr[RSP], cpu.cpl) == (CODE + 0x40, STACK0, 0)
    cpu.gpr[RDX], cpu.gpr[RCX] = CODE, STACK3
    assert world.execute(b"\x48\x0f\x35") == Status.JUMP
    assert (cpu.rip, cpu.gpr[RSP], cpu.cpl) == (CODE, STACK3, 3)
    assert (cpu.segments[CS].selector, cpu.segments[SS].selector) == (0x33, 0x3B)


def test_swapgs_and_bases():
    world = World()
    cpu = world.cpu
    cpu.segments[GS].base, cpu.kernel_gs_base = 0x1000, 0x2000
    assert world.execute(b"\x0f\x01\xf8") == Status.OK
    assert (cpu.segments[GS].base, cpu.kernel_gs_base) == (0x2000, 0x1000)
    assert world.execute(b"\xf3\x48\x0f\xae\xd0") == Status.FAULT and world.fault() == (UD, 0)
    cpu.cr4 |= 1 << 16
    cpu.gpr[RAX] = signed(0xFFFF_8000_0000_0000)
    assert world.execute(b"\xf3\x48\x0f\xae\xd0") == Status.OK
    assert cpu.segments[FS].base == cpu.gpr[RAX]
    assert world.execute(b"\xf3\x48\x0f\xae\xcb") == Status.OK and cpu.gpr[RBX] == 0x2000
    cpu.gpr[RAX] = 1 << 47
    assert world.execute(b"\xf3\x48\x0f\xae\xd0") == Status.FAULT and world.fault() == (GP, 0)


# --- far transfers ------------------------------------------------------------------------------------------


def test_iretq_to_ring_3():
    world = World()
    cpu = world.cpu
    for i, value in enumerate([CODE + 8, CODE64_3, 2 | IF | 0x41, STACK3, DATA3]):
        world.put(unsigned(cpu.gpr[RSP]) + 8 * i, value)
    assert world.execute(b"\x48\xcf") == Status.JUMP
    assert (cpu.rip, cpu.cpl, cpu.gpr[RSP], cpu.segments[SS].selector) == (CODE + 8, 3, STACK3, DATA3)
    assert world.rflags == 2 | IF | 0x41
    assert cpu.segments[DS].access & UNUSABLE  # DS of ring 0 became null


@pytest.mark.parametrize(
    "index,value,error",
    [
        (1, 0, 0),
        (1, DATA0, DATA0),
        (1, 0x200, 0x200),
        (1, CODE64 | 3, CODE64),
        (4, DATA0, DATA0),
        (4, 0, 0),
        (0, 1 << 48, 0),
    ],
)
def test_iretq_faults(index, value, error):
    world = World()
    frame = [CODE + 8, CODE64_3, 2, STACK3, DATA3]
    frame[index] = value
    for i, each in enumerate(frame):
        world.put(unsigned(world.cpu.gpr[RSP]) + 8 * i, each)
    assert world.execute(b"\x48\xcf") == Status.FAULT and world.fault() == (GP, error)
    assert world.cpu.rip == CODE and world.cpu.gpr[RSP] == STACK0 - 0x200


def test_iret_flags_of_ring_3():
    """Ring 3 changes neither IOPL nor (with IOPL 0) IF."""
    world = World("ring3")
    for i, value in enumerate([CODE, CODE64_3, 2 | IOPL | IF | 1, STACK3, DATA3]):
        world.put(STACK3 + 8 * i, value)
    assert world.execute(b"\x48\xcf") == Status.JUMP
    assert world.rflags == 3


def test_retf_to_ring_3_and_call_gate_back():
    for mode, code3, width, prefix in (("long64", CODE64_3, 8, b"\x48"), ("protected32", CODE32_3, 4, b"")):
        world = World(mode)
        cpu = world.cpu
        for i, value in enumerate([CODE + 0x10, code3, STACK3, DATA3]):
            world.put(unsigned(cpu.gpr[RSP]) + width * i, value, width)
        assert world.execute(prefix + b"\xcb") == Status.JUMP
        assert (cpu.rip, cpu.cpl, cpu.gpr[RSP]) == (CODE + 0x10, 3, STACK3)
        low, high = gate(
            CODE64 if width == 8 else CODE32, CODE + 0x80, 0xC, dpl=3, ist=0 if width == 8 else 2
        )
        world.put(GDT + SPARE, low)
        world.put(GDT + SPARE + 8, high)
        world.put(STACK3, 0x1111, 4)
        world.put(STACK3 + 4, 0x2222, 4)
        assert cpu.segments[DS].access & UNUSABLE  # ring 0's data segment is gone
        world.segment(DS, DATA3, 0xC0F3)
        cpu.gpr[RBX] = CODE + 0x200
        world.put(CODE + 0x200, 0, 4)
        world.put(CODE + 0x204, SPARE | 3, 2)
        assert world.execute(b"\xff\x1b") == Status.JUMP  # CALL FAR [RBX]
        assert (cpu.rip, cpu.cpl) == (CODE + 0x80, 0)
        if width == 8:
            assert world.words(unsigned(cpu.gpr[RSP]), 4) == [CODE + 0x12, code3, STACK3, DATA3]
        else:
            expected = [CODE + 0x12, code3, 0x1111, 0x2222, STACK3, DATA3]
            assert world.words(unsigned(cpu.gpr[RSP]), 6, 4) == expected


def test_far_jump_faults():
    world = World("protected32")
    for selector, expected in (
        (0, (GP, 0)),
        (DATA0, (GP, DATA0)),
        (CODE32_3, (GP, CODE32_3 & ~3)),
        (0x200, (GP, 0x200)),
    ):
        code = b"\xea" + bytes(4) + selector.to_bytes(2, "little")
        assert world.execute(code) == Status.FAULT and world.fault() == expected
    world.put(GDT + SPARE, descriptor(0, 0xFFFF_FFFF, 0xC01B))
    assert world.execute(b"\xea" + bytes(4) + SPARE.to_bytes(2, "little")) == Status.FAULT
    assert world.fault() == (NP, SPARE)


# --- tables, flags, ports -----------------------------------------------------------------------------------


def test_descriptor_tables():
    world = World()
    cpu = world.cpu
    cpu.gpr[RBX] = 0xD000
    world.put(0xD000, 0x0FFF, 2)
    world.put(0xD002, 0xFFFF_8000_0000_0000)
    assert world.execute(b"\x0f\x01\x1b") == Status.JUMP  # LIDT
    assert (unsigned(cpu.idtr_base), cpu.idtr_limit) == (0xFFFF_8000_0000_0000, 0xFFF)
    cpu.gpr[RBX] = 0xD100
    assert world.execute(b"\x0f\x01\x0b") == Status.OK  # SIDT
    assert world.ram[0xD100:0xD10A].tobytes() == world.ram[0xD000:0xD00A].tobytes()
    world.put(0xD002, 1 << 47)
    cpu.gpr[RBX] = 0xD000
    assert world.execute(b"\x0f\x01\x1b") == Status.FAULT and world.fault() == (GP, 0)


def test_ltr_marks_the_task_busy():
    world = World()
    cpu = world.cpu
    cpu.gpr[RAX] = TASK
    cpu.segments[TR].selector = 0
    assert world.execute(b"\x0f\x00\xd8") in (Status.OK, Status.JUMP)
    assert (cpu.segments[TR].selector, cpu.segments[TR].base, cpu.segments[TR].access) == (TASK, TSS, 0x8B)
    assert world.execute(b"\x0f\x00\xd8") == Status.FAULT and world.fault() == (GP, TASK)  # busy now


def test_cli_sti_by_iopl():
    world = World("ring3")
    assert world.execute(b"\xfa") == Status.FAULT and world.fault() == (GP, 0)
    world.rflags = 2 | IOPL
    assert world.execute(b"\xfb") == Status.JUMP
    assert world.rflags & IF and world.cpu.shadow == 1


def test_clac_stac():
    world = World()
    assert world.execute(b"\x0f\x01\xcb") == Status.FAULT and world.fault() == (UD, 0)
    world.cpu.cr4 |= 1 << 21
    update_mode(world.cpu)
    bank = world.cpu.tlb_bank
    assert world.execute(b"\x0f\x01\xcb") == Status.JUMP
    assert world.rflags & 1 << 18 and world.cpu.tlb_bank != bank
    assert world.execute(b"\x0f\x01\xca") == Status.JUMP and world.cpu.tlb_bank == bank


@pytest.mark.parametrize(
    "code,size,value", [(b"\xec", 1, 0x1A), (b"\x66\xed", 2, 0x3C1A), (b"\xed", 4, 0x5E6F_3C1A)]
)
def test_in(code, size, value):
    world = World()
    cpu = world.cpu
    cpu.gpr[RDX], cpu.gpr[RAX] = 0x3F8, -1
    assert world.execute(code) == Status.STOP
    assert (cpu.stop, cpu.bus_address, cpu.bus_size, cpu.bus_write) == (Stop.PORT, 0x3F8, size, 0)
    answer(cpu, value)
    assert world.execute(code) == Status.OK
    kept = MASK64 if size < 4 else 0
    assert unsigned(cpu.gpr[RAX]) == kept & ~((1 << 8 * size) - 1) | value


def test_port_permission_bitmap():
    world = World("ring3")
    cpu = world.cpu
    cpu.segments[TR].limit = 0x200
    world.ram[TSS + 0x68 : TSS + 0x201] = 0xFF
    world.put(TSS + 0x68 + 0x3F8 // 8, 0xFE, 1)
    cpu.gpr[RDX] = 0x3F8
    assert world.execute(b"\xee") == Status.STOP and cpu.stop == Stop.PORT
    assert world.execute(b"\x66\xef") == Status.FAULT and world.fault() == (GP, 0)  # port 0x3F9 as well
    cpu.gpr[RDX] = 0xFFFF
    assert world.execute(b"\xee") == Status.FAULT and world.fault() == (GP, 0)


@pytest.mark.parametrize("code", [b"\x0f\x01\xc1", b"\x0f\x0b", b"\x0f\xaa", b"\x0f\x01\xc4"])
def test_undefined_here(code):
    """VMCALL and VMXOFF outside VMX operation, UD2, RSM."""
    world = World()
    assert world.execute(code) == Status.FAULT and world.fault() == (UD, 0)

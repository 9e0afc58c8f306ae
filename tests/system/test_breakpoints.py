"""Debug exceptions in running code, against expectations from the manual's chapter "Debug"."""

import pytest

from vmx.cpu.blocks import new_code_cache
from vmx.cpu.interpreter import run
from vmx.state.bits import unsigned
from vmx.state.memory import host_address
from vmx.state.processor import Status, Stop

from .world import CODE, CODE32, STACK0, World

DATA = 0xC000
HANDLER = 0x9000
TF, RF = 1 << 8, 1 << 16
B0, B1, B2, B3, BD, BS = 1, 2, 4, 8, 1 << 13, 1 << 14
NOP, HLT = b"\x90", b"\xf4"


def dr7(number=0, kind=0, length=0, enable=1):
    """`enable`: 1 local, 2 global."""
    return enable << 2 * number | (kind | length << 2) << 16 + 4 * number


def prepared(code, mode="protected32", **registers):
    """`code` at CODE; a #DB handler that halts."""
    world = World(mode)
    cpu = world.cpu
    world.cache = new_code_cache()
    cpu.host_code_cache = host_address(world.cache)
    world.ram[CODE : CODE + len(code)] = list(code)
    world.ram[HANDLER] = HLT[0]
    world.put_gate(1, CODE32, HANDLER, width=8)
    world.put_gate(13, CODE32, HANDLER + 0x100, width=8)
    cpu.gpr[4] = STACK0
    cpu.dr[6], cpu.dr[7] = 0xFFFF_0FF0, 0x400
    for name, value in registers.items():
        if name.startswith("dr"):
            cpu.dr[int(name[2])] = value
        else:
            cpu.gpr[("eax", "ecx", "edx", "ebx", "esp", "ebp", "esi", "edi").index(name)] = value
    from vmx.mmu.mode import update_mode

    update_mode(cpu)
    cpu.attention = 1
    return world


def caught(world, limit=40):
    """Run to the handler: (offset of the saved EIP in the code, DR6's causes, RF in the frame), or None."""
    cpu = world.cpu
    cpu.limit = cpu.retired + limit
    stop = run(cpu)
    if stop != Stop.HALT or cpu.rip != HANDLER + 1:
        return None
    frame = world.words(int(cpu.gpr[4]), 3, 4)
    return frame[0] - CODE, unsigned(cpu.dr[6]) & 0xF00F, frame[2] & RF != 0


STORE, LOAD, UPDATE = (
    b"\xa2\0\xc0\0\0",
    b"\xa0\0\xc0\0\0",
    b"\xfe\x05\0\xc0\0\0",
)  # MOV [C000], AL; MOV AL, []; INC
STORE4 = b"\xa3\0\xc0\0\0"


@pytest.mark.parametrize("enable", [1, 2, 3])
@pytest.mark.parametrize("number", range(4))
def test_instruction_breakpoint(number, enable):
    world = prepared(NOP * 8, **{f"dr{number}": CODE + 3, "dr7": dr7(number, enable=enable)})
    assert caught(world) == (3, 1 << number, False)


def test_not_enabled():
    assert caught(prepared(NOP * 8 + HLT, dr0=CODE + 3, dr7=0x400)) is None


def test_resume_flag_lets_one_instruction_pass():
    world = prepared(NOP * 3 + b"\xeb\xfb", dr0=CODE + 1, dr7=dr7())  # NOP; NOP; NOP; JMP to the second
    cpu = world.cpu
    world.ram[HANDLER : HANDLER + 8] = list(
        b"\x41\x80\x4c\x24\x0a\x01\xcf\xf4"
    )  # INC ECX; OR [ESP+10], 1; IRET
    cpu.limit = cpu.retired + 30
    assert run(cpu) == Stop.LIMIT
    assert cpu.gpr[1] >= 4  # each round hits once


def test_without_resume_flag_it_hits_again():
    world = prepared(NOP * 8, dr0=CODE + 1, dr7=dr7())
    world.ram[HANDLER : HANDLER + 2] = list(b"\x41\xcf")  # INC ECX; IRET
    world.cpu.limit = world.cpu.retired + 21
    assert run(world.cpu) == Stop.LIMIT
    assert world.cpu.gpr[1] == 10


def test_a_breakpoint_on_its_own_handler_keeps_the_limit():
    world = prepared(NOP * 8, dr0=HANDLER, dr1=CODE, dr7=dr7() | dr7(1))
    world.cpu.limit = world.cpu.retired + 50
    assert run(world.cpu) == Stop.LIMIT


@pytest.mark.parametrize(
    "code,kind,expected",
    [
        (STORE, 1, True), (STORE, 3, True), (LOAD, 1, False), (LOAD, 3, True), (UPDATE, 1, True),
        (UPDATE, 3, True), (STORE, 2, False), (b"\x50", 1, False),
    ],
)  # fmt: skip
def test_data_breakpoint_is_a_trap(code, kind, expected):
    world = prepared(NOP + code + NOP * 4 + HLT, dr2=DATA, dr7=dr7(2, kind))
    assert caught(world) == ((1 + len(code), B2, False) if expected else None)
    if expected and code == UPDATE:
        assert world.get(DATA, 1) == 1  # the instruction is complete


@pytest.mark.parametrize("length,size", [(0, 1), (1, 2), (3, 4), (2, 8)])
@pytest.mark.parametrize("offset", [-8, -4, -3, -1, 0, 1, 2, 3, 4, 7, 8])
@pytest.mark.parametrize("access", [1, 4])
def test_lengths(length, size, offset, access):
    code = (STORE if access == 1 else STORE4)[:1] + (DATA + offset).to_bytes(4, "little")
    world = prepared(code + NOP * 4 + HLT, dr0=DATA + size - 1, dr7=dr7(0, 1, length))
    hit = offset < size and offset + access > 0 if size > 1 else offset <= 0 < offset + access
    assert caught(world) == ((5, B0, False) if hit else None)


def test_stack_and_string_accesses():
    world = prepared(b"\x50" + NOP + HLT, dr0=STACK0 - 4, dr7=dr7(0, 1, 3))
    assert caught(world) == (1, B0, False)
    world = prepared(b"\xf3\xaa" + NOP + HLT, dr0=DATA + 2, dr7=dr7(0, 1), ecx=6, edi=DATA)  # REP STOSB
    assert caught(world) == (0, B0, True)  # between iterations
    assert (world.cpu.gpr[1], world.cpu.gpr[7]) == (3, DATA + 3)


def test_breakpoint_on_a_repeated_instruction_hits_once():
    world = prepared(b"\xf3\xaa" + NOP + HLT, dr0=CODE, dr1=DATA + 1, dr7=dr7() | dr7(1, 1), ecx=6, edi=DATA)
    cpu = world.cpu
    assert caught(world) == (0, B0, False)
    assert cpu.gpr[1] == 6
    world.put(int(cpu.gpr[4]) + 8, 2 | RF, 4)
    world.ram[HANDLER + 1] = 0xCF
    cpu.activity, cpu.dr[6] = 0, 0
    assert caught(world) == (0, B1, True)
    assert cpu.gpr[1] == 4


def test_a_fault_forgets_what_the_instruction_met():
    code = b"\xff\x35\0\xc0\0\0"  # PUSH [C000], with a stack that does not exist
    world = prepared(code + HLT, dr0=DATA, dr7=dr7(0, 3), esp=4)
    world.segment(2, 0x10, 0x4093, 0, 0x10)
    world.cpu.gpr[4] = 0x100
    world.put_gate(12, CODE32, HANDLER, width=8)
    run(world.cpu)
    assert world.cpu.dr[6] & 0xF == 0


@pytest.mark.parametrize("de", [True, False])
@pytest.mark.parametrize("code", [b"\xe4\x41", b"\xe6\x40", b"\xe5\x3e"])
def test_io_breakpoint(code, de):
    world = prepared(code + NOP + HLT, dr3=0x40, dr7=dr7(3, 2, 1))
    cpu = world.cpu
    cpu.cr4 = 8 if de else 0
    cpu.limit = cpu.retired + 20
    assert run(cpu) == Stop.PORT
    from vmx.mmu.bus import answer

    answer(cpu, 0x55)
    assert caught(world) == ((2, B3, False) if de else None)


def test_data_breakpoint_with_single_step():
    world = prepared(STORE + NOP, dr0=DATA, dr7=dr7(0, 1))
    world.rflags = 2 | TF
    assert caught(world) == (5, B0 | BS, False)


def test_mov_ss_holds_a_trap_back():
    code = b"\x8e\x15\0\xc0\0\0" + NOP * 3  # MOV SS, [C000]
    world = prepared(code, dr0=DATA, dr1=CODE + 6, dr7=dr7(0, 3) | dr7(1))
    world.put(DATA, 0x10, 2)
    assert caught(world) == (7, B0, False)  # and the instruction breakpoint behind MOV SS is lost


def test_single_step_stops_between_iterations():
    world = prepared(b"\xf3\xaa" + NOP, ecx=6, edi=DATA)
    world.rflags = 2 | TF
    assert caught(world) == (0, BS, False)
    assert world.cpu.gpr[1] == 5


@pytest.mark.parametrize("code", [b"\x0f\x21\xc0", b"\x0f\x23\xc0", b"\x0f\x23\xf8"])
def test_general_detect(code):
    world = prepared(NOP + code, dr7=0x400 | 1 << 13)
    assert caught(world) == (1, BD, True)
    assert world.cpu.dr[7] == 0x400


def test_icebp_sets_nothing():
    world = prepared(b"\xf1")
    assert caught(world) == (1, 0, False)


def test_mov_to_dr7_arms_at_once():
    code = b"\xb8\x01\0\0\0\x0f\x23\xf8" + NOP * 4  # MOV EAX, 1; MOV DR7, EAX
    assert caught(prepared(code, dr0=CODE + 8)) == (8, B0, False)


def test_supervisor_and_user_rights_stay_apart():
    """While breakpoints are on, privilege comes from CPL: a user access to a supervisor page faults."""
    from vmx.mmu.translate import READ, translate

    world = World("ring3")
    cpu = world.cpu
    world.put(0x3000, 0x83)  # supervisor
    cpu.dr[7] = dr7(0, 1)
    from vmx.mmu.mode import update_mode

    update_mode(cpu)
    assert translate(cpu, 0x5000, READ) == Status.FAULT and cpu.fault_vector == 14 and cpu.fault_error == 5
    world = World("long64")
    world.put(0x3000, 0x83)
    world.cpu.dr[7] = dr7(0, 1)
    update_mode(world.cpu)
    assert translate(world.cpu, 0x5000, READ) == 0

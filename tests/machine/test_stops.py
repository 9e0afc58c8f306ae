"""Every way in which a run ends: the stop, the exit status, and a message that says where."""

import threading

import pytest

from tests.machine.world import (
    BASE,
    BOTH,
    CLI,
    HLT,
    MODES,
    NOP,
    OUT_DX_AL,
    OUT_DX_AX,
    TO_ITSELF,
    UD2,
    at,
    flat_machine,
    gate64,
    leave,
    mov_dx,
    out,
    run_flat,
)
from vmx import BufferConsole

LIDT_EMPTY = {  # of six or ten zero bytes behind the code, so every exception becomes a triple fault
    "real": bytes.fromhex("0f011e 0000"),  # LIDT [0]: low memory is zero there once the next line has run
    "protected32": bytes.fromhex("0f011d 00000200"),  # LIDT [0x20000]
    "long64": bytes.fromhex("0f011c25 00000200"),
}
ALL = [(mode, bare) for mode in MODES for bare in BOTH]
PROTECTED = [(mode, bare) for mode in ("protected32", "long64") for bare in BOTH]


def end(tmp_path, code, mode="protected32", bare=False, **options):
    machine, result = run_flat(tmp_path, code, load_mode=mode, bare=bare, **options)
    return (result.stop, int(result.exit_status)), result, machine


@pytest.mark.parametrize("mode, bare", ALL)
@pytest.mark.parametrize("value", [0, 1, 0x2A, 0x7F, 0xFF])
def test_debug_exit(tmp_path, mode, bare, value):
    ended, result, _ = end(tmp_path, leave(value), mode, bare)
    assert ended == ("DEBUG_EXIT", (value << 1 | 1) & 0xFF)
    assert f"{value:#x}" in result.message


@pytest.mark.parametrize("mode, bare", ALL)
@pytest.mark.parametrize("code", [out(0x64, 0xFE), out(0x92, 0x03)], ids=["i8042", "port92"])
def test_reset(tmp_path, mode, bare, code):
    assert end(tmp_path, code + CLI + HLT, mode, bare)[0] == ("RESET", 16)


@pytest.mark.parametrize("mode, bare", PROTECTED)
@pytest.mark.parametrize("port", [0xCF9, 0x60C], ids=["CF9", "ACPI reset register"])
def test_reset_register(tmp_path, mode, bare, port):
    code = mov_dx(port) + b"\xb0\x06" + OUT_DX_AL + CLI + HLT
    assert end(tmp_path, code, mode, bare)[0] == ("RESET", 16)


@pytest.mark.parametrize("mode, bare", PROTECTED)
def test_poweroff(tmp_path, mode, bare):
    code = mov_dx(0x604) + bytes.fromhex("66b80034") + OUT_DX_AX  # SLP_EN with the S5 type
    assert end(tmp_path, code, mode, bare)[0] == ("POWEROFF", 0)


@pytest.mark.parametrize("mode, bare", ALL)
def test_triple_fault(tmp_path, mode, bare):
    if mode == "real":
        code = bytes.fromhex("0f011e 0005")  # LIDT [0x500]: zeros
    else:
        code = LIDT_EMPTY[mode]
    ended, result, machine = end(tmp_path, NOP + code + UD2, mode, bare)
    assert ended == ("TRIPLE_FAULT", 10)
    assert "triple" in result.message
    assert f"{BASE + 1 + len(code) & (0xF if mode == 'real' else -1):#x}" in result.message
    assert "ud2" in result.message.lower()
    assert (len(machine.ledger) == 0) == bare


@pytest.mark.parametrize("mode, bare", ALL)
def test_halted_with_interrupts_off(tmp_path, mode, bare):
    ended, result, _ = end(tmp_path, CLI + HLT, mode, bare)
    assert ended == ("HUNG", 12)
    assert "interrupts off" in result.message


@pytest.mark.parametrize("mode, bare", ALL)
def test_jump_to_itself_with_interrupts_off(tmp_path, mode, bare):
    ended, result, _ = end(tmp_path, CLI + TO_ITSELF, mode, bare)
    assert ended == ("HUNG", 12)
    assert "jumps to itself" in result.message


@pytest.mark.parametrize("bare", BOTH)
def test_jump_into_nothing(tmp_path, bare):
    """There is no memory at 3 GiB."""
    code = bytes.fromhex("b8000000c0 ffe0")  # MOV EAX, 0xC0000000; JMP EAX
    ended, result, _ = end(tmp_path, code, bare=bare, limit=100_000)
    assert ended[0] in ("TRIPLE_FAULT", "NOT_MODELLED", "HUNG")
    assert "0xc0000000" in result.message


@pytest.mark.parametrize("mode, bare", ALL)
def test_instruction_limit_is_exact(tmp_path, mode, bare):
    ended, result, machine = end(tmp_path, NOP * 1000 + TO_ITSELF, mode, bare, limit=777)
    assert ended == ("INSTRUCTION_LIMIT", 14)
    assert result.retired == 777
    assert machine.run(max_instructions=100).retired == 877


@pytest.mark.parametrize("bare", BOTH)
def test_timeout(tmp_path, bare):
    loop = bytes.fromhex("40 ebfd")  # INC EAX; JMP to it
    machine = flat_machine(tmp_path, loop, bare=bare)
    result = machine.run(timeout_s=0.2)
    assert (result.stop, int(result.exit_status)) == ("TIMEOUT", 124)
    assert 0.2 <= result.host_s < 10


LOOPS = {
    "computing": bytes.fromhex("40 ebfd"),  # INC EAX; JMP
    "port": bytes.fromhex("e464 ebfc"),  # IN AL, 0x64; JMP
    "REP on device memory": bytes.fromhex("b9ffffff7f be000000d0 f3ac ebfe"),  # REP LODSB from 0xD0000000
}


@pytest.mark.parametrize("bare", BOTH)
@pytest.mark.parametrize("loop", LOOPS)
def test_stop_from_another_thread(tmp_path, loop, bare):
    machine = flat_machine(tmp_path, LOOPS[loop], bare=bare)
    timer = threading.Timer(0.2, machine.stop)
    timer.start()
    result = machine.run(timeout_s=60)
    timer.join()
    assert (result.stop, int(result.exit_status)) == ("INTERRUPTED", 130)
    assert machine.run(max_instructions=10).stop == "INSTRUCTION_LIMIT"


def test_stop_from_the_console(tmp_path):
    console = BufferConsole()
    console.quit_requested = True
    machine = flat_machine(tmp_path, TO_ITSELF, console=console)
    assert machine.run(timeout_s=60).stop == "INTERRUPTED"


def real_mode_with_handler(body: bytes, handler: bytes) -> bytes:
    """Real-mode code whose vector 6 leads to `handler` at BASE + 0x100."""
    set_vector = bytes.fromhex("31c0 8ed8 c70618000001 c7061a000010")  # DS = 0; [6 * 4] = 1000:0100
    return at(BASE, {BASE: set_vector + body, BASE + 0x100: handler})


@pytest.mark.parametrize("bare", BOTH)
def test_unknown_opcodes_are_counted(tmp_path, bare):
    """0F 04 and D6 are no instructions; the handler steps over two bytes."""
    step = bytes.fromhex("89e5 83460002 cf")  # MOV BP, SP; ADD WORD [BP], 2; IRET
    body = bytes.fromhex("0f04 0f04 0f0a 0f0b") + leave(7)
    ended, result, _ = end(tmp_path, real_mode_with_handler(body, step), "real", bare)
    assert ended == ("DEBUG_EXIT", 15)
    assert result.undecoded == {"0F 04": 2, "0F 0A": 1}  # UD2 is an instruction, and raises #UD by itself


@pytest.mark.parametrize("bare", BOTH)
def test_handler_in_long_mode(tmp_path, bare):
    """An unknown opcode in 64-bit mode, its #UD handler through a 64-bit gate."""
    idt, pointer, handler = BASE + 0x200, BASE + 0x400, BASE + 0x100
    table = bytes(16 * 6) + gate64(handler)
    code = bytes.fromhex("0f011c25") + pointer.to_bytes(4, "little") + bytes.fromhex("0fff c0")
    parts = {
        BASE: code,
        handler: leave(9),
        idt: table,
        pointer: (len(table) - 1).to_bytes(2, "little") + idt.to_bytes(8, "little"),
    }
    ended, result, _ = end(tmp_path, at(BASE, parts), "long64", bare)
    assert ended == ("DEBUG_EXIT", 19)
    assert sum(result.undecoded.values()) == 0 or set(result.undecoded) == {"0F FF"}


ENDLESS = {"UD2": UD2, "VMCALL": bytes.fromhex("0f01c1"), "unknown opcode": b"\x0f\x04"}


@pytest.mark.parametrize("bare", BOTH)
@pytest.mark.parametrize("bitmap", [0, 1 << 6], ids=["", "#UD exits"])
@pytest.mark.parametrize("name", ENDLESS)
def test_an_endless_loop_of_exceptions_ends(tmp_path, name, bitmap, bare):
    """The #UD handler raises #UD too, and IST gives it a fresh stack: no instruction ever completes."""
    idt, pointer, handler = BASE + 0x200, BASE + 0x400, BASE + 0x100
    table = bytes(16 * 6) + gate64(handler, ist=1)
    set_ist1 = bytes.fromhex("c70425 24180000 00800000")  # in the loader's TSS
    code = set_ist1 + bytes.fromhex("0f011c25") + pointer.to_bytes(4, "little") + UD2
    parts = {
        BASE: code,
        handler: ENDLESS[name],
        idt: table,
        pointer: (len(table) - 1).to_bytes(2, "little") + idt.to_bytes(8, "little"),
    }
    ended, result, _ = end(tmp_path, at(BASE, parts), "long64", bare, limit=5_000, exception_bitmap=bitmap)
    assert ended == ("INSTRUCTION_LIMIT", 14)
    assert result.retired == 5_000


def test_exits_and_console_are_kept_after_a_failure(tmp_path):
    code = out(0xE9, ord("x")) + LIDT_EMPTY["protected32"] + UD2
    ended, result, machine = end(tmp_path, code)
    assert ended[0] == "TRIPLE_FAULT"
    assert machine.console.text == "x"
    assert [row.samples for row in machine.ledger.statistics()] == [1, 1]  # the OUT, the triple fault


def test_every_stop_has_a_status_of_its_own():
    from vmx.errors import STATUS_OF_STOP

    statuses = [int(status) for name, status in STATUS_OF_STOP.items() if name != "SHUTDOWN"]
    assert len(set(statuses)) == len(statuses)
    assert all(status % 2 == 0 for status in statuses)

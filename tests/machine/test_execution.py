"""Small flat guests for what is awkward about running code: self-modification, REP and interrupts, device memory."""

import struct

import pytest

from tests.machine.world import (
    BASE,
    BOTH,
    IRET,
    STI,
    TO_ITSELF,
    at,
    gate32,
    leave,
    leave_with_al,
    out,
    run_flat,
)

IDT, POINTER, COUNTER, HANDLER = BASE + 0x800, BASE + 0xF00, BASE + 0xF10, BASE + 0x600
PAGE = 4096


def dword(value: int) -> bytes:
    return struct.pack("<I", value)


def status_of(tmp_path, code, bare, **options):
    """The value that a guest left with, or its stop."""
    machine, result = run_flat(tmp_path, code, bare=bare, **options)
    assert result.stop == "DEBUG_EXIT", result.message
    return int(result.exit_status) >> 1, machine


# --- self-modifying and page-crossing code --------------------------------------------------------------------


@pytest.mark.parametrize("bare", BOTH)
@pytest.mark.parametrize("mode", ["protected32", "long64"])
def test_the_next_instruction_is_changed(tmp_path, mode, bare):
    """A store into the very block that runs: the new byte counts."""
    store = b"\xc6\x04\x25" if mode == "long64" else b"\xc6\x05"  # MOV BYTE [address], 0x2A
    length = len(store) + 5
    code = store + dword(BASE + length + 1) + b"\x2a" + b"\xb0\x00" + leave_with_al()
    assert status_of(tmp_path, code, bare, load_mode=mode)[0] == 0x2A


@pytest.mark.parametrize("bare", BOTH)
def test_a_loop_changes_itself(tmp_path, bare):
    """ADD AL, imm runs ten times; its immediate grows by one each time round: 0 + 1 + ... + 9."""
    body = bytes.fromhex("b90a000000 30c0")  # MOV ECX, 10; XOR AL, AL
    loop = BASE + len(body)
    add = b"\x04\x00"
    increment = b"\xfe\x05" + dword(loop + 1)  # INC BYTE [immediate]
    back = b"\xe2" + bytes([256 - len(add) - len(increment) - 2])  # LOOP
    assert status_of(tmp_path, body + add + increment + back + leave_with_al(), bare)[0] == 45


@pytest.mark.parametrize("bare", BOTH)
@pytest.mark.parametrize("before", range(1, 5))
def test_an_instruction_across_two_pages(tmp_path, bare, before):
    """MOV EAX, imm32 with `before` bytes in the first page runs, is changed in the second page, runs again."""
    start = BASE + PAGE - before
    move = b"\xb8" + dword(0x0403_0201)
    last = start + 4  # the immediate's last byte, always in the second page
    tail = b"\xc1\xe8\x18" + b"\x01\xc3"  # SHR EAX, 24; ADD EBX, EAX
    patch = b"\x80\x05" + dword(last) + b"\x10"  # ADD BYTE [last], 0x10
    again = b"\x49\x0f\x85"  # DEC ECX; JNZ start
    after = start + len(move) + len(tail) + len(patch) + len(again) + 4
    loop = move + tail + patch + again + dword(start - after & 0xFFFF_FFFF)
    first = bytes.fromhex("31db b902000000") + b"\xe9" + dword(start - (BASE + 12))
    code = at(BASE, {BASE: first, start: loop + b"\x88\xd8" + leave_with_al()})  # MOV AL, BL
    assert status_of(tmp_path, code, bare)[0] == 0x04 + 0x14


@pytest.mark.parametrize("bare", BOTH)
def test_code_is_copied_over_code(tmp_path, bare):
    """REP MOVSB writes new code over a function that has run already."""
    function, source = BASE + 0x100, BASE + 0x200
    call = lambda where: b"\xe8" + dword(function - (where + 5) & 0xFFFF_FFFF)  # noqa: E731
    copy = b"\xbe" + dword(source) + b"\xbf" + dword(function) + b"\xb9" + dword(3) + b"\xf3\xa4"
    code = call(BASE) + copy
    code += call(BASE + len(code)) + leave_with_al()
    parts = {BASE: code, function: b"\xb0\x01\xc3", source: b"\xb0\x63\xc3"}
    assert status_of(tmp_path, at(BASE, parts), bare)[0] == 0x63


@pytest.mark.parametrize("bare", BOTH)
def test_code_from_port_reads(tmp_path, bare):
    """REP INSB writes the fw_cfg signature "QEMU" over code that has run: 51 45 4D 55 as pushes and decrements."""
    function = BASE + 0x100
    select = bytes.fromhex("66ba1005 66b80000 66ef")  # OUT 0x510, 0: the signature
    read = b"\x66\xba\x11\x05" + b"\xbf" + dword(function) + b"\xb9" + dword(4) + b"\xf3\x6c"
    call = lambda where: b"\xe8" + dword(function - (where + 5) & 0xFFFF_FFFF)  # noqa: E731
    code = call(BASE) + select + read
    code += b"\x8a\x05" + dword(function + 1) + leave_with_al()  # MOV AL, [function + 1]
    assert status_of(tmp_path, at(BASE, {BASE: code, function: b"\xc3"}), bare)[0] == ord("E")


# --- interrupts in the middle ---------------------------------------------------------------------------------


def timer_guest(work: bytes, divisor: int = 0x0800) -> dict[int, bytes]:
    """`work` runs with the PIT's interrupts at vector 0x20 counted at COUNTER."""
    pics = [(0x20, 0x11), (0x21, 0x20), (0x21, 4), (0x21, 1), (0x21, 0xFE)]
    pit = [(0x43, 0x34), (0x40, divisor & 0xFF), (0x40, divisor >> 8)]
    start = b"\x0f\x01\x1d" + dword(POINTER) + b"".join(out(*pair) for pair in pics + pit) + STI
    handler = b"\x50\xff\x05" + dword(COUNTER) + out(0x20, 0x20) + b"\x58" + IRET
    return {
        BASE: start + work,
        HANDLER: handler,
        IDT: bytes(8 * 32) + gate32(HANDLER),
        POINTER: struct.pack("<HI", 8 * 33 - 1, IDT),
        COUNTER: bytes(16),
    }


@pytest.mark.parametrize("bare", BOTH)
def test_rep_is_split_by_interrupts(tmp_path, bare):
    """1 MiB of REP STOSB: interrupts come in between with what is left in ECX, and every byte is stored once."""
    buffer, count = 0x20_0000, 1 << 20
    work = b"\xb0\x5a" + b"\xbf" + dword(buffer) + b"\xb9" + dword(count) + b"\xf3\xaa"
    parts = timer_guest(work + b"\xfa" + leave(0), divisor=3)
    save = b"\x89\x0d" + dword(COUNTER + 4) + b"\x89\x3d" + dword(COUNTER + 8)  # ECX, EDI
    parts[HANDLER] = b"\xe3" + bytes([len(save)]) + save + parts[HANDLER]  # JECXZ: once REP is through
    _, machine = status_of(tmp_path, at(BASE, parts), bare)
    ticks, left, position = struct.unpack("<III", machine.memory.read(COUNTER, 12))
    assert ticks >= 1
    assert 0 < left < count
    assert position == buffer + count - left
    assert machine.memory.read(buffer, count) == b"\x5a" * count
    assert machine.memory.read(buffer + count, 16) == bytes(16)
    assert machine.inspect().registers["rdi"] == buffer + count


@pytest.mark.parametrize("bare", BOTH)
def test_interrupts_end_a_loop(tmp_path, bare):
    """Waiting for the fifth tick, by reading memory and by HLT."""
    wait = b"\x80\x3d" + dword(COUNTER) + b"\x05" + b"\x72\xf7"  # CMP BYTE [COUNTER], 5; JB
    assert status_of(tmp_path, at(BASE, timer_guest(wait + leave(1))), bare)[0] == 1
    halt = b"\xf4" + b"\x80\x3d" + dword(COUNTER) + b"\x09" + b"\x72\xf6"
    assert status_of(tmp_path, at(BASE, timer_guest(halt + leave(2))), bare)[0] == 2


@pytest.mark.parametrize("bare", BOTH)
def test_a_jump_to_itself_with_interrupts_on_is_not_hung(tmp_path, bare):
    machine, result = run_flat(tmp_path, at(BASE, timer_guest(TO_ITSELF)), bare=bare, limit=9_000_000)
    assert result.stop == "INSTRUCTION_LIMIT"
    assert machine.memory.read(COUNTER, 1) != b"\0"


@pytest.mark.parametrize("bare", BOTH)
def test_iret_leaves_reserved_flags_alone(tmp_path, bare):
    """An image of ones, but for VM, TF and IF: bits 3, 5 and 15 stay 0, bit 1 stays 1."""
    push = lambda value: b"\x68" + dword(value)  # noqa: E731
    code = push(0xFFFD_FCFF) + push(0x10) + push(BASE + 16) + b"\xcf"
    code += b"\x9c\x5b" + leave(0)  # PUSHFD; POP EBX
    _, machine = status_of(tmp_path, code, bare)
    assert machine.inspect().registers["rbx"] == 0x003C_7CD7


# --- devices --------------------------------------------------------------------------------------------------

APIC = 0xFEE0_0000
SPURIOUS, TASK_PRIORITY, INITIAL_COUNT = APIC + 0xF0, APIC + 0x80, APIC + 0x380


@pytest.mark.parametrize("bare", BOTH)
def test_read_modify_write_of_device_memory(tmp_path, bare):
    """OR, XCHG, INC, ADD, BTS, PUSH and POP with the local APIC's registers as operands."""
    code = b"\x81\x0d" + dword(SPURIOUS) + dword(0x100)  # OR DWORD [SVR], 0x100
    code += b"\xb8\x10\0\0\0" + b"\x87\x05" + dword(TASK_PRIORITY)  # MOV EAX, 0x10; XCHG [TPR], EAX
    code += b"\xff\x05" + dword(TASK_PRIORITY)  # INC DWORD [TPR]
    code += b"\x83\x05" + dword(TASK_PRIORITY) + b"\x20"  # ADD DWORD [TPR], 0x20
    code += b"\x0f\xba\x2d" + dword(TASK_PRIORITY) + b"\x03"  # BTS DWORD [TPR], 3
    code += b"\xff\x35" + dword(TASK_PRIORITY) + b"\x5b"  # PUSH DWORD [TPR]; POP EBX
    code += b"\x8b\x0d" + dword(SPURIOUS)  # MOV ECX, [SVR]
    code += b"\x01\x1d" + dword(INITIAL_COUNT)  # ADD [INITIAL_COUNT], EBX
    code += b"\x88\xd8" + leave_with_al()
    value, machine = status_of(tmp_path, code, bare)
    assert value == 0x10 + 1 + 0x20 + 8 & 0x7F
    assert machine.inspect().registers["rcx"] & 0x100
    assert machine.inspect().registers["rax"] & 0xFF == 0x39


@pytest.mark.parametrize("bare", BOTH)
def test_strings_to_and_from_ports(tmp_path, bare):
    """The fw_cfg signature comes by REP INSB and goes to the debug console by REP OUTSB."""
    buffer = BASE + 0x400
    code = bytes.fromhex("66ba1005 66b80000 66ef")  # OUT 0x510, 0
    code += b"\x66\xba\x11\x05" + b"\xbf" + dword(buffer) + b"\xb9" + dword(4) + b"\xf3\x6c"
    code += b"\x66\xba\xe9\0" + b"\xbe" + dword(buffer) + b"\xb9" + dword(4) + b"\xf3\x6e"
    _, machine = status_of(tmp_path, code + leave(0), bare)
    assert machine.console.output == b"QEMU"
    assert machine.memory.read(buffer, 5) == b"QEMU" + bytes(1)


@pytest.mark.parametrize("bare", BOTH)
def test_strings_to_device_memory(tmp_path, bare):
    """REP MOVSD from the local APIC's page to RAM, and MOVSB in RAM behind it."""
    buffer = BASE + 0x400
    code = b"\xbe" + dword(APIC + 0x30) + b"\xbf" + dword(buffer) + b"\xb9" + dword(1) + b"\xf3\xa5"
    value, machine = status_of(tmp_path, code + leave(3), bare)
    assert machine.memory.read(buffer, 4) == dword(0x0005_0014)  # the version register


@pytest.mark.parametrize("bare", BOTH)
def test_nothing_answers_where_nothing_is(tmp_path, bare):
    """Reads of empty ports and addresses give ones, writes are lost."""
    code = b"\xa1" + dword(0xD000_0000) + b"\x89\xc3"  # MOV EAX, [0xD0000000]; MOV EBX, EAX
    code += b"\xc7\x05" + dword(0xD000_0000) + dword(1)
    code += b"\x66\xba\x34\x12\xed"  # IN EAX, 0x1234
    code += b"\x21\xd8" + leave_with_al()  # AND EAX, EBX
    assert status_of(tmp_path, code, bare)[0] == 0x7F  # of 0xFF the exit status keeps seven bits


@pytest.mark.parametrize("bare", BOTH)
def test_accesses_across_pages_where_nothing_is(tmp_path, bare):
    """Parts of 1 to 3 bytes each; and from the end of a device's page into nothing."""
    code = b"\x31\xdb"
    for start in (0xD000_0FFD, 0xD000_0FFE, 0xD000_0FFF, APIC + 0xFFE):
        code += b"\x03\x1d" + dword(start) + b"\x89\x1d" + dword(start)  # ADD EBX, [start]; MOV [start], EBX
    code += leave(4)
    assert status_of(tmp_path, code, bare)[0] == 4


@pytest.mark.parametrize("bare", BOTH)
def test_instructions_with_many_accesses_of_device_memory(tmp_path, bare):
    """PUSHA, POPA, ENTER with 31 levels and FXSAVE where nothing is: no instruction has too many accesses."""
    code = b"\xbc" + dword(0xD000_1002) + b"\x60\x61" + b"\xc8\x10\x00\x1f"
    code += bytes.fromhex("0f20e0 0d00020000 0f22e0")  # CR4.OSFXSR
    code += b"\x0f\xae\x05" + dword(0xD000_0F00) + leave(5)
    assert status_of(tmp_path, code, bare)[0] == 5


@pytest.mark.parametrize("bare", BOTH)
@pytest.mark.parametrize("string", [b"\xf3\xaa", b"\xf3\x6e", b"\xf3\xa5"], ids=["STOSB", "OUTSB", "MOVSD"])
def test_limits_hold_in_a_long_rep_of_device_accesses(tmp_path, bare, string):
    """Four thousand million elements that the host has to perform: the run ends at its limit all the same."""
    code = b"\xbf" + dword(0xD000_0000) + b"\xbe" + dword(0xD000_0000) + b"\x66\xba\xe9\x00"
    code += b"\xb9" + dword(0xFFFF_FFFF) + string
    machine, result = run_flat(tmp_path, code, bare=bare, limit=20)
    assert result.stop == "INSTRUCTION_LIMIT"
    done = 0xFFFF_FFFF - machine.inspect().registers["rcx"]
    assert 0 < done < 10_000


def exception_guest(handler: bytes, work: bytes) -> bytes:
    """`work` with the stack in memory without device or RAM, and `handler` for vectors 0 to 31."""
    start = b"\x0f\x01\x1d" + dword(POINTER) + b"\xbc" + dword(0xD010_0000)
    parts = {
        BASE: start + work,
        HANDLER: handler,
        IDT: gate32(HANDLER) * 32,
        POINTER: struct.pack("<HI", 8 * 32 - 1, IDT),
    }
    return at(BASE, parts)


@pytest.mark.parametrize("bare", BOTH)
def test_a_delivery_over_the_bus_leaves_no_answers(tmp_path, bare):
    """The stack is no RAM: what its writes were answered must not answer the handler's reads."""
    handler = b"\xa1" + dword(APIC + 0x30) + b"\x89\xc3" + leave(0)  # MOV EAX, [version]; MOV EBX, EAX
    fault = b"\x8b\x0d" + dword(APIC + 0x20) + b"\xf7\x35" + dword(0xD800_0000 - 0x1000) + b"\x0f\x0b"
    _, machine = status_of(tmp_path, exception_guest(handler, fault), bare)  # DIV by ones, or UD2
    assert machine.inspect().registers["rbx"] == 0x0005_0014


@pytest.mark.parametrize("bare", BOTH)
@pytest.mark.parametrize("again", [b"\xf1", b"\xcc", b"\x0f\x0b"], ids=["INT1", "INT3", "UD2"])
def test_limits_hold_when_handlers_raise_exceptions_for_ever(tmp_path, again, bare):
    machine, result = run_flat(tmp_path, exception_guest(again, again), bare=bare, limit=2000)
    assert (result.stop, result.retired) == ("INSTRUCTION_LIMIT", 2000)


@pytest.mark.parametrize("bare", BOTH)
def test_text_on_the_screen(tmp_path, bare):
    text = b"vmx"
    code = b"".join(
        b"\x66\xc7\x05" + dword(0xB8000 + 2 * i) + bytes([byte, 7]) for i, byte in enumerate(text)
    )
    _, machine = status_of(tmp_path, code + leave(0), bare)
    assert machine.memory.read(0xB8000, 6) == b"v\x07m\x07x\x07"


def test_string_stores_wrap_at_the_address_size(tmp_path):
    """REP STOSB with 16-bit addresses goes on at offset 0 behind 0xFFFF, whatever the segment's limit."""
    fill = bytes.fromhex("b041 bff0ff0000 b920000000 fc 67f3aa")  # AL 'A', EDI 0xFFF0, ECX 32, CLD, REP STOSB
    machine, result = run_flat(tmp_path, fill + leave(0), load_mode="protected32", bare=True)
    assert result.stop == "DEBUG_EXIT"
    assert machine.memory.read(0xFFF0, 16) == machine.memory.read(0, 16) == b"A" * 16

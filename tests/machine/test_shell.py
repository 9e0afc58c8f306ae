"""Typing at the bundled guest's shell while the machine runs in pieces."""

import pytest

from tests.machine.world import BOTH
from vmx import BufferConsole, Machine, MachineConfig

PIECE = 2_000_000  # instructions


def start(bare):
    console = BufferConsole()
    machine = Machine(MachineConfig(guest="teach", bare=bare, memory=32 << 20), console=console)
    return machine, console


def run_until(machine, console, text, pieces=60):
    """Run in pieces until `text` was printed after what was found before."""
    for _ in range(pieces):
        if console.expect(text):
            return None
        result = machine.run(max_instructions=PIECE)
        if result.stop != "INSTRUCTION_LIMIT":
            assert console.expect(text), console.text
            return result
    raise AssertionError(f"{text!r} was never printed; the console says:\n{console.text}")


@pytest.mark.parametrize("bare", BOTH)
def test_a_command_is_typed_and_answered(bare):
    machine, console = start(bare)
    run_until(machine, console, b"teach> ")
    console.feed(b"primes 100\n")
    run_until(machine, console, b"25 primes up to 100, the last is 97")
    run_until(machine, console, b"teach> ")
    console.feed(b"nonsense\n")
    run_until(machine, console, b"teach> ")
    console.feed(b"poweroff\n")
    result = run_until(machine, console, b"poweroff")
    assert (result or machine.run(max_instructions=PIECE)).stop == "POWEROFF"


def test_reboot_goes_through_the_keyboard_controller():
    machine, console = start(False)
    run_until(machine, console, b"teach> ")
    console.feed(b"reboot\n")
    result = machine.run(max_instructions=20 * PIECE)
    assert (result.stop, result.exit_status) == ("RESET", 16)

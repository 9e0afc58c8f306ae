"""memtest86+ by the Linux boot protocol, until its screen shows that tests pass."""

import re

import pytest

from vmx import BufferConsole, Machine, MachineConfig

pytestmark = [pytest.mark.linux, pytest.mark.slow, pytest.mark.xdist_group("linux")]

PIECE, PIECES = 5_000_000, 120
TEXT_BUFFER, TEXT_BYTES = 0xB_8000, 0x8000


def screen(machine) -> str:
    return machine.platform.devices["vga"].screen_text(machine.memory.read(TEXT_BUFFER, TEXT_BYTES))


@pytest.mark.parametrize("image, bare", [("kernel", False), ("kernel32", True)])
def test_to_its_running_screen(memtest, image, bare):
    config = MachineConfig(kernel=str(memtest[image]), memory="64M", bare=bare, record=False)
    machine = Machine(config, console=BufferConsole())
    for _ in range(PIECES):
        result = machine.run(max_instructions=PIECE, timeout_s=60)
        assert result.stop == "INSTRUCTION_LIMIT", result.message
        if re.search("Test #[1-9]", screen(machine)):  # so test 0 has run
            break
    text = screen(machine)
    assert "Memtest86+" in text
    assert re.search("Test #[1-9]", text), text
    assert "Status: Testing" in text
    assert "Errors: 0" in text
    assert ("x32" if image == "kernel32" else "x64") in text
    assert result.undecoded == {}

"""i8042 keyboard controller (IBM PS/2 hybrid technical reference, "Keyboard and Auxiliary Device
Controller").

The controller is complete for what drivers ask of it; no keyboard is plugged in, and there is no auxiliary
port. A byte sent to the missing keyboard gets the controller's own answer at once: 0xFE with the time-out
bit.
"""

from __future__ import annotations

from collections.abc import Callable

from .device import Device

DATA, COMMAND = 0, 4  # offsets; reading COMMAND gives the status

STATUS_OBF, STATUS_SYS, STATUS_CMD, STATUS_UNLOCKED = 0x01, 0x04, 0x08, 0x10
STATUS_AUX, STATUS_TIMEOUT = 0x20, 0x40
CTR_KEYBOARD_IRQ, CTR_SYS, CTR_KEYBOARD_OFF, CTR_AUX_OFF = 0x01, 0x04, 0x10, 0x20
OUTPUT_NO_RESET, OUTPUT_A20 = 0x01, 0x02

SELF_TEST_PASSED, PORT_PRESENT, AUX_TEST_CLOCK_STUCK = 0x55, 0x00, 0x02
INPUT_PORT = 0xA0  # keyboard not locked, no manufacturing jumper
RESEND = 0xFE


class I8042(Device):
    """Data at offset 0, command and status at 4. `irq1` is the keyboard's line.

    `reset()` is called for the reset pulse, `a20(level)` when the output port changes the A20 gate.
    """

    access_sizes = (1,)
    WINDOWS = ((0x60, 1, 0), (0x64, 1, 4))
    FIELDS = ("ram", "output_port", "queue", "last_data", "expecting", "last_was_command", "system_flag")

    def __init__(self, irq1, reset: Callable[[], object], a20: Callable[[bool], object] | None = None):
        self.irq1 = irq1
        self.pull_reset = reset
        self.a20 = a20 or (lambda level: None)
        self.reset()

    def reset(self) -> None:
        # Byte 0 is the command byte (CTR). Keyboard translation is on, as firmware leaves it.
        self.ram = [0x45] + [0] * 31
        self.output_port = 0xCF
        self.queue: list[list[int]] = []  # [byte, status bits that go with it]
        self.last_data = 0
        self.expecting = 0  # command whose parameter comes next, 0 for none
        self.last_was_command = False
        self.system_flag = True
        self._update()

    def after_load(self) -> None:
        self._update()

    def send_scancodes(self, data: bytes) -> None:
        """Bytes as if from a keyboard, for guests that read the VGA console's keyboard."""
        for byte in data:
            self._answer(byte)

    def _answer(self, byte: int, status: int = 0) -> None:
        self.queue.append([byte, status])
        self._update()

    def _update(self) -> None:
        ready = bool(self.queue) and not self.queue[0][1] & STATUS_AUX
        self.irq1.set(ready and bool(self.ram[0] & CTR_KEYBOARD_IRQ))

    def read(self, offset: int, size: int) -> int:
        if offset == COMMAND:
            status = STATUS_UNLOCKED
            if self.system_flag:
                status |= STATUS_SYS
            if self.last_was_command:
                status |= STATUS_CMD
            if self.queue:
                status |= STATUS_OBF | self.queue[0][1]
            return status
        if self.queue:
            self.last_data = self.queue.pop(0)[0]
            self.irq1.set(False)  # each byte has its own edge
            self._update()
        return self.last_data

    def write(self, offset: int, size: int, value: int) -> None:
        value &= 0xFF
        if offset == COMMAND:
            self.last_was_command = True
            self.expecting = 0
            self._command(value)
        else:
            self.last_was_command = False
            command, self.expecting = self.expecting, 0
            self._data(command, value)

    def _command(self, command: int) -> None:
        if 0x20 <= command <= 0x3F:
            self._answer(self.ram[command & 0x1F])
        elif 0x60 <= command <= 0x7F or 0xD1 <= command <= 0xD4:
            self.expecting = command
        elif command == 0xA7:
            self.ram[0] |= CTR_AUX_OFF
        elif command == 0xA8:
            self.ram[0] &= ~CTR_AUX_OFF
        elif command == 0xA9:
            self._answer(AUX_TEST_CLOCK_STUCK)
        elif command == 0xAA:
            self.system_flag = True
            self._answer(SELF_TEST_PASSED)
        elif command == 0xAB:
            self._answer(PORT_PRESENT)
        elif command == 0xAD:
            self.ram[0] |= CTR_KEYBOARD_OFF
        elif command == 0xAE:
            self.ram[0] &= ~CTR_KEYBOARD_OFF
        elif command == 0xC0:
            self._answer(INPUT_PORT)
        elif command == 0xD0:
            self._answer(self.output_port)
        elif command == 0xDD or command == 0xDF:
            # HP Vectra's short commands for the A20 gate, which many kernels still send
            self._write_output_port(self.output_port & ~OUTPUT_A20 | (command & OUTPUT_A20))
        elif command >= 0xF0 and not command & OUTPUT_NO_RESET:
            self.pull_reset()

    def _data(self, command: int, value: int) -> None:
        if 0x60 <= command <= 0x7F:
            self.ram[command & 0x1F] = value
            if command == 0x60:
                self.system_flag = bool(value & CTR_SYS)
            self._update()
        elif command == 0xD1:
            self._write_output_port(value)
        elif command == 0xD2 or command == 0xD3:
            # 0xD3 should loop back marked as auxiliary data: without that port it comes unmarked, which is
            # how drivers find out.
            self._answer(value)
        elif command == 0xD4:
            self._answer(RESEND, STATUS_AUX | STATUS_TIMEOUT)
        else:
            self._answer(RESEND, STATUS_TIMEOUT)

    def _write_output_port(self, value: int) -> None:
        changed = self.output_port ^ value
        self.output_port = value
        if changed & OUTPUT_A20:
            self.a20(bool(value & OUTPUT_A20))
        if not value & OUTPUT_NO_RESET:
            self.pull_reset()

"""The far end of a guest's serial line: a terminal, a pipe, or a buffer.

The machine calls `write` with what the guest sends and `poll` for what the guest shall receive. Neither
blocks. A terminal is set to raw mode, so that every key reaches the guest; Ctrl-A is the one key that speaks
to vmx.
"""

import atexit
import os
import select
import signal
import stat
import sys
import termios
import time
from collections.abc import Callable
from typing import BinaryIO

ESCAPE = 0x01  # Ctrl-A
HELP = b"""\r
Ctrl-A X  quit: stop the machine, print its exits\r
Ctrl-A S  print the machine's status\r
Ctrl-A H  print this\r
Ctrl-A Ctrl-A  send Ctrl-A to the guest\r
Every other key goes to the guest, Ctrl-C too.\r
"""

# A writer that closes its pipe within this time has its input known before the guest starts.
PIPE_WAIT_S = 0.25
_FLUSH_BYTES = 4096


class Console:
    """No input, no output; the base of the others.

    complete: all input is known already. The machine then polls at fixed virtual times: the run repeats.
    quit_requested: the user wants the machine stopped.
    closed: no more input will come. The guest runs on.
    log: a binary file that receives all output too.
    status: returns the text for Ctrl-A S.
    """

    complete = True
    closed = True

    def __init__(self, log: BinaryIO | None = None):
        self.log = log
        self.quit_requested = False
        self.status: Callable[[], str] | None = None

    def write(self, data: bytes) -> None:
        """Output of the guest."""
        if self.log is not None:
            self.log.write(data)

    def poll(self, limit: int | None = None) -> bytes:
        """Input for the guest: at most `limit` bytes of what is there, without waiting."""
        return b""

    def flush(self) -> None:
        """Bring out what was written so far."""

    def close(self) -> None:
        """Bring out everything and put the terminal back as it was. May be called twice."""
        self.flush()

    def __enter__(self) -> "Console":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class BufferConsole(Console):
    """Input and output in memory, for programs and tests.

    >>> console = BufferConsole()
    >>> console.feed(b"ls\\n")
    """

    closed = False

    def __init__(self, log: BinaryIO | None = None):
        super().__init__(log)
        self.output = bytearray()
        self._input = bytearray()
        self._expected_from = 0

    def write(self, data: bytes) -> None:
        super().write(data)
        self.output += data

    def feed(self, data: bytes) -> None:
        """Type `data`; the guest receives it as it drains its UART."""
        self._input += data

    def poll(self, limit: int | None = None) -> bytes:
        data = bytes(self._input[:limit])
        del self._input[: len(data)]
        return data

    def expect(self, text: bytes) -> bool:
        """Whether `text` came since the last text that was found; a found text is passed over."""
        found = self.output.find(text, self._expected_from)
        if found >= 0:
            self._expected_from = found + len(text)
        return found >= 0

    @property
    def text(self) -> str:
        """All output so far; bytes that are not UTF-8 are replaced."""
        return self.output.decode(errors="replace")


class _OutputConsole(Console):
    """Writes to a file descriptor, a line or a poll at a time: a system call per character would be slow."""

    def __init__(self, output_fd: int, log: BinaryIO | None = None):
        super().__init__(log)
        self._output_fd = output_fd
        self._pending = bytearray()

    def write(self, data: bytes) -> None:
        super().write(data)
        self._pending += data
        if b"\n" in data or len(self._pending) >= _FLUSH_BYTES:
            self.flush()

    def flush(self) -> None:
        while self._pending:
            try:
                written = os.write(self._output_fd, self._pending)
            except BlockingIOError:
                select.select([], [self._output_fd], [], 1.0)
            except OSError:
                # The reader is gone (vmx run | head): nobody watches any more.
                self._pending.clear()
                self.quit_requested = True
            else:
                del self._pending[:written]


class PipeConsole(_OutputConsole):
    """Input from a file or a pipe, output to any descriptor. The end of the input does not end the run.

    A file, and a pipe whose writer finishes at once, are read whole before the guest starts: such a run
    repeats exactly. Input of a slower writer arrives as the host's clock has it.
    """

    def __init__(self, input_fd: int = 0, output_fd: int = 1, log: BinaryIO | None = None):
        super().__init__(output_fd, log)
        self._input_fd = input_fd
        self._input = bytearray()
        self._at_end = False
        self._read_what_is_there(PIPE_WAIT_S)
        self.complete = self._at_end

    def _read_what_is_there(self, wait_s: float) -> None:
        deadline = time.monotonic() + wait_s
        try:
            is_file = stat.S_ISREG(os.fstat(self._input_fd).st_mode)
            while not self._at_end:
                remaining = max(0.0, deadline - time.monotonic())
                if not is_file and not select.select([self._input_fd], [], [], remaining)[0]:
                    return
                data = os.read(self._input_fd, 1 << 16)
                self._input += data
                self._at_end = not data
        except BlockingIOError:
            return
        except OSError:  # standard input is closed
            self._at_end = True

    @property
    def closed(self) -> bool:  # type: ignore[override]
        return self._at_end and not self._input

    def poll(self, limit: int | None = None) -> bytes:
        if self._pending:
            self.flush()
        if not self._at_end and (limit is None or len(self._input) < limit):
            self._read_what_is_there(0)
        data = bytes(self._input[:limit])
        del self._input[: len(data)]
        return data


class TerminalConsole(_OutputConsole):
    """The terminal in raw mode. Whatever ends the process, short of SIGKILL, puts the terminal back."""

    complete = False
    closed = False

    def __init__(self, input_fd: int = 0, output_fd: int = 1, log: BinaryIO | None = None):
        super().__init__(output_fd, log)
        self._input_fd = input_fd
        self._escaped = False
        self._typed = bytearray()
        self._saved = termios.tcgetattr(input_fd)
        self._old_handlers: dict[int, object] = {}
        self._set_raw()
        atexit.register(self.close)
        self._handle(signal.SIGTSTP, self._stopped)
        self._handle(signal.SIGCONT, self._continued)
        for number in (signal.SIGTERM, signal.SIGHUP):
            # A handler that someone installed ends the run in order, and so closes this console.
            if signal.getsignal(number) == signal.SIG_DFL:
                self._handle(number, self._killed)

    def _set_raw(self) -> None:
        mode = termios.tcgetattr(self._input_fd)
        # As cfmakeraw(3), but output processing stays: what vmx itself prints needs its newlines.
        mode[0] &= ~(
            termios.IGNBRK
            | termios.BRKINT
            | termios.PARMRK
            | termios.ISTRIP
            | termios.INLCR
            | termios.IGNCR
            | termios.ICRNL
            | termios.IXON
        )
        mode[2] = mode[2] & ~(termios.CSIZE | termios.PARENB) | termios.CS8
        mode[3] &= ~(termios.ECHO | termios.ECHONL | termios.ICANON | termios.ISIG | termios.IEXTEN)
        mode[6][termios.VMIN], mode[6][termios.VTIME] = 0, 0
        termios.tcsetattr(self._input_fd, termios.TCSANOW, mode)

    def _restore(self) -> None:
        # TCSANOW: waiting for output to drain could hang on a terminal that is gone.
        try:
            termios.tcsetattr(self._input_fd, termios.TCSANOW, self._saved)
        except termios.error:
            pass

    def _handle(self, number: int, handler: Callable[[int, object], None]) -> None:
        try:
            self._old_handlers[number] = signal.signal(number, handler)
        except ValueError:  # not the main thread: there, atexit and close must do
            pass

    def _stopped(self, number: int, frame: object) -> None:
        self._restore()
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
        # Continued, or never stopped: the kernel does not stop an orphaned process group.
        self._continued(number, frame)

    def _continued(self, number: int, frame: object) -> None:
        signal.signal(signal.SIGTSTP, self._stopped)
        self._set_raw()

    def _killed(self, number: int, frame: object) -> None:
        self._restore()
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

    def close(self) -> None:
        super().close()
        self._restore()
        atexit.unregister(self.close)
        for number, handler in self._old_handlers.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._old_handlers.clear()

    def poll(self, limit: int | None = None) -> bytes:
        if self._pending:
            self.flush()
        if not self.closed and select.select([self._input_fd], [], [], 0)[0]:
            try:
                keys = os.read(self._input_fd, 4096)
            except OSError:
                keys = b""
            if not keys:  # readable and empty: the terminal has hung up
                self.closed = True
                self.quit_requested = True
            for key in keys:
                self._key(key)
        data = bytes(self._typed[:limit])
        del self._typed[: len(data)]
        return data

    def _key(self, key: int) -> None:
        if not self._escaped:
            if key == ESCAPE:
                self._escaped = True
            else:
                self._typed.append(key)
            return
        self._escaped = False
        command = chr(key).lower()
        if key == ESCAPE:
            self._typed.append(ESCAPE)
        elif command == "x":
            self.quit_requested = True
        elif command in ("h", "?"):
            self._say(HELP)
        elif command == "s":
            text = self.status() if self.status else "no status"
            self._say(b"\r\n" + text.replace("\n", "\r\n").encode() + b"\r\n")

    def _say(self, data: bytes) -> None:
        """To the terminal, not to the log: the guest did not write it."""
        self._pending += data
        self.flush()


def open_console(serial: str = "stdio", output_fd: int = 1, log: BinaryIO | None = None) -> Console:
    """The console for a configuration's `serial`: for "stdio" the terminal if there is one, else the pipe."""
    if serial == "null":
        return Console(log)
    sys.stdout.flush()
    sys.stderr.flush()
    try:
        if os.isatty(0):
            return TerminalConsole(0, output_fd, log)
    except termios.error:
        pass
    return PipeConsole(0, output_fd, log)

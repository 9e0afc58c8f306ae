"""Consoles: buffer, pipe, and a real pseudo-terminal whose mode must always come back."""

import os
import pty
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

from vmx.hypervisor.console import BufferConsole, Console, PipeConsole, TerminalConsole

ROOT = Path(__file__).parents[2]


def test_buffer_console():
    console = BufferConsole()
    console.write(b"login: ")
    assert console.expect(b"login:")
    assert not console.expect(b"login:")
    console.feed(b"root\n")
    assert console.poll(2) == b"ro"
    assert console.poll() == b"ot\n"
    assert console.poll() == b""
    assert console.text == "login: "


def test_null_console_logs(tmp_path):
    with open(tmp_path / "log", "wb") as log, Console(log) as console:
        console.write(b"x")
        assert console.poll() == b""
    assert (tmp_path / "log").read_bytes() == b"x"


class Pipes:
    def __init__(self):
        self.input_read, self.input_write = os.pipe()
        self.output_read, self.output_write = os.pipe()


@pytest.fixture
def pipes():
    return Pipes()


def test_input_of_a_finished_writer_is_complete(pipes):
    os.write(pipes.input_write, b"poweroff\n")
    os.close(pipes.input_write)
    console = PipeConsole(pipes.input_read, pipes.output_write)
    assert console.complete and not console.closed
    assert console.poll(5) == b"power"
    assert console.poll() == b"off\n"
    assert console.closed and not console.quit_requested


def test_a_file_is_complete(tmp_path, pipes):
    path = tmp_path / "input"
    path.write_bytes(b"x" * 100_000)
    with open(path, "rb") as file:
        console = PipeConsole(file.fileno(), pipes.output_write)
    assert console.complete
    assert len(console.poll()) == 100_000


def test_input_of_a_slow_writer_arrives_later(pipes):
    console = PipeConsole(pipes.input_read, pipes.output_write)
    assert not console.complete
    assert console.poll() == b""
    os.write(pipes.input_write, b"late")
    assert console.poll() == b"late"
    os.close(pipes.input_write)
    assert console.poll() == b""
    assert console.closed and not console.quit_requested


def test_closed_standard_input_is_the_end(pipes):
    os.close(pipes.input_read)
    assert PipeConsole(pipes.input_read, pipes.output_write).closed


def test_output_comes_out_at_a_newline_a_poll_and_the_end(pipes):
    console = PipeConsole(pipes.input_read, pipes.output_write)
    console.write(b"a line\n")
    assert os.read(pipes.output_read, 100) == b"a line\n"
    console.write(b"# ")
    console.poll()
    assert os.read(pipes.output_read, 100) == b"# "
    console.write(b"end")
    console.close()
    assert os.read(pipes.output_read, 100) == b"end"


def test_a_reader_that_left_ends_the_run(pipes):
    console = PipeConsole(pipes.input_read, pipes.output_write)
    os.close(pipes.output_read)
    console.write(b"nobody reads this\n")
    assert console.quit_requested


@pytest.fixture
def terminal():
    master, slave = pty.openpty()
    yield master, slave
    os.close(master)
    os.close(slave)


def keys(console, master, data):
    os.write(master, data)
    time.sleep(0.02)
    return console.poll()


def test_terminal_keys(terminal):
    master, slave = terminal
    with TerminalConsole(slave, slave) as console:
        assert keys(console, master, b"ls\r\x03\x1a") == b"ls\r\x03\x1a"  # Ctrl-C and Ctrl-Z are the guest's
        assert keys(console, master, b"\x01\x01") == b"\x01"
        assert keys(console, master, b"\x01") == b""
        assert keys(console, master, b"hq") == b"q"
        assert b"Ctrl-A X" in os.read(master, 1000)
        console.status = lambda: "RIP 0x1000"
        assert keys(console, master, b"\x01s") == b""
        assert b"RIP 0x1000" in os.read(master, 1000)
        assert not console.quit_requested
        assert keys(console, master, b"a\x01X") == b"a"
        assert console.quit_requested


def test_terminal_mode_comes_back(terminal):
    _, slave = terminal
    before = termios.tcgetattr(slave)
    console = TerminalConsole(slave, slave)
    assert not termios.tcgetattr(slave)[3] & termios.ECHO
    console.close()
    console.close()
    assert termios.tcgetattr(slave) == before
    assert signal.getsignal(signal.SIGTSTP) == signal.SIG_DFL


CHILD = """
import os, signal, sys, time
from vmx.hypervisor.console import TerminalConsole
console = TerminalConsole(0, 1)
print("raw", flush=True)
{then}
"""


@pytest.mark.parametrize(
    "then, number",
    [
        ("sys.exit(3)", None),
        ("raise RuntimeError", None),
        ("time.sleep(60)", signal.SIGTERM),
        ("time.sleep(60)", signal.SIGHUP),
        ("time.sleep(60)", signal.SIGINT),
    ],
)
def test_terminal_mode_comes_back_however_the_process_ends(terminal, then, number):
    master, slave = terminal
    before = termios.tcgetattr(slave)
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD.format(then=then)],
        cwd=ROOT,
        stdin=slave,
        stdout=slave,
        stderr=subprocess.DEVNULL,
    )
    assert b"raw" in os.read(master, 100)
    if number:
        assert not termios.tcgetattr(slave)[3] & termios.ICANON
        child.send_signal(number)
    assert child.wait(10) != 0
    assert termios.tcgetattr(slave) == before


def test_stop_and_continue(terminal):
    master, slave = terminal
    before = termios.tcgetattr(slave)
    # A group of its own, with a parent outside it: processes of an orphaned group are never stopped by SIGTSTP.
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD.format(then="time.sleep(60)")],
        cwd=ROOT,
        stdin=slave,
        stdout=slave,
        process_group=0,
    )
    try:
        assert b"raw" in os.read(master, 100)
        child.send_signal(signal.SIGTSTP)
        assert os.WIFSTOPPED(os.waitpid(child.pid, os.WUNTRACED)[1])
        assert termios.tcgetattr(slave) == before
        child.send_signal(signal.SIGCONT)
        deadline = time.monotonic() + 5
        while termios.tcgetattr(slave)[3] & termios.ICANON and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not termios.tcgetattr(slave)[3] & termios.ICANON
    finally:
        child.terminate()
        child.wait(10)

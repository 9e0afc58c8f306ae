"""`vmx run` from configuration to exit status: with a scripted machine for what the command itself does, and
with the real one for the whole."""

import importlib.util
import json
import os
import pty
import select
import signal
import subprocess
import sys
import termios
import time
from types import SimpleNamespace

import pytest

import vmx
from tests.cli.test_commands import ROOT
from tests.cli.test_commands import vmx as command
from vmx.cli.main import main
from vmx.cli.warmup import ensure_compiled
from vmx.errors import ExitStatus, NotModelledError, status_of_stop
from vmx.ledger import files
from vmx.ledger.ledger import Ledger


class ScriptedMachine:
    """Keeps the contract of `vmx.Machine` that the command relies on; does what the test says."""

    retired, virtual_ns = 100, 1600

    def __init__(self, config, console):
        self.config, self.console = config, console
        self.ledger = Ledger(record=config.record)
        self.stopped = False
        ScriptedMachine.last = self

    def stop(self):
        self.stopped = True

    def script(self):
        return "POWEROFF"

    def run(self, max_instructions=None, timeout_s=None):
        self.console.write(b"booting\n")
        self.ledger.close(self.ledger.open(30, 0x3F80003), 1000)
        stop = self.script()
        return SimpleNamespace(
            stop=stop,
            exit_status=status_of_stop(stop),
            message="at RIP 0x1000 in 64-bit mode",
            retired=self.retired,
            virtual_ns=self.virtual_ns,
            host_s=0.5,
            undecoded={"0f 04": 3},
        )


@pytest.fixture
def run(monkeypatch, capfd):
    monkeypatch.setattr(vmx, "Machine", ScriptedMachine, raising=False)
    monkeypatch.setattr("vmx.cli.warmup.ensure_compiled", lambda quiet: 0.0)

    def run(*arguments, script=None):
        if script:
            monkeypatch.setattr(ScriptedMachine, "script", script)
        with pytest.raises(SystemExit) as end:
            main(["run", *map(str, arguments)])
        out, err = capfd.readouterr()
        return end.value.code, out, err

    return run


def test_console_on_stdout_and_report_on_stderr(run):
    status, out, err = run()
    assert (status, out) == (0, "booting\n")
    assert "IO_INSTRUCTION" in err and "POWEROFF: at RIP 0x1000" in err
    assert "0f 04" in err


def test_json_has_stdout_for_itself(run):
    status, out, err = run("--json")
    summary = json.loads(out)
    assert summary["exits_by_reason"][0]["name"] == "IO_INSTRUCTION"
    assert summary["retired"] == 100
    assert "booting" in err


def test_quiet(run):
    assert run("--quiet") == (0, "booting\n", "")
    status, _, err = run("--quiet", script=lambda machine: "TRIPLE_FAULT")
    assert status == ExitStatus.TRIPLE_FAULT
    assert err == "vmx: TRIPLE_FAULT: at RIP 0x1000 in 64-bit mode\n"


@pytest.mark.parametrize("stop", ["TRIPLE_FAULT", "HUNG", "TIMEOUT", "INSTRUCTION_LIMIT", "RESET"])
def test_every_stop_has_its_status(run, stop):
    status, _, err = run(script=lambda machine: stop)
    assert status == ExitStatus[stop]
    assert stop in err


def test_a_run_is_kept(run, tmp_path):
    run("-o", tmp_path / "kept", "--memory", "64M", "--control", "HLT_VMEXIT=on")
    kept = files.load(tmp_path / "kept")
    assert kept.console == b"booting\n"
    assert kept.config["memory"] == 64 << 20
    assert kept.exits["reason"].tolist() == [30]


def test_a_run_that_breaks_is_kept_too(run, tmp_path):
    def script(machine):
        raise NotModelledError("VMXON in SMM at RIP 0x2000 is not modelled")

    status, _, err = run("-o", tmp_path, script=script)
    assert status == ExitStatus.NOT_MODELLED
    assert "IO_INSTRUCTION" in err and err.rstrip().endswith(
        "vmx: VMXON in SMM at RIP 0x2000 is not modelled"
    )
    kept = files.load(tmp_path)
    assert kept.summary["stop"] == "ERROR" and kept.console == b"booting\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_stops_the_machine_and_keeps_the_run(run, tmp_path, number):
    def script(machine):
        os.kill(os.getpid(), number)
        return "INTERRUPTED" if machine.stopped else "POWEROFF"

    before = signal.getsignal(number)
    status, _, err = run("-o", tmp_path, script=script)
    assert status == ExitStatus.INTERRUPTED
    assert "IO_INSTRUCTION" in err
    assert files.load(tmp_path).summary["stop"] == "INTERRUPTED"
    assert signal.getsignal(number) == before


def test_ctrl_c_while_compiling(run, monkeypatch):
    def build(progress):
        progress(1, 2, "cpu.alu")
        raise KeyboardInterrupt

    units = SimpleNamespace(build=build)
    monkeypatch.setitem(sys.modules, "vmx.cpu.units", units)
    monkeypatch.setattr("vmx.cpu.units", units, raising=False)
    monkeypatch.setattr("vmx.cli.warmup.ensure_compiled", ensure_compiled)
    status, _, err = run()
    assert status == ExitStatus.INTERRUPTED
    assert err.splitlines() == [
        "vmx: compiling the processor, 1 of 2 units",
        "vmx: interrupted while compiling; what is compiled already is kept",
    ]


def test_options_win_over_the_file(run, tmp_path):
    path = tmp_path / "machine.toml"
    path.write_text('memory = "64M"\nappend = "a"\n[controls]\nHLT_VMEXIT = true\nRDTSC_VMEXIT = true\n')
    run("--config", path, "--append", "b", "--control", "RDTSC_VMEXIT=off", "--max-instructions", "1000")
    config = ScriptedMachine.last.config
    assert (config.memory, config.append, config.max_instructions) == (64 << 20, "b", 1000)
    assert config.controls == {"HLT_VMEXIT": True, "RDTSC_VMEXIT": False}


def test_trace_commands(run, tmp_path, capfd):
    run("-o", tmp_path / "a")
    run("-o", tmp_path / "b")
    with pytest.raises(SystemExit) as end:
        main(["trace", "show", str(tmp_path / "a"), "--exits", "5"])
    assert end.value.code == 0
    assert "reason IO_INSTRUCTION rip" in capfd.readouterr().out
    with pytest.raises(SystemExit) as end:
        main(["trace", "compare", str(tmp_path / "a"), str(tmp_path / "b")])
    assert end.value.code == 0
    run("-o", tmp_path / "b", script=lambda machine: "RESET")
    with pytest.raises(SystemExit) as end:
        main(["trace", "compare", str(tmp_path / "a"), str(tmp_path / "b")])
    assert end.value.code == ExitStatus.ERROR
    assert "summary.stop" in capfd.readouterr().out


needs_machine = pytest.mark.skipif(
    importlib.util.find_spec("vmx.machine.machine") is None
    or importlib.util.find_spec("vmx.cpu.units") is None,
    reason="vmx.Machine does not exist yet",
)


@needs_machine
def test_the_bundled_guest_repeats(tmp_path):
    for name in ("a", "b"):
        done = command("run", "--append", "run=hello", "-o", tmp_path / name)
        assert done.returncode == 0, done.stderr
        assert "Total Samples:" in done.stderr
    assert files.compare(files.load(tmp_path / "a"), files.load(tmp_path / "b")) is None


@needs_machine
def test_limits_end_the_real_machine():
    done = command("run", "--max-instructions", 1000)
    assert done.returncode == ExitStatus.INSTRUCTION_LIMIT, done.stderr
    assert "Traceback" not in done.stderr


@needs_machine
@pytest.mark.slow
def test_the_real_machine_on_a_terminal():
    """The bundled guest's shell, typed at, left with Ctrl-A X; the terminal is as before."""
    master, slave = pty.openpty()
    before = termios.tcgetattr(slave)
    child = subprocess.Popen(
        [sys.executable, "-m", "vmx", "run", "--guest", "teach"],
        cwd=ROOT,
        stdin=slave,
        stdout=slave,
        stderr=slave,
    )
    seen = bytearray()

    def wait_for(text):
        deadline = time.monotonic() + 300
        while text not in seen:
            ready, _, _ = select.select([master], [], [], 1)
            if ready:
                seen.extend(os.read(master, 4096))
            assert time.monotonic() < deadline and (ready or child.poll() is None), bytes(seen)

    try:
        wait_for(b"teach> ")
        os.write(master, b"uptime\r")
        wait_for(b"up 0.")
        os.write(master, b"\x01x")
        wait_for(b"Total Samples:")
        assert child.wait(30) == ExitStatus.INTERRUPTED
        assert termios.tcgetattr(slave) == before
    finally:
        child.kill()
        child.wait()
        os.close(master)
        os.close(slave)

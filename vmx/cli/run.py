"""`vmx run`: from options to a MachineConfig, a Machine on a console, and what is left at its end."""

import json
import os
import signal
import sys
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vmx.errors import ExitStatus, UsageError

if TYPE_CHECKING:
    from vmx.hypervisor.console import Console
    from vmx.machine.config import MachineConfig

EPILOG = (
    "Exit status: "
    + ", ".join(f"{status.value} {status.name.lower().replace('_', ' ')}" for status in ExitStatus)
    + "; (value << 1) | 1 when the guest writes value to isa-debug-exit (port 0xF4)."
)

_GUEST = {"rich_help_panel": "What boots"}
_MACHINE = {"rich_help_panel": "The machine"}
_VMX = {"rich_help_panel": "Virtualization"}
_RUN = {"rich_help_panel": "The run"}


def run(
    context: typer.Context,
    kernel: Annotated[
        Path | None,
        typer.Option(help="bzImage, ELF with a PVH note, multiboot-1 ELF, or flat binary.", **_GUEST),
    ] = None,
    guest: Annotated[
        str | None, typer.Option(help="A bundled or pulled guest, see: vmx guests list.", **_GUEST)
    ] = None,
    initrd: Annotated[Path | None, typer.Option(help="Initial RAM disk.", **_GUEST)] = None,
    append: Annotated[str | None, typer.Option(help="Kernel command line.", **_GUEST)] = None,
    module: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE[=STRING]", help="Multiboot module; repeatable.", **_GUEST),
    ] = None,
    load_address: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="Where a flat binary goes, e.g. 0x7C00.", **_GUEST)
    ] = None,
    load_mode: Annotated[
        str | None,
        typer.Option(
            metavar="MODE", help="Mode a flat binary starts in: real, protected32, long64.", **_GUEST
        ),
    ] = None,
    memory: Annotated[str | None, typer.Option(metavar="SIZE", help="RAM, e.g. 512M.", **_MACHINE)] = None,
    cpus: Annotated[int | None, typer.Option(help="Virtual CPUs.", **_MACHINE)] = None,
    cpu_model: Annotated[
        str | None, typer.Option(metavar="v1|v2", help="Instruction sets of the processor.", **_MACHINE)
    ] = None,
    ns_per_instruction: Annotated[
        int | None, typer.Option(metavar="NS", help="Virtual time of one instruction.", **_MACHINE)
    ] = None,
    rtc_start: Annotated[
        str | None, typer.Option(metavar="TIME", help="RTC at power-on, e.g. 2025-01-31T12:00.", **_MACHINE)
    ] = None,
    serial: Annotated[
        str | None, typer.Option(metavar="stdio|null", help="Far end of the serial line.", **_MACHINE)
    ] = None,
    seed: Annotated[str | None, typer.Option(metavar="N", help="Seed of what is random.", **_MACHINE)] = None,
    bare: Annotated[
        bool | None, typer.Option("--bare", help="Root operation, no hypervisor: bare metal.", **_VMX)
    ] = None,
    control: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=on|off", help="Switch a VMX control bit; repeatable.", **_VMX),
    ] = None,
    exception_bitmap: Annotated[
        str | None, typer.Option(metavar="MASK", help="Exceptions that exit, e.g. 0x4000.", **_VMX)
    ] = None,
    config: Annotated[
        Path | None, typer.Option(metavar="FILE.toml", help="Configuration; options win over it.", **_RUN)
    ] = None,
    max_instructions: Annotated[
        str | None, typer.Option(metavar="N", help="Stop after N instructions.", **_RUN)
    ] = None,
    timeout: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="Stop after this much host time.", **_RUN)
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="DIR", help="Keep console, config, summary, exits.", **_RUN),
    ] = None,
    record: Annotated[
        bool | None, typer.Option("--record/--no-record", help="One record per exit, or only counts.", **_RUN)
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Summary as JSON on stdout; the console goes to stderr.", **_RUN)
    ] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Print the guest's console and errors only.", **_RUN)
    ] = False,
    log: Annotated[
        str, typer.Option(metavar="LEVEL", help="debug, info, warning or error.", **_RUN)
    ] = "warning",
) -> None:
    """Boot a guest and print its VM exits by reason. Without options: the bundled guest.

    On a terminal, Ctrl-A X quits and Ctrl-A H lists the keys.
    """
    _set_log_level(log)
    options = {
        "kernel": kernel,
        "guest": guest,
        "initrd": initrd,
        "append": append,
        "modules": module or None,
        "load_address": load_address,
        "load_mode": load_mode,
        "memory": memory,
        "cpus": cpus,
        "cpu_model": cpu_model,
        "ns_per_instruction": ns_per_instruction,
        "rtc_start": rtc_start,
        "serial": serial,
        "seed": seed,
        "bare": bare,
        "exception_bitmap": exception_bitmap,
        "max_instructions": max_instructions,
        "timeout_s": timeout,
        "record": record,
    }
    machine_config = _configuration(config, options, control or [])
    _check_kernel(machine_config)
    status = _run(machine_config, output, as_json, quiet)
    raise typer.Exit(status)


def _configuration(file: Path | None, options: dict[str, Any], controls: list[str]) -> "MachineConfig":
    from vmx.cli import catalogue
    from vmx.machine.config import MachineConfig

    values = MachineConfig.from_toml(file).to_dict() if file else {}
    given = {key: value for key, value in options.items() if value is not None}
    if "kernel" in given and "guest" not in given:
        values.pop("guest", None)
    if "guest" in given and "kernel" not in given:
        values.pop("kernel", None)
        given = {**catalogue.options(given.pop("guest")), **given}
    switched = dict(_control(text) for text in controls)
    given["controls"] = {**values.get("controls", {}), **switched}
    return MachineConfig.from_dict({**values, **given})


def _control(text: str) -> tuple[str, bool]:
    name, _, state = text.partition("=")
    if state.lower() not in ("on", "off"):
        raise UsageError(f"--control {text}: write NAME=on or NAME=off")
    return name, state.lower() == "on"


def _check_kernel(config: "MachineConfig") -> None:
    """A kernel that cannot boot is reported before anything is compiled for it."""
    from vmx import boot

    if config.kernel is not None:
        boot.load(
            config.kernel,
            memory_bytes=config.memory,
            initrd_path=config.initrd,
            command_line=config.append,
            modules=config.module_pairs,
            load_address=config.load_address,
            cpus=config.cpus,
            mode=config.load_mode,
        )


def _run(config: "MachineConfig", output: Path | None, as_json: bool, quiet: bool) -> int:
    from vmx.cli.warmup import ensure_compiled

    ensure_compiled(quiet)

    from vmx import Machine
    from vmx.hypervisor.console import open_console
    from vmx.ledger.files import RunDirectory, summary_of

    directory = RunDirectory(output) if output else None
    console_log = directory.open_console_log() if directory else None
    if directory:
        directory.write_config(config)
    failure: Exception | None = None
    result: Any
    with open_console(config.serial, 2 if as_json else 1, console_log) as console:
        machine = Machine(config, console=console)
        console.status = getattr(machine, "status", None)
        if not quiet and not console.complete and os.isatty(0):
            print("vmx: Ctrl-A X quits, Ctrl-A H lists keys", file=sys.stderr, flush=True)
        with _stopped_by_signals(machine):
            try:
                result = machine.run(max_instructions=config.max_instructions, timeout_s=config.timeout_s)
            except Exception as error:
                # What was seen so far is kept whatever ended the run; the error itself is reported last.
                failure, result = error, _failed(machine, error)
            console.close()
            summary = summary_of(result, machine.ledger)
            if directory:
                directory.write_result(summary, machine.ledger.records)
    if console_log:
        console_log.close()
    _report(result, machine.ledger, summary, as_json, quiet, console)
    if failure:
        raise failure
    return int(result.exit_status)


@contextmanager
def _stopped_by_signals(machine: Any):
    """Ctrl-C and its like stop the machine in order; the writing of files that follows is not interrupted."""

    def stop(number: int, frame: object) -> None:
        machine.stop()

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    old = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def _failed(machine: Any, error: Exception) -> SimpleNamespace:
    """A RunResult for a run that ended in an exception."""
    return SimpleNamespace(
        stop="ERROR",
        exit_status=getattr(error, "exit_status", ExitStatus.ERROR),
        message=str(error) or type(error).__name__,
        retired=getattr(machine, "retired", 0),
        virtual_ns=getattr(machine, "virtual_ns", 0),
        host_s=0.0,
        undecoded={},
    )


def _report(result: Any, ledger: Any, summary: dict, as_json: bool, quiet: bool, console: "Console") -> None:
    if as_json:
        print(json.dumps(summary, indent=2))
    if quiet:
        if result.exit_status and result.stop not in ("DEBUG_EXIT", "ERROR"):
            print(f"vmx: {result.stop}: {result.message}", file=sys.stderr)
        return
    from vmx.ledger.table import print_exit_table

    mips = result.retired / result.host_s / 1e6 if result.host_s else 0.0
    stderr = sys.stderr
    print(f"\nvmx: {result.stop}: {result.message}", file=stderr)
    print(
        f"vmx: {result.retired:,} instructions, {result.virtual_ns / 1e9:.3f} s of virtual time, "
        f"{result.host_s:.2f} s of host time ({mips:.0f} MIPS)\n",
        file=stderr,
    )
    print_exit_table(ledger, stderr)
    if result.undecoded:
        print("\nOpcodes that vmx does not decode (the guest got #UD):", file=stderr)
        for opcode, count in sorted(result.undecoded.items(), key=lambda item: -item[1]):
            print(f"{count:>10}  {opcode}", file=stderr)


def _set_log_level(level: str) -> None:
    import logging

    names = ("debug", "info", "warning", "error")
    if level.lower() not in names:
        raise UsageError(f"--log {level}: must be one of {', '.join(names)}")
    logging.basicConfig(
        level=level.upper(), format="vmx: %(levelname)s: %(name)s: %(message)s", stream=sys.stderr
    )
    # numba's own debug log would drown everything else.
    for name in ("numba", "llvmlite"):
        logging.getLogger(name).setLevel(logging.WARNING)

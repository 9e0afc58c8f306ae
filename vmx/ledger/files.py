"""A kept run: the directory that `vmx run -o DIR` writes, reading it back, and comparing two of them.

    console.log    what the guest wrote to its console, as it wrote it
    config.toml    the configuration; `vmx run --config DIR/config.toml` repeats the run
    summary.json   how the run ended, counts and times by exit reason, undecoded opcodes
    exits.npy      one EXIT_RECORD per VM exit

Every file but the console's is written beside its place and renamed, so that an interrupted run leaves either
the whole file or none.
"""

import io
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from vmx.errors import ConfigurationError, VmxError
from vmx.ledger.ledger import Ledger
from vmx.ledger.record import EXIT_RECORD, HOST_TIME_FIELDS
from vmx.ledger.table import exit_table_json
from vmx.machine.config import MachineConfig

CONSOLE, CONFIG, SUMMARY, EXITS = "console.log", "config.toml", "summary.json", "exits.npy"
FORMAT_VERSION = 1

# Keys of the summary, and of its rows, that depend on the host: a comparison leaves them out.
HOST_KEYS = frozenset(
    ["host_s", "total_ns", "min_ns", "max_ns", "mean_ns", "relative_error_percent", "versions", "mips"]
)


@dataclass(frozen=True)
class Run:
    """A kept run, read back."""

    path: Path
    config: dict[str, Any]
    summary: dict[str, Any]
    exits: np.ndarray  # shape (exits,), dtype EXIT_RECORD
    console: bytes

    @property
    def ledger(self) -> Ledger:
        return Ledger.from_records(self.exits)


def summary_of(result: Any, ledger: Ledger) -> dict[str, Any]:
    """The summary of a run as plain values; `result` is the machine's RunResult."""
    return {
        "format": FORMAT_VERSION,
        "stop": result.stop,
        "exit_status": int(result.exit_status),
        "message": result.message,
        "retired": int(result.retired),
        "virtual_ns": int(result.virtual_ns),
        "host_s": round(float(result.host_s), 3),
        "exits": len(ledger),
        "exits_by_reason": exit_table_json(ledger),
        "undecoded": dict(sorted(result.undecoded.items())),
    }


class RunDirectory:
    """The directory of one run while it is being made."""

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigurationError(f"cannot make the directory {self.path}: {error.strerror}") from None
        # A directory holds one run: what an older run left must not look like part of this one.
        for name in (CONSOLE, CONFIG, SUMMARY, EXITS):
            (self.path / name).unlink(missing_ok=True)

    def open_console_log(self) -> BinaryIO:
        """The console's log, unbuffered: what the guest wrote is kept whatever happens next."""
        return open(self.path / CONSOLE, "wb", buffering=0)

    def write_config(self, config: MachineConfig) -> None:
        # Paths become absolute: config.toml's own directory is where relative ones would be looked for.
        absolute = {
            key: os.path.abspath(path)
            for key in ("kernel", "initrd")
            if (path := getattr(config, key)) is not None
        }
        modules = [os.path.abspath(module) for module in config.modules]
        write_whole(self.path / CONFIG, config.replace(**absolute, modules=modules).to_toml().encode())

    def write_result(self, summary: dict[str, Any], records: np.ndarray) -> None:
        data = io.BytesIO()
        np.save(data, records, allow_pickle=False)
        write_whole(self.path / EXITS, data.getvalue())
        write_whole(self.path / SUMMARY, (json.dumps(summary, indent=2) + "\n").encode())


def write_whole(path: Path, data: bytes) -> None:
    """Write a file that is either whole or not there."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(beside, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def load(path: str | os.PathLike[str]) -> Run:
    """Read a kept run back. Raises `VmxError` for a directory that does not hold one."""
    directory = Path(path)
    try:
        summary = json.loads((directory / SUMMARY).read_text())
        config = MachineConfig.from_toml(directory / CONFIG).to_dict()
        exits = np.load(directory / EXITS, allow_pickle=False)
        console = (directory / CONSOLE).read_bytes()
    except FileNotFoundError as error:
        missing = Path(error.filename).name
        raise VmxError(
            f"{directory} does not hold a whole run: {missing} is missing (write one with -o)"
        ) from None
    except (OSError, ValueError, EOFError) as error:
        raise VmxError(f"cannot read the run in {directory}: {error}") from None
    if summary.get("format") != FORMAT_VERSION:
        raise VmxError(f"{directory}: format {summary.get('format')!r}, this vmx reads {FORMAT_VERSION}")
    if exits.dtype.names != EXIT_RECORD.names:
        raise VmxError(f"{directory / EXITS}: fields {exits.dtype.names}, expected {EXIT_RECORD.names}")
    return Run(directory, config, summary, exits.astype(EXIT_RECORD), console)


def compare(a: Run, b: Run) -> str | None:
    """The first difference between two runs, in words; None when all but host times is the same."""
    return (
        _first_difference("config", a.config, b.config)
        or _compare_exits(a.exits, b.exits)
        or _first_difference("summary", a.summary, b.summary)
        or _compare_console(a.console, b.console)
    )


def _compare_exits(a: np.ndarray, b: np.ndarray) -> str | None:
    common = min(len(a), len(b))
    fields = [name for name in EXIT_RECORD.names or () if name not in HOST_TIME_FIELDS]
    first = {name: np.flatnonzero(a[name][:common] != b[name][:common])[:1] for name in fields}
    differing = {name: int(index[0]) for name, index in first.items() if len(index)}
    if differing:
        # The earliest exit that differs; of its fields, the first in the record's order.
        name = min(differing, key=lambda field: differing[field])
        index = differing[name]
        return f"exit {index}: {name} is {a[name][index]:#x} in one and {b[name][index]:#x} in the other"
    if len(a) != len(b):
        return f"{len(a)} exits in one and {len(b)} in the other; the first {common} are the same"
    return None


def _first_difference(where: str, a: Any, b: Any) -> str | None:
    if isinstance(a, dict) and isinstance(b, dict):
        keys: Iterable[str] = dict.fromkeys([*a, *b])
        for key in keys:
            if key in HOST_KEYS:
                continue
            if key not in a or key not in b:
                return f"{where}.{key} is in {'one' if key in a else 'the other'} only"
            if difference := _first_difference(f"{where}.{key}", a[key], b[key]):
                return difference
        return None
    if isinstance(a, list) and isinstance(b, list):
        if len(a) != len(b):
            return f"{where} has {len(a)} entries in one and {len(b)} in the other"
        differences = (
            _first_difference(f"{where}[{i}]", x, y) for i, (x, y) in enumerate(zip(a, b, strict=True))
        )
        return next(filter(None, differences), None)
    return None if a == b else f"{where} is {a!r} in one and {b!r} in the other"


def _compare_console(a: bytes, b: bytes) -> str | None:
    if a == b:
        return None
    offset = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    line = a[:offset].count(b"\n") + 1
    return f"console line {line} (byte {offset}): {a[offset : offset + 40]!r} and {b[offset : offset + 40]!r}"

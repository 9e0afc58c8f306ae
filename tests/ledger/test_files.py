"""A kept run: written, read back, compared."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from vmx.errors import VmxError
from vmx.ledger import files
from vmx.ledger.ledger import Ledger
from vmx.ledger.record import EXIT_RECORD
from vmx.machine.config import MachineConfig


def keep(path, host_ns=1000, reasons=(30, 48, 30), rip=0x1000, console=b"hello\n", **config):
    ledger = Ledger()
    for reason in reasons:
        ledger.close(ledger.open(reason, 2**63 + reason, guest_rip=rip), host_ns)
    result = SimpleNamespace(
        stop="POWEROFF",
        exit_status=0,
        message="powered off",
        retired=1234,
        virtual_ns=19744,
        host_s=host_ns / 1e3,
        undecoded={"0f 0b": 2},
    )
    directory = files.RunDirectory(path)
    directory.write_config(MachineConfig(guest="teach", **config))
    with directory.open_console_log() as log:
        log.write(console)
    directory.write_result(files.summary_of(result, ledger), ledger.records)
    return files.load(path)


def test_round_trip(tmp_path):
    run = keep(tmp_path / "run", memory="64M")
    assert run.console == b"hello\n"
    assert run.config["memory"] == 64 << 20
    assert run.summary["retired"] == 1234
    assert run.summary["undecoded"] == {"0f 0b": 2}
    assert run.exits.dtype == EXIT_RECORD
    assert run.exits["qualification"].tolist() == [2**63 + 30, 2**63 + 48, 2**63 + 30]
    assert run.ledger.counts == {30: 2, 48: 1}
    assert sorted(path.name for path in run.path.iterdir()) == sorted(
        ["config.toml", "console.log", "exits.npy", "summary.json"]
    )


def test_relative_paths_of_a_kept_configuration_become_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    files.RunDirectory("run").write_config(MachineConfig(kernel="vmlinuz", modules=("a=b c",)))
    config = MachineConfig.from_toml("run/config.toml")
    assert config.kernel == str(tmp_path / "vmlinuz")
    assert config.module_pairs == [(str(tmp_path / "a"), "b c")]


def test_host_times_do_not_count(tmp_path):
    assert files.compare(keep(tmp_path / "a", host_ns=5), keep(tmp_path / "b", host_ns=7000)) is None


@pytest.mark.parametrize(
    "change, words",
    [
        ({"rip": 0x2000}, "exit 0: guest_rip is 0x1000 in one and 0x2000 in the other"),
        ({"reasons": (30, 48, 10)}, "exit 2: reason is 0x1e in one and 0xa in the other"),
        ({"reasons": (30, 48)}, "3 exits in one and 2 in the other"),
        ({"console": b"hellO\n"}, "console line 1 (byte 4)"),
        ({"memory": "64M"}, "config.memory"),
    ],
)
def test_the_first_difference_is_named(tmp_path, change, words):
    assert words in files.compare(keep(tmp_path / "a"), keep(tmp_path / "b", **change))


def test_an_older_run_in_the_directory_is_gone(tmp_path):
    keep(tmp_path)
    files.RunDirectory(tmp_path)
    with pytest.raises(VmxError, match=r"does not hold a whole run: summary.json is missing"):
        files.load(tmp_path)


@pytest.mark.parametrize("name", ["config.toml", "console.log", "exits.npy", "summary.json"])
def test_a_missing_file_is_named(tmp_path, name):
    keep(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(VmxError, match=name):
        files.load(tmp_path)


@pytest.mark.parametrize("name, data", [("exits.npy", b""), ("exits.npy", b"junk"), ("summary.json", b"{")])
def test_a_damaged_file_is_an_error_for_people(tmp_path, name, data):
    keep(tmp_path)
    (tmp_path / name).write_bytes(data)
    with pytest.raises(VmxError):
        files.load(tmp_path)


def test_other_fields_and_formats_are_refused(tmp_path):
    keep(tmp_path)
    np.save(tmp_path / "exits.npy", np.zeros(1, [("sequence", "u8")]))
    with pytest.raises(VmxError, match="fields"):
        files.load(tmp_path)
    keep(tmp_path)
    (tmp_path / "summary.json").write_text(json.dumps({"format": 99}))
    with pytest.raises(VmxError, match="format 99"):
        files.load(tmp_path)


def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "summary.json"
    files.write_whole(path, b"old")

    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(files.os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        files.write_whole(path, b"new")
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["summary.json"]

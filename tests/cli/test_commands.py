"""The command line from outside: exit statuses, one clear message, no traceback."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from vmx.errors import ExitStatus

ROOT = Path(__file__).parents[2]


def vmx(*arguments, **options):
    return subprocess.run(
        [sys.executable, "-m", "vmx", *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=600,
        **options,
    )


def test_help_and_version():
    help_text = vmx("--help")
    assert help_text.returncode == 0
    for command in ("run", "warmup", "doctor", "guests", "trace"):
        assert command in help_text.stdout
    assert vmx("--version").stdout.startswith("vmx ")


@pytest.fixture
def files(tmp_path):
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "typo.toml").write_text("memry = 1")
    (tmp_path / "broken.toml").write_text("[")
    return tmp_path


@pytest.mark.parametrize(
    "arguments, status, words",
    [
        (["bogus"], ExitStatus.USAGE, "No such command"),
        (["run", "--bogus"], ExitStatus.USAGE, "No such option"),
        (["run", "--cpus", "many"], ExitStatus.USAGE, "--cpus"),
        (["run", "--log", "loud"], ExitStatus.USAGE, "debug, info, warning, error"),
        (["run", "--control", "HLT_VMEXIT"], ExitStatus.USAGE, "NAME=on or NAME=off"),
        (["run", "--guest", "nope"], ExitStatus.USAGE, "unknown guest 'nope'"),
        (["guests", "pull", "nope"], ExitStatus.USAGE, "unknown guest 'nope'"),
        (["guests", "pull", "teach"], ExitStatus.USAGE, "vmx run --guest teach"),
        (["run", "--control", "HLT=on"], ExitStatus.BAD_CONFIGURATION, "did you mean 'HLT_VMEXIT'"),
        (["run", "--memory", "5Q"], ExitStatus.BAD_CONFIGURATION, "such as 512M"),
        (["run", "--cpus", "2"], ExitStatus.BAD_CONFIGURATION, "one virtual CPU"),
        (["run", "--config", "{files}/none.toml"], ExitStatus.BAD_CONFIGURATION, "none.toml: No such file"),
        (
            ["run", "--config", "{files}/typo.toml"],
            ExitStatus.BAD_CONFIGURATION,
            "typo.toml: unknown key 'memry'",
        ),
        (
            ["run", "--config", "{files}/broken.toml"],
            ExitStatus.BAD_CONFIGURATION,
            "broken.toml is not valid TOML",
        ),
        (["run", "--kernel", "{files}/none"], ExitStatus.BAD_KERNEL, "No such file"),
        (["run", "--kernel", "{files}/empty"], ExitStatus.BAD_KERNEL, "empty"),
        (["run", "--kernel", "{files}"], ExitStatus.BAD_KERNEL, "directory"),
        (["run", "--kernel", "{files}/typo.toml"], ExitStatus.BAD_KERNEL, "is no kernel that vmx knows"),
        (
            ["run", "--kernel", "{files}/typo.toml", "--load-address", "0x7C00", "--initrd", "{files}/none"],
            ExitStatus.BAD_KERNEL,
            "No such file",
        ),
        (["trace", "show", "{files}"], ExitStatus.ERROR, "does not hold a whole run"),
    ],
)
def test_bad_input(files, arguments, status, words):
    done = vmx(*(argument.format(files=files) for argument in arguments))
    assert done.returncode == status, done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_exit_statuses_are_distinct_from_debug_exit():
    even = [status for status in ExitStatus if status not in (ExitStatus.ERROR,)]
    assert all(status % 2 == 0 for status in even)


def test_doctor_as_json():
    found = json.loads(vmx("doctor", "--json").stdout)
    assert found["packages"]["numba"]
    assert found["processor"]["cores"] >= 1
    assert {"host processor", "iced_x86", "unicorn", "gcc"} <= found["oracles"].keys()


def test_guests_list(tmp_path):
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    rows = json.loads(vmx("guests", "list", "--json", env=environment).stdout)
    states = {row["name"]: row["state"] for row in rows}
    assert states["debian-cloud"] == "not pulled"
    assert "teach" in states
    missing = vmx("run", "--guest", "debian-cloud", env=environment)
    assert missing.returncode == ExitStatus.BAD_KERNEL
    assert "vmx guests pull debian-cloud" in missing.stderr

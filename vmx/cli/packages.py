"""Distribution packages: downloaded with the system's own tool, unpacked into a temporary directory, never
installed. Debian's tools are modelled; other systems get a message that says so."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from vmx.errors import ExitStatus, VmxError

_DOWNLOAD_S = 600


class PackageError(VmxError):
    """The system's package tool is missing or did not do it."""

    exit_status = ExitStatus.MISSING_DEPENDENCY


@contextmanager
def unpacked(names: tuple[str, ...], say: Callable[[str], None] = print) -> Iterator[Path]:
    """A temporary directory with the packages' contents; a metapackage brings the package it depends on."""
    for tool in ("apt-get", "apt-cache", "dpkg-deb"):
        if not shutil.which(tool):
            raise PackageError(
                f"{tool} is not here: guests are pulled through Debian's package tools; use --kernel"
            )
    with tempfile.TemporaryDirectory(prefix="vmx-pull-") as text:
        directory = Path(text)
        root = directory / "root"
        root.mkdir()
        for name in names:
            real = _without_meta(name)
            say(f"downloading {real}")
            _run(["apt-get", "download", "-q", real], directory)
        for archive in sorted(directory.glob("*.deb")):
            _run(["dpkg-deb", "-x", str(archive), str(root)], directory)
        yield root


def _without_meta(name: str) -> str:
    """Debian's kernel metapackages are empty but for a dependency on the versioned kernel package."""
    if not name.startswith("linux-image-"):
        return name
    lines = _run(["apt-cache", "depends", "--important", name], Path("/")).splitlines()
    kernels = [line.split()[-1] for line in lines if "Depends: linux-image-" in line]
    return kernels[0] if kernels else name


def _run(command: list[str], directory: Path) -> str:
    environment = {**os.environ, "LC_ALL": "C"}
    try:
        done = subprocess.run(
            command, cwd=directory, env=environment, capture_output=True, text=True, timeout=_DOWNLOAD_S
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise PackageError(f"{' '.join(command)}: {error}") from None
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no message"]
        hint = (
            "; its package list may be empty: try apt-get update"
            if "Unable to locate" in done.stderr or "No packages found" in done.stderr
            else ""
        )
        raise PackageError(f"{' '.join(command)} failed: {lines[0]}{hint}")
    return done.stdout


def busybox(root: Path) -> Path:
    """The busybox program among unpacked packages, wherever this release of Debian puts it."""
    found = [path for place in ("bin", "usr/bin") if (path := root / place / "busybox").is_file()]
    if not found:
        raise PackageError("the package busybox-static does not contain busybox")
    return found[0]


def keep(path: Path, data: bytes) -> None:
    """Write a file of the cache, whole or not at all."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_bytes(data)
    os.replace(beside, path)

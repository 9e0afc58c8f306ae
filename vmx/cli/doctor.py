"""`vmx doctor`: what this installation is, what the host offers, and which oracles the tests can use here."""

import json
import os
import platform
import shutil
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any

import typer

PACKAGES = ("vmx", "numba", "llvmlite", "numpy", "msgspec", "rich", "typer", "pyelftools")
ORACLE_PACKAGES = {"iced_x86": "iced-x86", "unicorn": "unicorn", "hypothesis": "hypothesis"}
ORACLE_PROGRAMS = ("qemu-system-x86_64", "apt-get", "gcc", "ld")

# Of the host's processor flags, those that natively executed oracles can meet.
HOST_FLAGS = (
    "cx16",
    "popcnt",
    "movbe",
    "sse4_2",
    "avx2",
    "fsgsbase",
    "invpcid",
    "smep",
    "smap",
    "vmx",
    "svm",
    "hypervisor",
)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _processor() -> dict[str, Any]:
    model, flags = platform.processor() or platform.machine(), set()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                model = value.strip()
            elif key.strip() == "flags":
                flags = set(value.split())
                break
    except OSError:
        pass  # not Linux: the model is all there is
    return {
        "model": model,
        "architecture": platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "flags": [flag for flag in HOST_FLAGS if flag in flags],
    }


def _cache() -> dict[str, Any]:
    """Where compiled code is, how much, and whether anything is missing from it."""
    try:
        from vmx.cpu import units  # noqa: F401  (importing it declares every unit)
        from vmx.state.jit import cache_root
        from vmx.state.unit import pending
        from vmx.state.unit import units as declared
    except ImportError as error:
        return {"error": str(error)}
    root = cache_root()
    size = sum(path.stat().st_size for path in root.rglob("*") if path.is_file())
    return {
        "directory": str(root),
        "bytes": size,
        "units": len(declared()),
        "missing": len(pending()),
    }


def report() -> dict[str, Any]:
    """All findings as plain values."""
    native = platform.machine() == "x86_64" and sys.platform == "linux"
    return {
        "python": platform.python_version(),
        "system": platform.platform(),
        "packages": {package: _version(package) for package in PACKAGES},
        "processor": _processor(),
        "cache": _cache(),
        "oracles": {
            "host processor": "native execution" if native else None,
            **{name: _version(package) for name, package in ORACLE_PACKAGES.items()},
            **{program: shutil.which(program) for program in ORACLE_PROGRAMS},
        },
        "terminal": {
            "stdin": os.isatty(0),
            "stdout": os.isatty(1),
            "TERM": os.environ.get("TERM"),
        },
    }


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="The findings as JSON.")] = False,
) -> None:
    """Print versions, host processor, cache state and which oracles are available."""
    found = report()
    if as_json:
        print(json.dumps(found, indent=2))
        return
    processor, cache, terminal = found["processor"], found["cache"], found["terminal"]
    print(f"python      {found['python']} on {found['system']}")
    for package, installed in found["packages"].items():
        print(f"  {package:<20}{installed or 'not installed'}")
    print(f"processor   {processor['model']} ({processor['architecture']}), {processor['cores']} cores")
    print(f"  {' '.join(processor['flags'])}")
    if "error" in cache:
        print(f"cache       cannot say: {cache['error']}")
    else:
        state = f"{cache['missing']} missing (vmx warmup compiles them)" if cache["missing"] else "complete"
        print(f"cache       {cache['directory']}, {cache['bytes'] / (1 << 20):.1f} MiB")
        print(f"  {cache['units']} compiled units, {state}")
    print("oracles")
    for name, available in found["oracles"].items():
        print(f"  {name:<20}{available or 'not available'}")
    ends = ", ".join(f"{end} {'terminal' if terminal[end] else 'no terminal'}" for end in ("stdin", "stdout"))
    print(f"terminal    {ends}, TERM={terminal['TERM'] or 'unset'}")

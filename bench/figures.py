"""What a measurement returns, and the facts about the host that are kept with it."""

import os
import platform
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = ("vmx", "numba", "llvmlite", "numpy", "unicorn")


@dataclass(frozen=True)
class Figure:
    """One measured value. `goal` is None where there is none; `at_least` says on which side of it good is."""

    name: str
    value: float | None
    unit: str
    goal: float | None = None
    at_least: bool = False
    note: str = ""

    @property
    def verdict(self) -> str:
        if self.value is None or self.goal is None:
            return ""
        reached = self.value >= self.goal if self.at_least else self.value <= self.goal
        return "reached" if reached else "MISSED"


def geometric_mean(values: list[float]) -> float:
    """The n-th root of the product of n positive values."""
    product = 1.0
    for value in values:
        product *= value
    return product ** (1 / len(values))


def host() -> dict:
    """Processor, system, versions, and how busy the host was."""
    model = platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    return {
        "processor": model,
        "cores": len(os.sched_getaffinity(0)),
        "system": platform.platform(),
        "python": platform.python_version(),
        "packages": {package: _version(package) for package in PACKAGES},
        "load_average": [round(load, 2) for load in os.getloadavg()],
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None

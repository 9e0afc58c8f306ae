"""Debian's cloud kernel to its shell prompt, in a process of its own: time, instructions, exits, resident memory."""

import json
import subprocess
import sys
from pathlib import Path
from time import perf_counter

from bench.figures import Figure

PROMPT = b"~ # "
MEMORY = 512 << 20
MIB = 1 << 20


def measure() -> tuple[list[Figure], dict]:
    """The figures, and the details of both boots; without figures where the kernel cannot be fetched."""
    from vmx.cli import catalogue
    from vmx.errors import VmxError

    name = "Linux boot to shell prompt"
    try:
        catalogue.pull("debian-cloud", lambda text: print(f"  {text}", file=sys.stderr))
    except VmxError as error:
        return [Figure(name, None, "s", 45, note=f"skipped: {error}")], {}
    guest, bare = _boot(False), _boot(True)
    note = f"{guest['retired']:,} instructions, {guest['mips']:.0f} MIPS"
    figures = [
        Figure(f"{name}, non-root", guest["seconds"], "s", 45, note=f"{note}, {guest['exits']:,} exits"),
        Figure(
            f"{name}, bare",
            bare["seconds"],
            "s",
            note=f"{bare['retired']:,} instructions, {bare['mips']:.0f} MIPS",
        ),
        Figure(
            "resident memory beyond guest RAM", guest["resident_mib"], "MiB", 600, note="peak of that boot"
        ),
    ]
    return figures, {"non_root": guest, "bare": bare}


def _boot(bare: bool) -> dict:
    command = [sys.executable, "-m", "bench.linux", "bare" if bare else "non-root"]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def _boot_here(bare: bool) -> dict:
    """Boot in this process and describe it."""
    from vmx import BufferConsole, Machine, MachineConfig
    from vmx.cli import catalogue

    class UntilPrompt(BufferConsole):
        def write(self, data: bytes) -> None:
            super().write(data)
            if self.output.endswith(PROMPT):
                machine.stop()

    machine = Machine(
        MachineConfig(**catalogue.options("debian-cloud"), memory=MEMORY, bare=bare), console=UntilPrompt()
    )
    start = perf_counter()
    result = machine.run(timeout_s=300)
    seconds = perf_counter() - start
    if not machine.console.output.endswith(PROMPT):
        raise SystemExit(f"no shell prompt: {result.message}\n{machine.console.text[-2000:]}")
    return {
        "seconds": seconds,
        "retired": result.retired,
        "mips": result.retired / seconds / 1e6,
        "exits": len(machine.ledger),
        "exits_by_reason": machine.ledger.counts,
        "resident_mib": (_status("VmHWM") - _mapping_resident(machine.memory.host_address(0))) / MIB,
    }


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise KeyError(field)


def _mapping_resident(address: int) -> int:
    """Resident bytes of the host mapping that holds an address."""
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first = line.split()[0]
        if "-" in first and not first.endswith(":"):
            start, end = (int(part, 16) for part in first.split("-"))
            inside = start <= address < end
        elif inside and first == "Rss:":
            return int(line.split()[1]) * 1024
    raise KeyError(hex(address))


if __name__ == "__main__":
    print(json.dumps(_boot_here(sys.argv[1] == "bare")))

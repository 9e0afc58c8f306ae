"""Runs random guests, one after the other, and prints one JSON line before and one after each.

    python -m tests.fuzz.campaign --kind rows --first 0 --count 1000 [--limit 20000] [--mode long64] [--verbose]

`python -m tests.fuzz.campaign --seconds 600` goes on until the time is over. A seed that fails is repeated with
`--kind K --mode M --first SEED --count 1`. The parent (`supervise`) sees a crash or a hang by the missing line.
"""

import argparse
import faulthandler
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[2]
LIMIT = 20_000  # instructions per guest
MEMORY = 2 << 20
STUCK_S = 30  # a guest of 20,000 instructions takes milliseconds


def run_guests(kinds, modes, first, count, limit, seconds) -> None:
    """In the child: print what happens."""
    faulthandler.enable()
    from tests.fuzz.guards import Guards
    from tests.fuzz.programs import BASE, program
    from vmx.cpu import units

    units.build()
    guards = Guards()
    guards.install()
    end = time.monotonic() + seconds if seconds else None
    with tempfile.TemporaryDirectory() as directory:
        kernel = Path(directory) / "kernel.bin"
        for seed in range(first, first + count):
            for kind in kinds:
                for mode in modes:
                    if end and time.monotonic() > end:
                        return
                    kernel.write_bytes(program(kind, mode, seed))
                    for bare in (True, False):
                        case = {"kind": kind, "mode": mode, "seed": seed, "bare": bare}
                        print(json.dumps(case), flush=True)
                        faulthandler.dump_traceback_later(STUCK_S, exit=True)
                        print(json.dumps(case | _one(guards, kernel, BASE, mode, bare, limit)), flush=True)


def _one(guards, kernel, address, mode, bare, limit) -> dict:
    from vmx import BufferConsole, Machine, MachineConfig

    config = MachineConfig(
        kernel=str(kernel), load_address=address, load_mode=mode, memory=MEMORY, bare=bare, record=False
    )
    console = BufferConsole()
    console.closed = True  # nobody will ever type: a guest that waits for a key is hung
    machine = Machine(config, console=console)
    guards.start(machine)
    try:
        result = machine.run(max_instructions=limit, timeout_s=10)
    except Exception as error:  # whatever it is, a guest must not be able to raise it
        import traceback

        return {"error": f"{type(error).__name__}: {error}", "trace": traceback.format_exc()[-1500:]}
    finally:
        touched = guards.touched(machine)
    outcome = {
        "stop": result.stop,
        "retired": result.retired,
        "host_s": result.host_s,
        "message": result.message,
    }
    return outcome | ({"touched": touched} if touched else {})


def supervise(arguments: list[str], total_s: float) -> tuple[list[dict], str | None]:
    """In the parent: the lines of finished guests, and what went wrong with the process itself, if anything."""
    command = [sys.executable, "-m", "tests.fuzz.campaign", "--child", *arguments]
    finished: list[dict] = []
    with tempfile.TemporaryFile("w+") as errors, tempfile.TemporaryFile("w+") as lines:
        child = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=lines, stderr=errors)
        try:
            child.wait(total_s)
        except subprocess.TimeoutExpired:
            pass
        hung = child.poll() is None
        if hung:
            child.kill()
            child.wait()
        lines.seek(0)
        errors.seek(0)
        output = [json.loads(line) for line in lines.read().splitlines() if line.endswith("}")]
        finished = [case for case in output if "stop" in case or "error" in case]
        if hung:
            return finished, f"the child did not end in {total_s} s; last: {output[-1:]}"
        if child.returncode:
            return (
                finished,
                f"the child ended with {child.returncode}; last: {output[-1:]}\n{errors.read()[-3000:]}",
            )
    return finished, None


def bad(case: dict) -> bool:
    """Whether a finished guest shows a fault of vmx."""
    from vmx.errors import STATUS_OF_STOP

    known = set(STATUS_OF_STOP) | {"DEBUG_EXIT"}
    return "error" in case or "touched" in case or case["stop"] not in known or case["stop"] == "TIMEOUT"


def unequal(finished: list[dict]) -> list[tuple[dict, dict]]:
    """Guests that end otherwise under the hypervisor than bare: another stop, or another instruction count."""
    cases = {(c["kind"], c["mode"], c["seed"], c["bare"]): c for c in finished}
    pairs = [(c, cases.get((*key[:3], False))) for key, c in cases.items() if key[3]]
    return [
        (a, b)
        for a, b in pairs
        if b and (a.get("stop"), a.get("retired")) != (b.get("stop"), b.get("retired"))
    ]


def main() -> None:
    from tests.fuzz.programs import KINDS, MODES

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--kind", choices=KINDS, action="append")
    parser.add_argument("--mode", choices=MODES, action="append")
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--count", type=int, default=1 << 40)
    parser.add_argument("--limit", type=int, default=LIMIT)
    parser.add_argument("--seconds", type=float, default=0)
    parser.add_argument("--child", action="store_true")
    a = parser.parse_args()
    if a.child:
        run_guests(a.kind or KINDS, a.mode or MODES, a.first, a.count, a.limit, a.seconds)
        return
    options = [part for kind in a.kind or () for part in ("--kind", kind)]
    options += [part for mode in a.mode or () for part in ("--mode", mode)]
    options += ["--limit", str(a.limit)]
    first, last, start = a.first, a.first + a.count, time.monotonic()
    stops: Counter = Counter()
    crashes = 0
    while first < last:
        left = a.seconds - (time.monotonic() - start) if a.seconds else 0
        if a.seconds and left <= 0:
            break
        span = ["--first", str(first), "--count", str(last - first), "--seconds", str(left)]
        finished, trouble = supervise(options + span, left + 2 * STUCK_S if left else 36_000)
        for case in finished:
            stops[case.get("stop", "ERROR")] += 1
            if bad(case):
                print(json.dumps(case), flush=True)
        for pair in unequal(finished):
            print("bare and under the hypervisor:", json.dumps(pair), flush=True)
        if not trouble:
            break
        crashes += 1
        print(trouble, flush=True)
        first = (finished[-1]["seed"] if finished else first) + 1
    print(f"{sum(stops.values())} guests, {crashes} crashes or hangs: {dict(stops)}")


if __name__ == "__main__":
    main()

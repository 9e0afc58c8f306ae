"""Compile what the cache does not hold, in parallel processes, with progress; then link everything.

A worker is `python -m vmx.state.build`: it reads modules and unit names as JSON from its standard input and
answers one line per unit. It never runs a unit, so callees' symbols may be dummies there.
"""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable

import llvmlite.binding as llvm

from vmx.state.jit import JIT
from vmx.state.unit import Unit, link, pending, units

Progress = Callable[[int, int, str], None]


def build(progress: Progress | None = None, workers: int | None = None) -> None:
    """Compile the missing units in up to two processes, then link all.

    `progress(done, total, name)` is called as each unit is finished. Raises RuntimeError naming the unit that failed.
    """
    if not JIT:
        return
    missing = pending()
    if len(missing) > 1:
        _compile(missing, workers or min(2, os.cpu_count() or 1), progress)
    link()


def _compile(missing: list[Unit], workers: int, progress: Progress | None) -> None:
    modules = sorted({each.function.__module__ for each in units()})
    waiting = sorted(missing, key=_weight)  # the heaviest is taken first, from the end
    total, lock, state = len(missing), threading.Lock(), {"done": 0, "error": None}
    workers_now: list[subprocess.Popen] = []

    def serve():
        command = [sys.executable, "-m", "vmx.state.build"]
        # In a session of their own, workers do not get the terminal's Ctrl-C; the parent ends them.
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
        ) as worker:
            workers_now.append(worker)
            try:
                _say(worker, modules)
                while state["error"] is None:
                    with lock:
                        if not waiting:
                            break
                        each = waiting.pop()
                    _say(worker, each.name)
                    answer = worker.stdout.readline()
                    with lock:
                        if answer.strip() != "ok":
                            why = json.loads(answer) if answer else "the compiler process died"
                            state["error"] = f"compiling {each.name} failed: {why}"
                            break
                        state["done"] += 1
                        if progress:
                            progress(state["done"], total, each.name)
                worker.stdin.close()
            except BrokenPipeError:  # killed, as the build was interrupted
                state["error"] = state["error"] or "the compiler process died"
            except BaseException:
                worker.kill()
                raise

    threads = [threading.Thread(target=serve, daemon=True) for _ in range(min(workers, total))]
    for thread in threads:
        thread.start()
    try:
        for thread in threads:
            while thread.is_alive():
                thread.join(0.2)  # short waits keep Ctrl-C prompt
    except BaseException:
        state["error"] = "interrupted"
        for worker in workers_now:
            worker.kill()
        raise
    if state["error"]:
        raise RuntimeError(state["error"])


def _say(worker, message) -> None:
    worker.stdin.write(json.dumps(message) + "\n")
    worker.stdin.flush()


def _weight(each: Unit) -> int:
    """A guess at compile time: bytes of byte code reached."""
    seen, total, todo = set(), 0, [each.function]
    while todo:
        function = todo.pop()
        function = getattr(function, "py_func", function)
        code = getattr(function, "__code__", None)
        if code is None or code in seen:
            continue
        seen.add(code)
        total += len(code.co_code)
        todo += [
            function.__globals__[n] for n in code.co_names if hasattr(function.__globals__.get(n), "py_func")
        ]
    return total


def _work() -> None:
    import importlib

    for module in json.loads(sys.stdin.readline()):
        importlib.import_module(module)
    by_name = {each.name: each for each in units()}
    for each in units():
        llvm.add_symbol(each.symbol, 1)  # never called here; the linker only wants a value
    for line in sys.stdin:
        try:
            by_name[json.loads(line)].compile()
            answer = "ok"
        except Exception as error:
            answer = json.dumps(f"{type(error).__name__}: {error}")
        print(answer, flush=True)


if __name__ == "__main__":
    _work()

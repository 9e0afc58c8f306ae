"""`vmx warmup`, and the progress bar that every command shows when something must be compiled first."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import typer

from vmx.errors import Interrupted


@contextmanager
def _progress(quiet: bool) -> Iterator:
    """A `progress(done, total, name)` function: a bar on a terminal, a line for each tenth elsewhere."""
    if quiet:
        yield lambda done, total, name: None
        return
    if not sys.stderr.isatty():
        reported = 0

        def report(done: int, total: int, name: str) -> None:
            nonlocal reported
            if done * 10 // total > reported or done == total:
                reported = done * 10 // total
                print(f"vmx: compiling the processor, {done} of {total} units", file=sys.stderr, flush=True)

        yield report
        return

    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("compiling the processor (once)"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=None, visible=False)
        yield lambda done, total, name: bar.update(
            task, completed=done, total=total, description=name, visible=True
        )


def ensure_compiled(quiet: bool = False) -> float:
    """Compile what the cache does not hold, with progress on standard error; returns the seconds it took."""
    from vmx.cpu import units

    start = time.monotonic()
    try:
        with _progress(quiet) as progress:
            units.build(progress)
    except KeyboardInterrupt:
        raise Interrupted("interrupted while compiling; what is compiled already is kept") from None
    return time.monotonic() - start


def warmup(
    quiet: bool = typer.Option(False, "--quiet", "-q", help="Print nothing but errors."),
) -> None:
    """Compile everything now; later commands start at once."""
    seconds = ensure_compiled(quiet)
    if not quiet:
        from vmx.state.jit import cache_root

        print(f"vmx: ready after {seconds:.1f} s; compiled code is in {cache_root()}", file=sys.stderr)

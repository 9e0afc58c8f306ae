"""`vmx trace`: look at a run that `vmx run -o DIR` kept, and compare two of them."""

import json
from pathlib import Path
from typing import Annotated

import typer

from vmx.errors import ExitStatus

app = typer.Typer(help="Runs kept with -o DIR: show one, compare two.", no_args_is_help=True)


@app.command("show")
def show(
    directory: Annotated[Path, typer.Argument(metavar="DIR")],
    exits: Annotated[
        int, typer.Option("--exits", "-n", metavar="N", help="Also list the first N exits.")
    ] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="The summary as JSON.")] = False,
) -> None:
    """Print how a kept run ended and its VM exits by reason."""
    import sys

    from vmx.ledger.files import load
    from vmx.ledger.table import exit_lines, print_exit_table

    run = load(directory)
    if as_json:
        print(json.dumps(run.summary, indent=2))
        return
    summary = run.summary
    print(f"{summary['stop']}: {summary['message']}")
    print(f"{summary['retired']:,} instructions, {summary['virtual_ns'] / 1e9:.3f} s of virtual time\n")
    print_exit_table(run.ledger, sys.stdout)
    if exits:
        print()
        for line in exit_lines(run.exits[:exits]):
            print(line)


@app.command("compare")
def compare(
    a: Annotated[Path, typer.Argument(metavar="A")],
    b: Annotated[Path, typer.Argument(metavar="B")],
) -> None:
    """Compare two kept runs in all but host times; prints the first difference, exit status 1."""
    from vmx.ledger import files

    first, second = files.load(a), files.load(b)
    difference = files.compare(first, second)
    if difference:
        print(f"{a} and {b} differ: {difference}")
        raise typer.Exit(ExitStatus.ERROR)
    print(f"{a} and {b} are the same but for host times: {len(first.exits)} exits")

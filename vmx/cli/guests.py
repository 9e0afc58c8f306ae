"""`vmx guests`: the guests that `vmx run --guest NAME` knows, and fetching those that are not bundled."""

import json
import sys
from typing import Annotated

import typer

app = typer.Typer(help="Guests: list them, pull a real kernel.", no_args_is_help=True)


@app.command("list")
def list_guests(
    as_json: Annotated[bool, typer.Option("--json", help="The list as JSON.")] = False,
) -> None:
    """Print the guests and whether they are here."""
    from vmx.cli import catalogue

    rows = catalogue.rows()
    if as_json:
        values = [{"name": row.name, "state": row.state, "description": row.description} for row in rows]
        print(json.dumps(values, indent=2))
        return
    for row in rows:
        print(f"{row.name:<14} {row.state:<11} {row.description}")


@app.command("pull")
def pull(name: Annotated[str, typer.Argument(metavar="NAME")]) -> None:
    """Download and unpack a guest through the system's package tool; nothing is installed."""
    from vmx.cli import catalogue

    directory = catalogue.pull(name, lambda text: print(f"vmx: {text}", file=sys.stderr))
    print(directory)

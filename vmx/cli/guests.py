"""`vmx guests`: the guests that `vmx run --guest NAME` knows, and fetching those that are not bundled."""

import json
import sys
from typing import Annotated

import typer

from vmx.cli import catalogue

app = typer.Typer(help="Guests: list them, pull a real kernel.", no_args_is_help=True)


@app.command("list")
def list_guests(
    as_json: Annotated[bool, typer.Option("--json", help="The list as JSON.")] = False,
) -> None:
    """Print the guests and whether they are here."""
    rows = [
        {"name": guest.name, "present": guest.present, "kind": guest.kind, "description": guest.description}
        for guest in catalogue.guests()
    ]
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    for row in rows:
        state = row["kind"] if row["present"] else "not pulled" if row["kind"] == "pulled" else "not built"
        print(f"{row['name']:<14} {state:<11} {row['description']}")


@app.command("pull")
def pull(
    name: Annotated[str, typer.Argument(metavar="NAME")],
    again: Annotated[bool, typer.Option("--again", help="Fetch it even if it is here.")] = False,
) -> None:
    """Download and unpack a guest through the system's package tool; nothing is installed."""
    guest = catalogue.pull(name, again=again, say=lambda text: print(f"vmx: {text}", file=sys.stderr))
    print(guest.kernel)

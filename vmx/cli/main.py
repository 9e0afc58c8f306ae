"""The command `vmx`: its sub-commands, and how errors become one message and an exit status."""

import sys
from typing import Any

from vmx.errors import ExitStatus

try:
    import typer
except ImportError:
    print(
        "vmx: the command line needs more packages. Install them with: pip install 'vmx[cli]'",
        file=sys.stderr,
    )
    raise SystemExit(ExitStatus.MISSING_DEPENDENCY) from None

from vmx.cli import doctor, guests, run, trace, warmup

app = typer.Typer(
    name="vmx",
    help="An x86-64 processor with VMX, its MMU and a PC: runs real kernels as guests "
    "and tells why each VM exit happened. Start with: vmx run",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("run", epilog=run.EPILOG)(run.run)
app.command("warmup")(warmup.warmup)
app.command("doctor")(doctor.doctor)
app.add_typer(guests.app, name="guests")
app.add_typer(trace.app, name="trace")


def version() -> str:
    """The installed version."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("vmx")
    except PackageNotFoundError:
        return "unknown (not installed)"


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"vmx {version()}")
        raise typer.Exit()


@app.callback()
def _options(
    _version: bool = typer.Option(
        False, "--version", callback=_print_version, is_eager=True, help="Print the version."
    ),
) -> None:
    pass


def _is_for_the_user(error: BaseException) -> bool:
    """Errors that carry an exit status, and the loaders' BootError, are about the input: no traceback."""
    return hasattr(error, "exit_status") or any(kind.__name__ == "BootError" for kind in type(error).__mro__)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and leave with its exit status."""
    status: Any
    try:
        status = app(arguments, prog_name="vmx", standalone_mode=False)
    except BrokenPipeError:
        # The reader of our output is gone; the interpreter must not complain about it once more at its end.
        sys.stderr.close()
        status = ExitStatus.ERROR
    except Exception as error:
        if hasattr(error, "show") and hasattr(error, "exit_code"):  # the parser's own usage errors
            error.show()
            status = error.exit_code
        elif type(error).__name__ == "Abort":  # what the parser makes of Ctrl-C
            print("vmx: interrupted", file=sys.stderr)
            status = ExitStatus.INTERRUPTED
        elif _is_for_the_user(error):
            print(f"vmx: {error}", file=sys.stderr)
            status = getattr(error, "exit_status", ExitStatus.BAD_KERNEL)
        else:
            raise
    except KeyboardInterrupt:
        print("vmx: interrupted", file=sys.stderr)
        status = ExitStatus.INTERRUPTED
    sys.exit(int(status) if isinstance(status, int) else 0)

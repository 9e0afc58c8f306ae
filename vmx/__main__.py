"""`python -m vmx`, and what the command `vmx` starts: the command line, after imports that Ctrl-C may end."""

import sys


def main() -> None:
    """Run the command line; exit status 130 for Ctrl-C."""
    try:
        from vmx.cli.main import main as command_line
    except KeyboardInterrupt:
        sys.exit(130)
    command_line()


if __name__ == "__main__":
    main()

"""`python -m vmx` is the command `vmx`."""

from vmx.cli.main import main

if __name__ == "__main__":
    main()

"""The command line: one file per command, each a thin shell over the public API.

`vmx --help` must answer at once, so nothing here imports numba or numpy before a command runs.
"""

"""The figures that the project holds itself to, measured: `make bench`, or `python -m bench` with names of figures.

Nothing here is a test: figures depend on the host, and go to `bench/results` with the host's name and versions.
"""

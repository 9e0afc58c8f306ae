"""The motherboard's devices, one file each, and the buses they sit on.

A device is told offsets, never addresses; its interrupt lines, the clock and its callbacks are injected. It
imports nothing from the rest of the package, so it cannot see the processor. `device.py` holds what all of
them share.
"""

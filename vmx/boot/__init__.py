"""Loaders: from files to a boot image, plain data that any machine can start."""

from vmx.boot.image import BootError, BootImage, InitialState, MemoryRange, Placement, Segment
from vmx.boot.load import load

__all__ = ["BootError", "BootImage", "InitialState", "MemoryRange", "Placement", "Segment", "load"]

"""All compilation units of the processor, and `build`, which compiles what the cache does not hold."""

import vmx.cpu.disassembly
import vmx.cpu.interpreter
import vmx.cpu.registers
import vmx.virt.entry  # noqa: F401
from vmx.state.build import build
from vmx.state.unit import pending, units

__all__ = ["build", "pending", "units"]

"""vmx: an x86-64 processor with Intel's virtual-machine extensions and its MMU, deterministic and scriptable.

    from vmx import Machine, MachineConfig

    machine = Machine(MachineConfig(guest="teach", append="run=hello,poweroff"))
    result = machine.run()

Names are imported when they are first used: `import vmx` is quick.
"""

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from vmx.boot import BootError
    from vmx.errors import VmxError
    from vmx.hypervisor.console import BufferConsole, Console
    from vmx.hypervisor.machine import Machine, RunResult
    from vmx.machine.config import MachineConfig
    from vmx.state.processor import Stop
    from vmx.virt.reasons import ExitReason

_HOME = {
    "BootError": "vmx.boot",
    "VmxError": "vmx.errors",
    "BufferConsole": "vmx.hypervisor.console",
    "Console": "vmx.hypervisor.console",
    "Machine": "vmx.hypervisor.machine",
    "RunResult": "vmx.hypervisor.machine",
    "MachineConfig": "vmx.machine.config",
    "Stop": "vmx.state.processor",
    "ExitReason": "vmx.virt.reasons",
}
__all__ = [
    "BootError",
    "BufferConsole",
    "Console",
    "ExitReason",
    "Machine",
    "MachineConfig",
    "RunResult",
    "Stop",
    "VmxError",
]


def __getattr__(name: str):
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'vmx' has no attribute {name!r}")

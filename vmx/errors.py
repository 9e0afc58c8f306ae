"""What can go wrong, in words for people, and the exit status that the command line returns for it.

The statuses of vmx are even numbers wherever a convention leaves the choice: a guest that leaves through the
isa-debug-exit port makes the process exit with (value << 1) | 1, which is always odd.
"""

from enum import IntEnum


class ExitStatus(IntEnum):
    """Exit status of the process; `vmx run --help` lists them."""

    FINISHED = 0  # the guest powered the machine off, or the command did its work
    ERROR = 1  # anything without a status of its own; `vmx trace compare` found a difference
    USAGE = 2  # unknown option or command, wrong value of an option
    BAD_CONFIGURATION = 4  # configuration file or value
    BAD_KERNEL = 6  # kernel, initrd or module: missing, truncated, wrong format, too large for the memory
    NOT_MODELLED = 8  # the guest asked for something that vmx does not model
    TRIPLE_FAULT = 10
    HUNG = 12  # halted with interrupts off, or nothing left that could wake it
    INSTRUCTION_LIMIT = 14  # --max-instructions reached
    RESET = 16  # the guest reset the machine
    MISSING_DEPENDENCY = 18  # an optional package is needed
    ENTRY_FAILURE = 20  # VM entry failed
    TIMEOUT = 124  # --timeout reached; as timeout(1) says it
    INTERRUPTED = 130  # Ctrl-C, Ctrl-A X or a signal


STATUS_OF_STOP = {
    "POWEROFF": ExitStatus.FINISHED,
    "SHUTDOWN": ExitStatus.FINISHED,
    "RESET": ExitStatus.RESET,
    "TRIPLE_FAULT": ExitStatus.TRIPLE_FAULT,
    "HUNG": ExitStatus.HUNG,
    "NOT_MODELLED": ExitStatus.NOT_MODELLED,
    "INSTRUCTION_LIMIT": ExitStatus.INSTRUCTION_LIMIT,
    "TIMEOUT": ExitStatus.TIMEOUT,
    "INTERRUPTED": ExitStatus.INTERRUPTED,
    "ENTRY_FAILURE": ExitStatus.ENTRY_FAILURE,
}


def status_of_stop(stop: str, debug_exit_value: int | None = None) -> int:
    """Exit status for the name of a stop; `debug_exit_value` is what the guest wrote to isa-debug-exit."""
    if stop == "DEBUG_EXIT":
        return ((debug_exit_value or 0) << 1 | 1) & 0xFF
    return STATUS_OF_STOP.get(stop, ExitStatus.ERROR)


class VmxError(Exception):
    """An error for the person who runs vmx: the message says what was wrong, where, what would be right."""

    exit_status: int = ExitStatus.ERROR

    @property
    def message(self) -> str:
        return str(self)


class UsageError(VmxError):
    """A command or option that cannot be what the user meant."""

    exit_status = ExitStatus.USAGE


class ConfigurationError(VmxError):
    """A configuration value or file that is not valid; names the key, the file and what would be right."""

    exit_status = ExitStatus.BAD_CONFIGURATION


class KernelError(VmxError):
    """A kernel, initrd or module that cannot be booted."""

    exit_status = ExitStatus.BAD_KERNEL


class NotModelledError(VmxError):
    """The guest, or the configuration, asks for something that vmx does not model."""

    exit_status = ExitStatus.NOT_MODELLED


class EntryFailureError(VmxError):
    """VM entry failed; the message names the check and the VMCS field."""

    exit_status = ExitStatus.ENTRY_FAILURE


class Interrupted(VmxError):
    """Ctrl-C where there is nothing to stop in order and to report on."""

    exit_status = ExitStatus.INTERRUPTED


class MissingDependencyError(VmxError):
    """An optional package is needed and not installed."""

    exit_status = ExitStatus.MISSING_DEPENDENCY

    def __init__(self, package: str, extra: str, purpose: str):
        super().__init__(
            f"{purpose} needs the package {package!r}. Install it with: pip install 'vmx[{extra}]'"
        )

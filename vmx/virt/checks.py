"""VM-entry checks for people: which checks a VMCS violates, and a sentence about each.

The checks themselves are compiled (check_controls, check_host, check_guest); VM entry and this linter run
the same code. A check is known by its number, the bit of the bitmap `vmcs.violations`.
"""

from vmx.state.processor import PROCESSOR, new_record
from vmx.virt.capability import allowed
from vmx.virt.check_controls import check_controls
from vmx.virt.check_guest import check_guest
from vmx.virt.check_host import check_host
from vmx.virt.check_table import CHECKS, Check
from vmx.virt.controls import WORDS, control_names
from vmx.virt.entry import ENTRY_ABORTED
from vmx.virt.fields import VIOLATION_WORDS, VMCS, vmcs_address, vmread
from vmx.virt.msr_area import msr_entry_text
from vmx.virt.reasons import ExitReason

__all__ = ["CHECKS", "Check", "explain", "explain_failure", "violations"]

_CONTROL_FIELDS = {word.field: name for name, word in WORDS.items()}


def violations(vmcs, cpu=None) -> list[Check]:
    """All checks that a VMCS violates, in the manual's order.

    `cpu` (view or address) would enter; without one, a 64-bit host without memory is meant.
    """
    address = vmcs_address(vmcs)
    if cpu is None:
        record = new_record(PROCESSOR)
        record["python_hypervisor"] = 1
        cpu = PROCESSOR.view(record.ctypes.data)
    for area in (check_controls, check_host, check_guest):
        area(cpu, address)
    words = VMCS.view(address).violations
    bits = sum((int(words[i]) & (1 << 64) - 1) << 64 * i for i in range(VIOLATION_WORDS))
    return [CHECKS[number] for number in sorted(CHECKS) if bits >> number & 1]


def explain(number: int, vmcs) -> str:
    """One sentence about a violated check: the field, its value, and what it should be."""
    check = CHECKS[number]
    value = vmread(vmcs, check.field)
    detail = _reserved_detail(check, value) if check.name.endswith("controls_reserved") else ""
    return (
        f'{check.field} is {value:#x}, but it {check.message}{detail} (check {check.name}, "{check.section}")'
    )


def _reserved_detail(check: Check, value: int) -> str:
    """Which bits of a control word are wrong."""
    name = _CONTROL_FIELDS[check.field]
    must, may = allowed(name)
    parts = []
    if missing := must & ~value:
        parts.append("must be 1: " + ", ".join(control_names(WORDS[name], missing)))
    if extra := value & ~may:
        parts.append("must be 0: " + ", ".join(control_names(WORDS[name], extra)))
    return f" ({'; '.join(parts)})"


def explain_failure(status: int, detail: int, vmcs) -> str:
    """What VM entry meant by its return value and `cpu.stop_detail`."""
    if status == ENTRY_ABORTED:
        return f"VMX abort {detail} while VM entry failed: the host state or its MSR list cannot be loaded"
    if status == ExitReason.VMENTRY_FAILURE_MSR:
        return f"VM entry failed while loading MSRs: {msr_entry_text(vmcs, detail)}"
    return f"VM entry failed: {explain(detail, vmcs)}"

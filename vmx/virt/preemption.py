"""The VMX-preemption timer in instructions: its value counts TSC / 2^5, the run loop counts retired
instructions.

Manual: "VMX-Preemption Timer". Virtual time is retired instructions times `ns_per_instruction`. Whoever
moves time forward without retiring instructions (HLT) tells `time_passed`, and looks at `ns_to_expiry` to see
how far it may go.
"""

from vmx.state.bits import udiv, ule, urem
from vmx.state.jit import compiled
from vmx.state.processor import NEVER
from vmx.virt.capability import PREEMPTION_TIMER_SHIFT

_LARGEST_VALUE = 0xFFFF_FFFF
_KHZ_PER_GHZ = 1_000_000  # TSC ticks = ns * kHz / 10^6


@compiled
def preemption_deadline(cpu, value):
    """The number of retired instructions at which a timer loaded with `value` has reached zero."""
    if cpu.tsc_khz == 0 or cpu.ns_per_instruction == 0:
        return NEVER
    ns = udiv((value << PREEMPTION_TIMER_SHIFT) * _KHZ_PER_GHZ + cpu.tsc_khz - 1, cpu.tsc_khz)
    return cpu.retired + udiv(ns + cpu.ns_per_instruction - 1, cpu.ns_per_instruction)


@compiled
def preemption_value(cpu):
    """What is left on the timer; 0 when it has expired."""
    deadline = cpu.preemption_deadline
    if ule(deadline, cpu.retired) or deadline == NEVER:
        return 0
    ns = (deadline - cpu.retired) * cpu.ns_per_instruction
    seconds_part = udiv(ns, _KHZ_PER_GHZ) * cpu.tsc_khz  # in two parts: the product would not fit
    ticks = seconds_part + udiv(urem(ns, _KHZ_PER_GHZ) * cpu.tsc_khz, _KHZ_PER_GHZ)
    # The deadline is rounded up to a whole instruction, so the count can pass what was loaded.
    return min(ticks >> PREEMPTION_TIMER_SHIFT, _LARGEST_VALUE)


def ns_to_expiry(cpu) -> int | None:
    """Virtual ns until the timer of a guest expires, 0 when it has; None when none runs. `cpu` is a view."""
    deadline = int(cpu.preemption_deadline)
    if deadline == NEVER:
        return None
    return max(0, deadline - int(cpu.retired)) * int(cpu.ns_per_instruction)


def time_passed(cpu, ns: int) -> None:
    """Virtual time has moved forward by `ns` without instructions: the timer counts in HLT as well."""
    deadline, retired = int(cpu.preemption_deadline), int(cpu.retired)
    if deadline != NEVER:
        cpu.preemption_deadline = max(retired, deadline - ns // int(cpu.ns_per_instruction))
        if deadline > retired >= int(cpu.preemption_deadline):
            cpu.attention = 1

"""Accesses that leave the processor: ports, memory outside RAM, and model-specific registers of the platform.

The platform lives on the host's side. An instruction that needs it stops (`Status.STOP`) with the request in
`cpu.bus_*`; the host performs the access, appends the answer to `cpu.bus_log` and runs the same instruction
again from its start, which then finds its earlier accesses answered in order. So an instruction must make
its bus accesses before it changes state, and nothing is ever performed twice.
"""

from vmx.state.jit import compiled
from vmx.state.processor import BUS_LOG, STOP, Bus, NotModelled, Stop

PORT, MEMORY, MSR = int(Bus.PORT), int(Bus.MEMORY), int(Bus.MSR)
NOT_MODELLED, BUS_ACCESSES = int(Stop.NOT_MODELLED), int(NotModelled.BUS_ACCESSES)
_STOP_OF_KIND = (int(Stop.PORT), int(Stop.MMIO), int(Stop.MSR))


@compiled
def bus_access(cpu, kind, address, size, write, value):
    """Ask the platform. Returns the value read (0 for a write); `cpu.fault` is STOP while there is no answer."""
    if cpu.bus_position < cpu.bus_count:
        answer = cpu.bus_log[cpu.bus_position]
        cpu.bus_position += 1
        return answer
    cpu.fault = STOP
    if cpu.bus_count == BUS_LOG:
        cpu.stop = NOT_MODELLED
        cpu.stop_detail = BUS_ACCESSES
        return 0
    cpu.bus_kind = kind
    cpu.bus_address = address
    cpu.bus_size = size
    cpu.bus_write = write
    cpu.bus_value = value
    if kind == PORT:
        cpu.stop = _STOP_OF_KIND[PORT]
    elif kind == MEMORY:
        cpu.stop = _STOP_OF_KIND[MEMORY]
    else:
        cpu.stop = _STOP_OF_KIND[MSR]
    return 0


@compiled
def forget_bus_answers(cpu):
    """The instruction, or one iteration of it, is complete."""
    cpu.bus_count = 0
    cpu.bus_position = 0


def answer(cpu, value: int) -> None:
    """The host's half: append the answer to the request in `cpu.bus_*` (a Python view of the record)."""
    count = int(cpu.bus_count)
    cpu.bus_log[count] = value
    cpu.bus_count = count + 1
    cpu.bus_position = 0

"""A virtual CPU under the hypervisor: its VMCS, and quick access to the fields that handlers use all the time."""

from vmx.machine.processor import VirtualCpu
from vmx.state.processor import PROCESSOR
from vmx.virt.fields import VMCS

INTERRUPT_FLAG = 1 << 9
SHADOW_STI_OR_MOV_SS = 3
INTERRUPT_WINDOW_EXITING = 1 << 2


def _slots(struct) -> dict[str, int]:
    return {name: entry[1] // 8 for name, entry in struct.dtype.fields.items() if entry[0].itemsize == 8}


_FIELD_SLOT = _slots(VMCS)
_STATE_SLOT = _slots(PROCESSOR)
_GPR = PROCESSOR.offset("gpr") // 8
_EXIT = [
    _FIELD_SLOT[name]
    for name in ("exit_reason", "exit_qualification", "guest_rip", "vm_exit_instruction_length")
]


class GuestCpu:
    """A processor and its VMCS. Field values are unsigned Python integers."""

    def __init__(self, processor: VirtualCpu, vmcs_address: int):
        self.processor = processor
        self.index = processor.index
        memory = processor.memory
        self.vmcs_words = memoryview(memory.array(vmcs_address, 512))
        self.vmcs = memory.array(vmcs_address, 4096, "u1").view(VMCS.dtype)  # shape (1,)
        self.state_words = memoryview(processor._record.view("u1")[: PROCESSOR.size // 8 * 8].view("u8"))
        processor.view.host_vmcs = memory.host_address(vmcs_address)
        processor.view.vmcs_pointer = vmcs_address
        processor.view.python_hypervisor = 1
        processor.view.vmx_on = 1

    def read(self, name: str) -> int:
        """A VMCS field by name."""
        return self.vmcs_words[_FIELD_SLOT[name]]

    def write(self, name: str, value: int) -> None:
        """Write a VMCS field by name."""
        self.vmcs_words[_FIELD_SLOT[name]] = value & 0xFFFF_FFFF_FFFF_FFFF

    def exit_information(self) -> list[int]:
        """Reason, qualification, guest RIP and instruction length of the exit."""
        words = self.vmcs_words
        return [words[slot] for slot in _EXIT]

    def gpr(self, number: int) -> int:
        """A general register; RSP is in the VMCS while the guest does not run."""
        return self.vmcs_words[_FIELD_SLOT["guest_rsp"]] if number == 4 else self.state_words[_GPR + number]

    def set_gpr(self, number: int, value: int) -> None:
        """Write all 64 bits of a general register."""
        value &= 0xFFFF_FFFF_FFFF_FFFF
        if number == 4:
            self.vmcs_words[_FIELD_SLOT["guest_rsp"]] = value
        else:
            self.state_words[_GPR + number] = value

    def set_low(self, number: int, value: int, size: int) -> None:
        """Write a general register as an instruction of operand size `size` bytes does."""
        if size >= 4:
            self.set_gpr(number, value & ((1 << 8 * size) - 1))
        else:
            mask = (1 << 8 * size) - 1
            self.set_gpr(number, self.gpr(number) & ~mask | value & mask)

    def state(self, name: str) -> int:
        """A 64-bit field of the processor record."""
        return self.state_words[_STATE_SLOT[name]]

    def skip_instruction(self) -> None:
        """Continue behind the instruction that exited; blocking by STI and MOV SS ends with it."""
        words = self.vmcs_words
        rip = words[_FIELD_SLOT["guest_rip"]] + words[_FIELD_SLOT["vm_exit_instruction_length"]]
        if not words[_FIELD_SLOT["vm_entry_controls"]] & 1 << 9:
            rip &= 0xFFFF_FFFF
        words[_FIELD_SLOT["guest_rip"]] = rip & 0xFFFF_FFFF_FFFF_FFFF
        words[_FIELD_SLOT["guest_interruptibility_state"]] &= ~SHADOW_STI_OR_MOV_SS
        self.processor.view.retired = int(self.processor.state["retired"]) + 1

    def can_take_interrupt(self) -> bool:
        """Whether an external interrupt may be injected at the next VM entry."""
        words = self.vmcs_words
        return bool(
            words[_FIELD_SLOT["guest_rflags"]] & INTERRUPT_FLAG
            and not words[_FIELD_SLOT["guest_interruptibility_state"]] & SHADOW_STI_OR_MOV_SS
            and not words[_FIELD_SLOT["vm_entry_interruption_info"]] >> 31
        )

    def want_interrupt_window(self, wanted: bool) -> None:
        """Switch interrupt-window exiting on or off."""
        slot = _FIELD_SLOT["primary_controls"]
        if wanted:
            self.vmcs_words[slot] |= INTERRUPT_WINDOW_EXITING
        else:
            self.vmcs_words[slot] &= ~INTERRUPT_WINDOW_EXITING

    def inject(self, vector: int, kind: int = 0, error: int | None = None, length: int = 0) -> None:
        """Deliver an event at the next VM entry; `kind` is the interruption type (0 external, 3 exception ...)."""
        info = 1 << 31 | kind << 8 | vector
        if error is not None:
            info |= 1 << 11
            self.write("vm_entry_exception_error_code", error)
        self.write("vm_entry_instruction_length", length)
        self.write("vm_entry_interruption_info", info)

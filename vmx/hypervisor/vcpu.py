"""A virtual CPU under the hypervisor: its VMCS, and quick access to the fields that handlers use all the time."""

from vmx.machine.processor import REGISTERS, SEGMENTS, VirtualCpu
from vmx.state.processor import EFER_LMA, FLAG_TF, PROCESSOR
from vmx.virt.fields import BY_NAME, READ_ONLY_VMCS_COMPONENT, VMCS, VmcsFieldError, find_field
from vmx.virt.interruption import INFO_ERROR_CODE, INFO_VALID

INTERRUPT_FLAG = 1 << 9
SHADOW_STI_OR_MOV_SS = 3
INTERRUPT_WINDOW_EXITING = 1 << 2
IA32E_MODE_GUEST = 1 << 9
ACCESS_L = 1 << 13
PENDING_BS = 1 << 14
DEBUGCTL_BTF = 1 << 1
MASK64 = 0xFFFF_FFFF_FFFF_FFFF


def _slots(struct) -> dict[str, int]:
    return {name: entry[1] // 8 for name, entry in struct.dtype.fields.items() if entry[0].itemsize == 8}


_FIELD_SLOT = _slots(VMCS)
_WRITABLE = {
    name: (_FIELD_SLOT[name], (1 << field.width) - 1)
    for name, field in BY_NAME.items()
    if field.access == "rw"
}
_STATE_SLOT = _slots(PROCESSOR)
_GPR = PROCESSOR.offset("gpr") // 8
_EXIT = [
    _FIELD_SLOT[name]
    for name in ("exit_reason", "exit_qualification", "guest_rip", "vm_exit_instruction_length")
]


class GuestCpu:
    """A processor and its VMCS. Field values are unsigned Python integers.

    The VMCS holds the guest's state from a VM exit to the next VM entry: in hooks and handlers. While the guest
    runs, and when a run has stopped in the middle of it, guest-state fields are what the last exit saved; the
    `registers` property looks in the right place. Controls take effect at the next VM entry.
    """

    def __init__(self, processor: VirtualCpu, vmcs_address: int):
        self.processor = processor
        self.index = processor.index
        self.acknowledged: list[int] = []  # vectors of interrupts that an exit has acknowledged
        memory = processor.memory
        self.vmcs_words = memoryview(memory.array(vmcs_address, 512))
        self.vmcs = memory.array(vmcs_address, 4096, "u1").view(VMCS.dtype)  # shape (1,)
        self.state_words = memoryview(processor._record.view("u1")[: PROCESSOR.size // 8 * 8].view("u8"))
        processor.view.host_vmcs = memory.host_address(vmcs_address)
        processor.view.vmcs_pointer = vmcs_address
        processor.view.python_hypervisor = 1
        processor.view.vmx_on = 1

    def read(self, name: str | int) -> int:
        """A VMCS field by name or encoding, as VMREAD. VmcsFieldError names the nearest field."""
        slot = _FIELD_SLOT.get(name)
        if slot is not None:
            return self.vmcs_words[slot]
        field, high = find_field(name)
        value = self.vmcs_words[field.offset // 8]
        return value >> 32 if high else value

    def write(self, name: str | int, value: int) -> None:
        """Write a VMCS field by name or encoding, truncated to its width, as VMWRITE.

        VmcsFieldError for a field that does not exist or is read-only.
        """
        entry = _WRITABLE.get(name)
        if entry is not None:
            self.vmcs_words[entry[0]] = value & entry[1]
            return
        field, high = find_field(name)
        if field.access == "ro":
            message = f"{field.name} ({field.encoding:#06x}) is a read-only VM-exit information field"
            raise VmcsFieldError(READ_ONLY_VMCS_COMPONENT, message)
        if high:
            value = self.read(field.name) & 0xFFFF_FFFF | (value & 0xFFFF_FFFF) << 32
        self.write(field.name, value)

    def fields(self) -> dict[str, int]:
        """Every VMCS field by name, in the order of encodings."""
        return {name: self.vmcs_words[_FIELD_SLOT[name]] for name in BY_NAME}

    @property
    def registers(self) -> dict[str, int]:
        """The guest's registers: general, RIP, RFLAGS, control registers, EFER, XCR0, selectors, bases."""
        values = self.processor.registers
        running = self.processor.view.non_root
        if not running:
            values["rsp"] = self.gpr(4)
            for name in ("rip", "rflags", "cr0", "cr3", "cr4"):
                values[name] = self.read(f"guest_{name}")
            values["efer"] = self.read("guest_ia32_efer")
        segments = self.processor.state["segments"]
        for i, name in enumerate(SEGMENTS):
            if running:
                values[f"{name}_base"] = int(segments[i]["base"])
            else:
                values[name] = self.read(f"guest_{name}_selector")
                values[f"{name}_base"] = self.read(f"guest_{name}_base")
        return values

    def set_register(self, name: str, value: int) -> None:
        """Write a general register, RIP or RFLAGS of the guest. KeyError for another name."""
        if name not in (*REGISTERS, "rip", "rflags"):
            raise KeyError(
                f"set_register writes general registers, rip and rflags, not {name!r}; see `write`"
            )
        if self.processor.view.non_root:
            self.processor.set_register(name, value)
        elif name in ("rip", "rflags", "rsp"):
            self.write(f"guest_{name}", value)
        else:
            self.set_gpr(REGISTERS.index(name), value)

    def exit_information(self) -> list[int]:
        """Reason, qualification, guest RIP and instruction length of the exit."""
        words = self.vmcs_words
        return [words[slot] for slot in _EXIT]

    def gpr(self, number: int) -> int:
        """A general register; RSP is in the VMCS while the guest does not run."""
        return self.vmcs_words[_FIELD_SLOT["guest_rsp"]] if number == 4 else self.state_words[_GPR + number]

    def set_gpr(self, number: int, value: int) -> None:
        """Write all 64 bits of a general register."""
        value &= MASK64
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

    @property
    def in_64_bit_mode(self) -> bool:
        """Whether the guest executes 64-bit code."""
        return bool(
            self.read("guest_ia32_efer") & EFER_LMA and self.read("guest_cs_access_rights") & ACCESS_L
        )

    def skip_instruction(self) -> None:
        """Continue behind the instruction that exited, as if it had completed.

        Blocking by STI and MOV SS ends with it; with RFLAGS.TF a single-step trap follows.
        """
        words = self.vmcs_words
        rip = words[_FIELD_SLOT["guest_rip"]] + words[_FIELD_SLOT["vm_exit_instruction_length"]]
        if not words[_FIELD_SLOT["vm_entry_controls"]] & IA32E_MODE_GUEST:
            rip &= 0xFFFF_FFFF
        words[_FIELD_SLOT["guest_rip"]] = rip & MASK64
        words[_FIELD_SLOT["guest_interruptibility_state"]] &= ~SHADOW_STI_OR_MOV_SS
        if (
            words[_FIELD_SLOT["guest_rflags"]] & FLAG_TF
            and not self.read("guest_ia32_debugctl") & DEBUGCTL_BTF
        ):
            words[_FIELD_SLOT["guest_pending_debug_exceptions"]] |= PENDING_BS
        self.count_instruction()

    def count_instruction(self) -> None:
        """An instruction has retired by what the hypervisor did: virtual time goes on."""
        self.processor.view.retired = int(self.processor.state["retired"]) + 1

    def can_take_interrupt(self) -> bool:
        """Whether an external interrupt may be injected at the next VM entry."""
        words = self.vmcs_words
        return bool(
            words[_FIELD_SLOT["guest_rflags"]] & INTERRUPT_FLAG
            and not words[_FIELD_SLOT["guest_interruptibility_state"]] & SHADOW_STI_OR_MOV_SS
            and not words[_FIELD_SLOT["vm_entry_interruption_info"]] & INFO_VALID
            and not words[_FIELD_SLOT["guest_pending_debug_exceptions"]]
        )

    def want_interrupt_window(self, wanted: bool) -> None:
        """Switch interrupt-window exiting on or off."""
        slot = _FIELD_SLOT["primary_controls"]
        if wanted:
            self.vmcs_words[slot] |= INTERRUPT_WINDOW_EXITING
        else:
            self.vmcs_words[slot] &= ~INTERRUPT_WINDOW_EXITING

    def inject(self, vector: int, kind: int = 0, error: int | None = None, length: int = 0) -> None:
        """Deliver an event at the next VM entry; `kind` is the interruption type (0 external, 3 exception ...).

        In real-address mode exceptions have no error code.
        """
        info = INFO_VALID | kind << 8 | vector
        if error is not None and self.read("guest_cr0") & 1:
            info |= INFO_ERROR_CODE
            self.write("vm_entry_exception_error_code", error)
        self.write("vm_entry_instruction_length", length)
        self.write("vm_entry_interruption_info", info)

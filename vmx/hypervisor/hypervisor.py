"""The dispatcher: receives every VM exit, keeps the ledger, calls hooks and the handler, and enters the guest again."""

import time
from collections.abc import Callable

from vmx.cpu.cpuid import cpuid
from vmx.errors import EntryFailureError
from vmx.hypervisor.allocator import Allocator
from vmx.hypervisor.handlers import HANDLERS
from vmx.hypervisor.vcpu import GuestCpu
from vmx.ledger.ledger import Ledger
from vmx.machine.processor import VirtualCpu
from vmx.mmu.tlb import flush_all
from vmx.state.processor import CR4_OSXSAVE, RAX, RCX
from vmx.virt import setup
from vmx.virt.checks import explain_failure
from vmx.virt.entry import vm_entry
from vmx.virt.fields import VMCS_REVISION
from vmx.virt.reasons import ExitReason

ENTRY_FAILED = 1 << 31
ExitHook = Callable[["ExitInfo"], bool | None]
HYPERVISOR_PRESENT, OSXSAVE = 1 << 31, 1 << 27  # CPUID leaf 1, ECX
NO_DEVICE = -1
# controls that make an instruction exit; run_one_instruction takes them off the processor for one instruction
PRIMARY_INTERCEPTS = sum(1 << bit for bit in (7, 9, 10, 11, 12, 15, 16, 19, 20, 23, 24, 25, 29, 30))
SECONDARY_INTERCEPTS = 1 << 2 | 1 << 6


class ExitInfo:
    """What a hook sees of a VM exit. `cpu` is the GuestCpu: registers and VMCS fields may be read and written."""

    __slots__ = ("cpu", "guest_rip", "length", "qualification", "reason")

    def __init__(self, cpu, reason, qualification, guest_rip, length):
        self.cpu, self.reason, self.qualification = cpu, reason, qualification
        self.guest_rip, self.length = guest_rip, length

    def __repr__(self):
        return f"<{ExitReason(self.reason).name} at {self.guest_rip:#x}, qualification {self.qualification:#x}>"


class Hypervisor:
    """Runs the processors of one machine as guests in VMX non-root operation."""

    def __init__(self, machine, ledger: Ledger):
        self.machine, self.ledger = machine, ledger
        self.allocator = Allocator(machine.memory)
        self.eptp = self.allocator.extended_page_tables()
        self.msr_bitmap = self.allocator.page()
        self._intercept_platform_msrs()
        self.hooks: dict[int | None, list[ExitHook]] = {}
        self.guests: list[GuestCpu] = []
        self._passing: set[int] = set()

    def _intercept_platform_msrs(self) -> None:
        """MSR bitmap: reads at 0, writes at 2048 (low MSRs)."""
        bitmap = self.machine.memory.array(self.msr_bitmap, 4096, "u1")
        for index in self.machine.platform_msrs:
            bitmap[index >> 3] |= 1 << (index & 7)
            bitmap[2048 + (index >> 3)] |= 1 << (index & 7)

    def add(self, processor: VirtualCpu, initial) -> GuestCpu:
        """Make a guest of a processor that starts with `initial` (a boot image's registers)."""
        guest = GuestCpu(processor, self.allocator.page())
        config = self.machine.config
        guest.vmcs["revision_id"] = VMCS_REVISION
        setup.configure(
            guest.vmcs,
            eptp=self.eptp,
            vpid=processor.index + 1,
            msr_bitmaps=self.msr_bitmap,
            controls=config.controls,
            exception_bitmap=config.exception_bitmap,
        )
        setup.set_guest_state(guest.vmcs, initial)
        processor.load_general(initial)
        self.guests.append(guest)
        self.enter(guest)
        return guest

    # --- entry ------------------------------------------------------------------------------------------

    def enter(self, cpu: GuestCpu) -> None:
        """VM entry. EntryFailureError names the violated check."""
        self._offer_interrupt(cpu)
        status = vm_entry(cpu.processor.address)
        if status:
            raise EntryFailureError(explain_failure(status, int(cpu.processor.view.stop_detail), cpu.vmcs))

    def _offer_interrupt(self, cpu: GuestCpu) -> None:
        """Inject the platform's interrupt if the guest can take it, else ask for an interrupt window."""
        interrupts = self.machine.platform.interrupts
        cpu.processor.view.intr_pin = 0
        if not interrupts.pending(cpu.index):
            return
        if cpu.can_take_interrupt():
            cpu.inject(interrupts.acknowledge(cpu.index))
            if not interrupts.pending(cpu.index):
                return
        cpu.want_interrupt_window(True)

    def interrupt(self, index: int) -> None:
        """The platform's INTR for a virtual CPU: if it runs, it must exit."""
        self.guests[index].processor.view.intr_pin = 1
        self.guests[index].processor.view.attention = 1

    def reinject(self, cpu: GuestCpu) -> None:
        """An event whose delivery the exit interrupted is delivered at the next entry."""
        info = cpu.read("idt_vectoring_info")
        if info >> 31 and not cpu.read("vm_entry_interruption_info") >> 31:
            cpu.write("vm_entry_interruption_info", info & 0x8000_0FFF)
            cpu.write("vm_entry_exception_error_code", cpu.read("idt_vectoring_error_code"))
            cpu.write("vm_entry_instruction_length", cpu.read("vm_exit_instruction_length"))

    # --- exit -------------------------------------------------------------------------------------------

    def on_vm_exit(self, processor: VirtualCpu) -> None:
        """Dispatch a VM exit: ledger, hooks, handler, entry."""
        cpu = self.guests[processor.index]
        reason, qualification, rip, length = cpu.exit_information()
        if reason & ENTRY_FAILED:
            raise EntryFailureError(f"VM entry failed with exit reason {reason & 0xFFFF}")
        sequence = self.ledger.open(
            reason,
            qualification,
            retired=cpu.state("retired"),
            virtual_ns=processor.virtual_ns,
            cpu=cpu.index,
            guest_rip=rip,
            instruction_length=length,
            guest_physical=cpu.read("guest_physical_address"),
            guest_linear=cpu.read("guest_linear_address"),
            interruption_info=cpu.read("vm_exit_interruption_info"),
            idt_vectoring=cpu.read("idt_vectoring_info"),
        )
        start = time.perf_counter_ns()
        try:
            if not (self.hooks and self._hooked(cpu, reason, qualification, rip, length)):
                handler = HANDLERS.get(reason)
                if handler is None:
                    name = ExitReason(reason).name
                    self.machine.finish("NOT_MODELLED", self.machine.where(f"no handler for exit {name}"))
                else:
                    handler(self, cpu, qualification)
        finally:
            self.ledger.close(sequence, time.perf_counter_ns() - start)
        if self.machine.outcome is None and not processor.view.non_root:
            self.enter(cpu)

    def _hooked(self, cpu, reason, qualification, rip, length) -> bool:
        info = ExitInfo(cpu, reason, qualification, rip, length)
        hooks = self.hooks.get(reason, []) + self.hooks.get(None, [])
        return any([hook(info) for hook in hooks])

    # --- help for handlers ------------------------------------------------------------------------------

    def run_one_instruction(self, cpu: GuestCpu) -> None:
        """Enter with the instruction intercepts off; `after_one` puts them back when it has retired."""
        self.reinject(cpu)
        self.enter(cpu)
        view = cpu.processor.view
        view.primary_controls = int(view.primary_controls) & ~PRIMARY_INTERCEPTS
        view.secondary_controls = int(view.secondary_controls) & ~SECONDARY_INTERCEPTS
        view.passing = 1
        self._passing.add(cpu.index)
        self.machine.step_limit(cpu.index)

    def pass_device_page(self, cpu: GuestCpu, page: int) -> None:
        """Enter with one guest-physical page connected to the platform's memory bus for one instruction."""
        self.enter(cpu)
        cpu.processor.view.device_gpa = page
        self._passing.add(cpu.index)
        self.machine.step_limit(cpu.index)

    def after_one(self, processor: VirtualCpu) -> None:
        """The instruction that ran with something passed through has retired, or has exited again."""
        if processor.index in self._passing:
            self._passing.discard(processor.index)
            cpu = self.guests[processor.index]
            view = processor.view
            view.device_gpa = NO_DEVICE
            view.passing = 0
            if view.non_root:
                view.primary_controls = cpu.read("primary_controls")
                view.secondary_controls = cpu.read("secondary_controls")

    def flush(self, cpu: GuestCpu) -> None:
        """Forget translations after a control register was changed on the guest's behalf."""
        flush_all(cpu.processor.address)

    def cpuid(self, cpu: GuestCpu) -> None:
        """CPUID for the guest: the processor's own answer, with the hypervisor bit set and the guest's OSXSAVE."""
        leaf = cpu.gpr(RAX) & 0xFFFF_FFFF
        cpuid(cpu.processor.address)
        if leaf == 1:
            os_xsave = OSXSAVE if cpu.read("guest_cr4") & CR4_OSXSAVE else 0
            cpu.set_gpr(RCX, cpu.gpr(RCX) & ~OSXSAVE | os_xsave | HYPERVISOR_PRESENT)

    def xcr0_allowed(self, value: int) -> bool:
        """XSETBV: x87 always, and no more than CPUID offers."""
        return value & 1 == 1 and value & ~self.machine.xcr0_supported == 0

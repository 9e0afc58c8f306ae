"""The dispatcher: receives every VM exit, keeps the ledger, calls hooks and the handler, and enters the guest again."""

import struct
import time
from collections.abc import Callable, Iterable

from vmx.cpu.cpuid import cpuid
from vmx.errors import EntryFailureError
from vmx.hypervisor.allocator import Allocator
from vmx.hypervisor.handlers import HANDLERS
from vmx.hypervisor.vcpu import GuestCpu
from vmx.ledger.ledger import Ledger
from vmx.machine.processor import VirtualCpu
from vmx.mmu.tlb import flush_all
from vmx.state.processor import CR4_OSXSAVE, RAX, RBX, RCX, RDX
from vmx.virt import setup
from vmx.virt.checks import explain_failure
from vmx.virt.controls import (
    ACTIVATE_SECONDARY_CONTROLS,
    CR3_LOAD_EXITING,
    CR3_STORE_EXITING,
    CR8_LOAD_EXITING,
    CR8_STORE_EXITING,
    DESCRIPTOR_TABLE_EXITING,
    ENABLE_INVPCID,
    ENABLE_RDTSCP,
    EXTERNAL_INTERRUPT_EXITING,
    HLT_EXITING,
    INTERRUPT_WINDOW_EXITING,
    INVLPG_EXITING,
    MONITOR_EXITING,
    MOV_DR_EXITING,
    MWAIT_EXITING,
    PAUSE_EXITING,
    RDPMC_EXITING,
    RDTSC_EXITING,
    UNCONDITIONAL_IO_EXITING,
    USE_IO_BITMAPS,
    WBINVD_EXITING,
)
from vmx.virt.entry import vm_entry
from vmx.virt.fields import VMCS_REVISION
from vmx.virt.reasons import ExitReason

ENTRY_FAILED = 1 << 31
ExitHook = Callable[["ExitInfo"], bool | None]
HYPERVISOR_LEAF = 0x4000_0000  # the hypervisor's own leaves: only the signature
SIGNATURE = struct.unpack("<3I", b"vmx.hypervis")
HYPERVISOR_PRESENT, OSXSAVE = 1 << 31, 1 << 27  # CPUID leaf 1, ECX
NO_DEVICE = -1
CPUID_INVPCID, CPUID_RDTSCP = 1 << 10, 1 << 27  # leaf 7, EBX; leaf 0x80000001, EDX
CPUID_RDPID = 1 << 22  # leaf 7, ECX
# controls that make an instruction exit; run_one_instruction takes them off the processor for one instruction
PRIMARY_INTERCEPTS = (
    HLT_EXITING | INVLPG_EXITING | MWAIT_EXITING | RDPMC_EXITING | RDTSC_EXITING | CR3_LOAD_EXITING
    | CR3_STORE_EXITING | CR8_LOAD_EXITING | CR8_STORE_EXITING | MOV_DR_EXITING | UNCONDITIONAL_IO_EXITING
    | USE_IO_BITMAPS | MONITOR_EXITING | PAUSE_EXITING
)  # fmt: skip
SECONDARY_INTERCEPTS = DESCRIPTOR_TABLE_EXITING | WBINVD_EXITING


class ExitInfo:
    """What a hook sees of a VM exit. `cpu` is the GuestCpu: registers and VMCS fields may be read and written."""

    __slots__ = ("cpu", "guest_rip", "length", "qualification", "reason")

    def __init__(self, cpu, reason, qualification, guest_rip, length):
        self.cpu, self.reason, self.qualification = cpu, reason, qualification
        self.guest_rip, self.length = guest_rip, length

    def __repr__(self):
        return (
            f"<{ExitReason(self.reason).name} at {self.guest_rip:#x}, qualification {self.qualification:#x}>"
        )


class Hypervisor:
    """Runs the processors of one machine as guests in VMX non-root operation."""

    def __init__(self, machine, ledger: Ledger):
        self.machine, self.ledger = machine, ledger
        self.allocator = Allocator(machine.memory)
        self.eptp = self.allocator.extended_page_tables()
        self.msr_bitmap = self.allocator.page()
        self.io_bitmaps = (self.allocator.page(), self.allocator.page())
        for index in machine.platform_msrs:
            self.intercept_msr(index)
        for bitmap in self.io_bitmaps:
            machine.memory.array(bitmap, 4096, "u1")[:] = 0xFF
        self.hooks: dict[int | None, list[ExitHook]] = {}
        self.guests: list[GuestCpu] = []
        self._passing: set[int] = set()

    def intercept_msr(self, index: int, *, read: bool = True, write: bool = True) -> None:
        """Choose whether RDMSR and WRMSR of an MSR exit while "use MSR bitmaps" is 1.

        Only MSRs 0 to 0x1FFF and 0xC0000000 to 0xC0001FFF have a choice: the others always exit.
        """
        if index & ~0x1FFF not in (0, 0xC000_0000):
            raise ValueError(f"MSR {index:#x} has no bit in the MSR bitmaps: it always exits")
        quarter = 1024 if index >> 31 else 0  # bytes: read low, read high, write low, write high MSRs
        self._set_bit(self.msr_bitmap + quarter, index & 0x1FFF, read)
        self._set_bit(self.msr_bitmap + 2048 + quarter, index & 0x1FFF, write)

    def intercept_ports(self, ports: Iterable[int], on: bool = True) -> None:
        """Choose whether accesses to ports exit while "use I/O bitmaps" is 1; at first all do."""
        for port in ports:
            self._set_bit(self.io_bitmaps[port >> 15], port & 0x7FFF, on)

    def _set_bit(self, bitmap: int, number: int, on: bool) -> None:
        byte = self.machine.memory.array(bitmap + (number >> 3), 1, "u1")
        mask = 1 << (number & 7)
        byte[0] = int(byte[0]) | mask if on else int(byte[0]) & ~mask

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
            io_bitmaps=self.io_bitmaps if self._wants_io_bitmaps(config.controls) else None,
            controls=config.controls,
            exception_bitmap=config.exception_bitmap,
        )
        self.load_slice(guest)
        setup.set_guest_state(guest.vmcs, initial)
        processor.load_general(initial)
        self.guests.append(guest)
        self.enter(guest)
        return guest

    @staticmethod
    def _wants_io_bitmaps(controls) -> bool:
        return setup.named_controls(controls).get("USE_IO_BITMAPS", False)

    def load_slice(self, cpu: GuestCpu) -> None:
        """The VMX-preemption timer starts with a whole time slice at the next entry."""
        cpu.write("vmx_preemption_timer_value", self.machine.config.preemption_timer)

    # --- entry ------------------------------------------------------------------------------------------

    def enter(self, cpu: GuestCpu) -> None:
        """VM entry. EntryFailureError names the violated check."""
        self._offer_interrupt(cpu)
        self._enter(cpu)

    def _enter(self, cpu: GuestCpu) -> None:
        status = vm_entry(cpu.processor.address)
        if status:
            raise EntryFailureError(explain_failure(status, int(cpu.processor.view.stop_detail), cpu.vmcs))

    def resume(self) -> None:
        """Enter the guests whose last exit ended a run."""
        for guest in self.guests:
            if not guest.processor.view.non_root:
                self.enter(guest)

    def _offer_interrupt(self, cpu: GuestCpu) -> None:
        """Inject the platform's interrupt if the guest can take it, else ask for an interrupt window.

        Without external-interrupt exiting the guest's processor takes interrupts by itself.
        """
        interrupts = self.machine.platform.interrupts
        view = cpu.processor.view
        view.intr_pin = 0
        if not self._waiting(cpu):
            return
        if not cpu.read("pin_based_controls") & EXTERNAL_INTERRUPT_EXITING:
            view.intr_pin = 1
            return
        if cpu.can_take_interrupt():
            cpu.inject(cpu.acknowledged.pop(0) if cpu.acknowledged else interrupts.acknowledge(cpu.index))
            if not self._waiting(cpu):
                return
        cpu.want_interrupt_window(True)

    def _waiting(self, cpu: GuestCpu) -> bool:
        return bool(cpu.acknowledged) or self.machine.platform.interrupts.pending(cpu.index)

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

    def run_one_instruction(self, cpu: GuestCpu, device_page: int = NO_DEVICE) -> None:
        """Enter and let the processor execute the instruction at RIP with the intercepts off.

        `device_page`: a guest-physical page that shall reach the platform's bus, with all device memory. Events
        come first, as ever: when one is delivered, nothing passes, and the instruction exits again later.
        Interrupts of the platform wait until `after_one`, so that an exit is one exit.
        """
        self.reinject(cpu)
        view = cpu.processor.view
        view.intr_pin = 0
        if self._waiting(cpu) and not cpu.can_take_interrupt():
            cpu.want_interrupt_window(True)
        self._enter(cpu)
        view.primary_controls = int(view.primary_controls) & ~PRIMARY_INTERCEPTS
        view.secondary_controls = int(view.secondary_controls) & ~SECONDARY_INTERCEPTS
        view.passing = 1
        view.device_gpa = device_page
        self._passing.add(cpu.index)
        self.machine.step_limit(cpu.index)

    def after_one(self, processor: VirtualCpu) -> None:
        """The instruction that was let through has retired, or something else came first."""
        if processor.index not in self._passing:
            return
        self._passing.discard(processor.index)
        cpu, view = self.guests[processor.index], processor.view
        view.device_gpa = NO_DEVICE
        view.passing = 0
        if not view.non_root:
            return
        if cpu.acknowledged:
            cpu.want_interrupt_window(True)
        elif self._waiting(cpu) and not cpu.read("primary_controls") & INTERRUPT_WINDOW_EXITING:
            view.intr_pin = 1
        view.primary_controls = cpu.read("primary_controls")
        view.secondary_controls = cpu.read("secondary_controls")
        view.attention = 1

    def flush(self, cpu: GuestCpu) -> None:
        """Forget translations after a control register was changed on the guest's behalf."""
        flush_all(cpu.processor.address)

    def cpuid(self, cpu: GuestCpu) -> None:
        """CPUID for the guest: the processor's own answer, with the hypervisor bit set and the guest's OSXSAVE.

        Instructions that a control bit makes undefined are not reported.
        """
        leaf = cpu.gpr(RAX) & 0xFFFF_FFFF
        if leaf == HYPERVISOR_LEAF:
            for number, value in zip((RAX, RBX, RCX, RDX), (leaf, *SIGNATURE), strict=True):
                cpu.set_gpr(number, value)
            return
        cpuid(cpu.processor.address)
        if leaf == 7:
            if not self._secondary(cpu, ENABLE_INVPCID):
                cpu.set_gpr(RBX, cpu.gpr(RBX) & ~CPUID_INVPCID)
            if not self._secondary(cpu, ENABLE_RDTSCP):
                cpu.set_gpr(RCX, cpu.gpr(RCX) & ~CPUID_RDPID)
        elif leaf == 0x8000_0001 and not self._secondary(cpu, ENABLE_RDTSCP):
            cpu.set_gpr(RDX, cpu.gpr(RDX) & ~CPUID_RDTSCP)
        elif leaf == 1:
            os_xsave = OSXSAVE if cpu.read("guest_cr4") & CR4_OSXSAVE else 0
            cpu.set_gpr(RCX, cpu.gpr(RCX) & ~OSXSAVE | os_xsave | HYPERVISOR_PRESENT)

    @staticmethod
    def _secondary(cpu: GuestCpu, bit: int) -> bool:
        active = cpu.read("primary_controls") & ACTIVATE_SECONDARY_CONTROLS
        return bool(active and cpu.read("secondary_controls") & bit)

    def xcr0_allowed(self, value: int) -> bool:
        """XSETBV: x87 always, and no more than CPUID offers."""
        return value & 1 == 1 and value & ~self.machine.xcr0_supported == 0

"""`Machine`: a configuration made runnable. The one object that users hold."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from vmx import boot
from vmx.cpu.native import host_lacks
from vmx.errors import ConfigurationError, status_of_stop
from vmx.guests import bundled
from vmx.hypervisor.allocator import private_bytes
from vmx.hypervisor.console import BufferConsole, Console
from vmx.hypervisor.hypervisor import ExitHook, Hypervisor
from vmx.hypervisor.inspection import Inspector
from vmx.hypervisor.vcpu import GuestCpu
from vmx.isa.features import chosen_features
from vmx.ledger.ledger import Ledger
from vmx.machine.config import MachineConfig
from vmx.machine.firmware import firmware_placements
from vmx.machine.memory import Memory
from vmx.machine.platform import Pins, Platform
from vmx.machine.processor import VirtualCpu
from vmx.mmu.bus import answer
from vmx.state.bits import signed, unsigned
from vmx.state.processor import ACTIVITY_SHUTDOWN, NotModelled, Stop
from vmx.virt.controls import EXTERNAL_INTERRUPT_EXITING
from vmx.virt.preemption import ns_to_expiry
from vmx.virt.reasons import ExitReason

log = logging.getLogger(__name__)

SLICE = 4_000_000  # instructions between two looks at the console and the host's clock
TURNS_OF_CLOCK = 1024  # stops of the run loop between two looks at the clock for a time limit
LOOK_TURNS = 256  # device events between two such looks while the processor is halted
FIRST_GUEST = "teach"
SLICE_OF_INPUT = 50_000  # the same while input is plenty
JUMP_TO_ITSELF = b"\xeb\xfe"
HELLO_ADDRESS = 0x10_0000
IA32_APIC_BASE, IA32_TSC_DEADLINE = 0x1B, 0x6E0
X2APIC_MSRS = range(0x800, 0x900)
PLATFORM_MSRS = (IA32_APIC_BASE, IA32_TSC_DEADLINE, *X2APIC_MSRS)
NOT_MODELLED_TEXT = {
    NotModelled.HOST_WITHOUT_VECTOR_STUBS: "x87, MMX and SSE instructions on a host that is not x86-64",
    NotModelled.FIVE_LEVEL_PAGING: "5-level paging",
    NotModelled.SHUTDOWN_STATE: "the shutdown activity state",
    NotModelled.BUS_ACCESSES: "an instruction that makes more accesses to device memory than any device needs",
}


@dataclass
class RunResult:
    """How a run ended. Times are ns of virtual time and seconds of host time."""

    stop: str
    exit_status: int
    message: str
    retired: int
    virtual_ns: int
    host_s: float
    undecoded: dict[str, int] = field(default_factory=dict)
    exits: Ledger | None = None


class Machine:
    """A machine with a guest loaded, ready to run.

    >>> machine = Machine(MachineConfig(guest="hello"))
    >>> result = machine.run()

    `processors`, `memory`, `platform` (devices, ports, mmio, clock, interrupts) and `ledger` may be inspected
    whenever the machine does not run. Raises BootError, ConfigurationError.
    """

    def __init__(self, config: MachineConfig | None = None, *, console: Console | None = None):
        self.config = config = config or MachineConfig()
        self.console = console if console is not None else BufferConsole()
        features = self._features(config)
        self.image = self._load_image(config)
        private = 0 if config.bare else private_bytes(config.memory, config.cpus)
        self.memory = Memory(config.memory, private)
        self.processors = [
            VirtualCpu(
                i,
                self.memory,
                cpus=config.cpus,
                ns_per_instruction=config.ns_per_instruction,
                features=features,
                seed=config.seed,
                vmx=config.vmx,
            )
            for i in range(config.cpus)
        ]
        self.outcome: tuple[str, str] | None = None
        self.debug_exit_value: int | None = None
        self._stop_requested = False
        self._single = [False] * config.cpus
        self._console_due = 0
        self._deadline: float | None = None
        pins = Pins(
            interrupt=self._interrupt,
            nmi=self._nmi,
            poweroff=lambda: self.finish("POWEROFF", "the guest powered the machine off"),
            reset=lambda: self.finish("RESET", "the guest reset the machine"),
            debug_exit=self._debug_exit,
            serial_output=self.console.write,
        )
        self.hypervisor: Hypervisor | None = None
        self.ledger = Ledger(record=config.record)
        self.platform = Platform(self.memory, self._now, pins, cpus=config.cpus, rtc_start=config.rtc_start)
        self.platform.uart.rts_flow_control = self.image.kind in ("linux", "pvh")
        self.memory.place(self.image.placements)
        self.memory.place(firmware_placements(config.memory, config.cpus))
        self._handlers = {
            Stop.LIMIT: self._on_limit,
            Stop.VM_EXIT: self._on_vm_exit,
            Stop.PORT: self._on_port,
            Stop.MMIO: self._on_memory,
            Stop.MSR: self._on_msr,
            Stop.HALT: self._on_halt,
            Stop.ACKNOWLEDGE: self._on_acknowledge,
            Stop.SHUTDOWN: self._on_shutdown,
            Stop.TASK_PRIORITY: self._on_task_priority,
            Stop.NOT_MODELLED: self._on_not_modelled,
        }
        log.info("guest: %s, entry %#x", self.image.kind, self.image.registers.rip)
        for note in self.image.notes:
            log.info("guest: %s", note)
        self._start()

    @staticmethod
    def _features(config: MachineConfig) -> frozenset[str]:
        """The instruction sets beyond x86-64-v1 that the configuration asks for and this host can give."""
        features = chosen_features(config.cpu_model, config.features)
        missing = host_lacks(features)
        if missing:
            off = ", ".join(f"{name} = false" for name in missing)
            raise ConfigurationError(
                f"cpu_model = {config.cpu_model!r}: this host cannot execute {', '.join(missing)}; choose cpu_model = "
                f"'v1', or set {off} under [features]"
            )
        return features

    @staticmethod
    def _load_image(config: MachineConfig) -> boot.BootImage:
        kernel, address = config.kernel, config.load_address
        if kernel is None:
            name = config.guest or FIRST_GUEST
            guests = bundled()
            if name not in guests:
                raise ConfigurationError(f"guest {name!r} is not bundled; bundled are: {', '.join(guests)}")
            kernel = str(guests[name][0])
            if name == "hello" and address is None:
                address = HELLO_ADDRESS
        return boot.load(
            kernel,
            memory_bytes=config.memory,
            initrd_path=config.initrd,
            command_line=config.append,
            modules=config.module_pairs,
            load_address=address,
            cpus=config.cpus,
            mode=config.load_mode,
        )

    def _start(self) -> None:
        if self.config.bare:
            self.processors[0].load(self.image.registers)
        else:
            self.hypervisor = Hypervisor(self, self.ledger)
            self.hypervisor.add(self.processors[0], self.image.registers)

    # --- running ----------------------------------------------------------------------------------------

    def run(self, max_instructions: int | None = None, timeout_s: float | None = None) -> RunResult:
        """Run until the guest ends, a limit is reached, or `stop()` is called.

        `max_instructions` counts from the start of this call, `timeout_s` is host time. May be called again
        after INSTRUCTION_LIMIT, TIMEOUT and INTERRUPTED.
        """
        cpu = self.processors[0]
        self.outcome, self._stop_requested = None, False
        if self.hypervisor is not None:
            self.hypervisor.resume()
        start = time.perf_counter()
        self._deadline = None if timeout_s is None else start + timeout_s
        last = (1 << 63) if max_instructions is None else cpu.retired + max_instructions
        self._console_due = 0
        turns = 0
        while self.outcome is None:
            turns += 1
            now = cpu.retired
            if now >= last:
                self.finish("INSTRUCTION_LIMIT", self.where("the instruction limit is reached"))
                break
            overdue = turns % TURNS_OF_CLOCK == 0 and self._time_is_up()
            if now >= self._console_due or self._stop_requested or overdue:
                self._console_due = now + SLICE
                if self._look_outside():
                    break
            limit = min(self._event_limit(cpu), last, self._console_due)
            if self._single[0]:
                limit = min(limit, now + 1)
            self._handlers[cpu.run(limit)](cpu)
        self.console.flush()
        self._log_unclaimed()
        name, message = self.outcome
        return RunResult(
            name,
            status_of_stop(name, self.debug_exit_value),
            message,
            cpu.retired,
            cpu.virtual_ns,
            time.perf_counter() - start,
            dict(cpu.undecoded()),
            self.ledger,
        )

    def _log_unclaimed(self) -> None:
        """Accesses that no device answered, for `--log info`."""
        for bus, kind in ((self.platform.ports, "port"), (self.platform.mmio, "memory")):
            counts = bus.unclaimed_reads + bus.unclaimed_writes
            beyond = counts.pop(None, 0)  # the bus names so many addresses and no more
            for address, count in sorted(counts.items()):
                log.info("%s %#x: %d accesses that no device answers", kind, address, count)
            if beyond:
                log.info("%s, other addresses: %d accesses that no device answers", kind, beyond)

    def stop(self) -> None:
        """Ask a running machine to stop; safe from signal handlers and other threads."""
        self._stop_requested = True
        self.processors[0].view.limit = 0

    def finish(self, name: str, message: str) -> None:
        """End the run; the first reason counts."""
        if self.outcome is None:
            self.outcome = (name, message)

    def _event_limit(self, cpu: VirtualCpu) -> int:
        """The instruction count at which the next device event is due."""
        due = self.platform.clock.next_event()
        if due is None:
            return 1 << 62
        return cpu.instruction_at(due)

    def _time_is_up(self) -> bool:
        return self._deadline is not None and time.perf_counter() > self._deadline

    def _look_outside(self) -> bool:
        """Console, Ctrl-C and the host's clock; a guest that can never go on. True when the run ends."""
        if self._stop_requested or self.console.quit_requested:
            self.finish("INTERRUPTED", self.where("interrupted"))
        elif self._time_is_up():
            self.finish("TIMEOUT", self.where("the time limit is reached"))
        elif self._jumps_to_itself():
            self.finish("HUNG", self.where("the guest jumps to itself with interrupts off, for ever"))
        else:
            self._feed_uart()
        return self.outcome is not None

    def _jumps_to_itself(self) -> bool:
        """Interrupts off, no NMI wired to anything that runs, and the instruction at RIP is a jump to itself."""
        cpu = self.inspect()
        registers = cpu.registers
        if registers["rflags"] & 1 << 9 or not self.processors[0].retired:
            return False
        return cpu.code_at_rip(2) == JUMP_TO_ITSELF

    def _feed_uart(self) -> None:
        room = 64 - len(self.platform.uart.backlog)
        if room > 0:
            data = self.console.poll(room)
            if data:
                self.platform.uart.receive(data)
            if len(data) == room:  # more may wait: look again soon
                self._console_due = min(self._console_due, self.retired + SLICE_OF_INPUT)

    def _now(self) -> int:
        return self.processors[0].virtual_ns

    def step_limit(self, index: int) -> None:
        """The next run of a virtual CPU is one instruction long."""
        self._single[index] = True

    # --- stops ------------------------------------------------------------------------------------------

    def _on_limit(self, cpu: VirtualCpu) -> None:
        if self._single[cpu.index]:
            self._single[cpu.index] = False
            self.hypervisor.after_one(cpu)
        self.platform.clock.run_due()

    def _on_vm_exit(self, cpu: VirtualCpu) -> None:
        if self._single[cpu.index]:
            self._single[cpu.index] = False
            self.hypervisor.after_one(cpu)
        self.hypervisor.on_vm_exit(cpu)

    def _on_port(self, cpu: VirtualCpu) -> None:
        view = cpu.view
        port, size = int(view.bus_address), int(view.bus_size)
        if view.bus_write:
            self.platform.ports.write(port, size, unsigned(view.bus_value) & ((1 << 8 * size) - 1))
            answer(view, 0)
        else:
            answer(view, signed(self.platform.ports.read(port, size)))

    def _on_memory(self, cpu: VirtualCpu) -> None:
        view = cpu.view
        address, size = unsigned(view.bus_address), int(view.bus_size)
        if view.bus_write:
            self.platform.mmio.write(address, size, unsigned(view.bus_value) & ((1 << 8 * size) - 1))
            self._follow_task_priority(cpu)
            answer(view, 0)
        else:
            answer(view, signed(self.platform.mmio.read(address, size)))

    def _on_msr(self, cpu: VirtualCpu) -> None:
        view = cpu.view
        index = int(view.bus_address)
        if view.bus_write:
            answer(view, int(self.write_platform_msr(cpu.index, index, unsigned(view.bus_value))))
        else:
            ok, value = self.platform.interrupts.lapics[cpu.index].read_msr(index)
            answer(view, int(ok))
            answer(view, signed(value))

    def _on_halt(self, cpu: VirtualCpu) -> None:
        enabled = bool(cpu.registers["rflags"] & 1 << 9)
        if (
            self.hypervisor is None and cpu.view.non_root
        ):  # a guest of machine code: some events exit, whatever IF
            exits = int(cpu.view.pin_controls) & EXTERNAL_INTERRUPT_EXITING
            enabled = enabled or bool(exits) or ns_to_expiry(cpu.view) is not None
        self.wait_for_interrupt(cpu, enabled)

    def _on_acknowledge(self, cpu: VirtualCpu) -> None:
        interrupts = self.platform.interrupts
        if interrupts.pending(cpu.index):
            cpu.view.interrupt_vector = interrupts.acknowledge(cpu.index)
        cpu.view.intr_pin = int(interrupts.pending(cpu.index))

    def _on_shutdown(self, cpu: VirtualCpu) -> None:
        what = "triple fault"
        if int(cpu.view.activity) != ACTIVITY_SHUTDOWN:
            what = f"VMX abort {int(cpu.view.stop_detail)}: a VM exit could not be completed"
        self.finish("TRIPLE_FAULT", self.where(what))

    def _on_task_priority(self, cpu: VirtualCpu) -> None:
        self.platform.interrupts.lapics[cpu.index].set_tpr((int(cpu.view.cr8) & 15) << 4)

    def _follow_task_priority(self, cpu: VirtualCpu) -> None:
        """CR8 is the local APIC's task priority: a write to the APIC changes it."""
        cpu.view.cr8 = self.platform.interrupts.lapics[cpu.index].tpr >> 4

    def _on_not_modelled(self, cpu: VirtualCpu) -> None:
        detail = int(cpu.view.stop_detail)
        what = NOT_MODELLED_TEXT.get(detail, f"feature {detail}")
        self.finish("NOT_MODELLED", self.where(f"the guest uses what vmx does not model: {what}"))

    # --- what handlers and devices ask for --------------------------------------------------------------

    def wait_for_interrupt(self, cpu: VirtualCpu, enabled: bool) -> None:
        """HLT: virtual time jumps from device event to device event until an interrupt is pending."""
        clock, interrupts = self.platform.clock, self.platform.interrupts
        if not enabled and not cpu.view.nmi_pin:
            self.finish("HUNG", self.where("halted with interrupts off: nothing can wake the processor"))
            return
        turns = 0
        while self.outcome is None and not (interrupts.pending(cpu.index) or cpu.view.nmi_pin):
            self._feed_uart()
            if interrupts.pending(cpu.index):
                break
            due = clock.next_event()
            timer = ns_to_expiry(cpu.view)
            if timer is not None:
                expiry = cpu.virtual_ns + timer
                due = expiry if due is None else min(due, expiry)
            turns += 1
            idle = due is None or not self.console.complete
            if (idle or turns % LOOK_TURNS == 0) and self._look_outside():
                return
            if due is None and self.console.closed:
                self.finish("HUNG", self.where("halted, and no device will ever wake it"))
                return
            if idle and not self._wait_on_host(cpu, due):
                continue
            if due is not None:
                cpu.advance_to(due)
                clock.run_due()
            if timer is not None and ns_to_expiry(cpu.view) == 0:
                break  # the processor exits, or goes on, by itself

    def _wait_on_host(self, cpu: VirtualCpu, due: int | None) -> bool:
        """An interactive machine idles in wall time, at most 50 ms at once. True when `due` may be jumped to."""
        if self._stop_requested or self.console.quit_requested:
            self.finish("INTERRUPTED", self.where("interrupted"))
            return False
        wait_ns = 50_000_000 if due is None else due - cpu.virtual_ns
        if wait_ns <= 0:
            return True
        slept = min(wait_ns, 50_000_000)
        self.console.flush()
        time.sleep(slept / 1e9)
        if due is None or slept < wait_ns:
            cpu.advance_to(cpu.virtual_ns + slept)
            return False
        return True

    def _interrupt(self, index: int, level: bool) -> None:
        if self.hypervisor is not None:
            if level:
                self.hypervisor.interrupt(index)
            return
        view = self.processors[index].view
        view.intr_pin = int(level)
        view.attention = 1

    def _nmi(self, index: int) -> None:
        view = self.processors[index].view
        view.nmi_pin = 1
        view.attention = 1

    def _debug_exit(self, value: int) -> None:
        self.debug_exit_value = value
        self.finish("DEBUG_EXIT", f"the guest left through isa-debug-exit with value {value:#x}")

    @property
    def platform_msrs(self) -> tuple[int, ...]:
        """Numbers of the MSRs that belong to the local APIC."""
        return PLATFORM_MSRS

    @staticmethod
    def is_platform_msr(index: int) -> bool:
        """Whether an MSR belongs to the local APIC."""
        return index in (IA32_APIC_BASE, IA32_TSC_DEADLINE) or index in X2APIC_MSRS

    def write_platform_msr(self, cpu: int, index: int, value: int) -> bool:
        """WRMSR to the local APIC: whether it was accepted (else #GP)."""
        lapic = self.platform.interrupts.lapics[cpu]
        ok = lapic.write_msr(index, value)
        if ok and index == IA32_APIC_BASE:
            self.processors[cpu].view.apic_base = signed(value)
        self._follow_task_priority(self.processors[cpu])
        return ok

    @property
    def xcr0_supported(self) -> int:
        """XCR0 bits that the processor offers: x87 and SSE."""
        return 3

    # --- inspection -------------------------------------------------------------------------------------

    def inspect(self, cpu: int = 0) -> Inspector:
        """Registers, memory by linear address and page walks of a virtual CPU, as its guest sees them."""
        guests = self.hypervisor.guests if self.hypervisor else []
        return Inspector(self.processors[cpu], self.memory, guests[cpu] if cpu < len(guests) else None)

    def vmcs(self, cpu: int = 0) -> GuestCpu:
        """A virtual CPU's VMCS: `read(name)`, `write(name, value)`. RuntimeError on a bare machine."""
        if self.hypervisor is None:
            raise RuntimeError("a bare machine has no hypervisor, so no VMCS")
        return self.hypervisor.guests[cpu]

    def where(self, what: str, cpu: int = 0) -> str:
        """A message that says what happened and where: RIP, mode, instruction."""
        return f"{what} at {self.inspect(cpu).where()}, after {self.processors[cpu].retired:,} instructions"

    @property
    def retired(self) -> int:
        """Instructions retired by the first virtual CPU."""
        return self.processors[0].retired

    @property
    def virtual_ns(self) -> int:
        """Virtual time in ns."""
        return self.processors[0].virtual_ns

    def status(self) -> str:
        """One line about the running machine."""
        return self.where(f"running, {len(self.ledger):,} VM exits;")

    def on_exit(self, hook: ExitHook, reason: ExitReason | None = None) -> Callable[[], None]:
        """Call `hook(exit)` at every VM exit (of one reason). A true result replaces the handler.

        Returns a function that removes the hook. RuntimeError on a bare machine: it has no VM exits.
        """
        if self.hypervisor is None:
            raise RuntimeError("a bare machine has no hypervisor, so no VM exits to hook")
        hooks = self.hypervisor.hooks.setdefault(reason, [])
        hooks.append(hook)
        return lambda: hooks.remove(hook)

"""The wiring of a PC's interrupts: ISA lines, 8259A pair, I/O APIC, the local APICs and the bus between them.

ISA IRQ n reaches the PIC and I/O APIC pin n; IRQ 0 reaches pin 2. The PIC's INTR reaches LINT0 of every local
APIC (virtual wire mode); the I/O APIC's pin 0 is not connected to it.
"""

from __future__ import annotations

from .bus import Line
from .device import ALL_ONES, Device
from .ioapic import IoApic
from .lapic import LOWEST_PRIORITY, LVT_LINT0, LVT_LINT1, SVR, SVR_ENABLE, LocalApic
from .pic import PicPair

ISA_LINES = 16
ISA_TO_PIN = {irq: 2 if irq == 0 else irq for irq in range(ISA_LINES) if irq != 2}
SHORTHAND_ALL, SHORTHAND_OTHERS = 2, 3


class ApicBus:
    """Carries messages to the local APICs that their destination names."""

    def __init__(self):
        self.lapics: list[LocalApic] = []

    def deliver(self, destination: int, logical: bool, mode: int, vector: int, level: bool) -> bool:
        """True when some local APIC took the message."""
        targets = [lapic for lapic in self.lapics if lapic.matches(destination, logical)]
        return self._hand_over(targets, mode, vector, level)

    def ipi(self, source, destination, logical, mode, vector, level, asserted, shorthand) -> None:
        if shorthand == SHORTHAND_ALL:
            targets = list(self.lapics)
        elif shorthand == SHORTHAND_OTHERS:
            targets = [lapic for lapic in self.lapics if lapic is not source]
        else:
            targets = [lapic for lapic in self.lapics if lapic.matches(destination, logical)]
        # The trigger-mode bit of an IPI concerns INIT only: every other IPI is edge-triggered.
        self._hand_over(targets, mode, vector, False)

    def _hand_over(self, targets: list[LocalApic], mode: int, vector: int, level: bool) -> bool:
        if mode == LOWEST_PRIORITY:
            ready = [lapic for lapic in targets if lapic.enabled and lapic.svr & SVR_ENABLE]
            targets = [min(ready, key=lambda lapic: (lapic.ppr(), lapic.apic_id))] if ready else []
        taken = False
        for lapic in targets:
            taken |= lapic.receive(mode, vector, level)
        return taken


class LocalApicPage(Device):
    """The xAPIC page: each virtual CPU sees its own local APIC. The machine sets `current` before it runs
    one.
    """

    access_sizes = (1, 2, 4, 8)
    WINDOWS = ((0xFEE0_0000, 0x1000, 0),)

    def __init__(self, lapics: list[LocalApic]):
        self.lapics = lapics
        self.current = 0

    def read(self, offset: int, size: int) -> int:
        return self.lapics[self.current].read(offset, size) & ALL_ONES[size]

    def write(self, offset: int, size: int, value: int) -> None:
        self.lapics[self.current].write(offset, size, value)


class InterruptSystem:
    """Builds and connects the controllers.

    `isa[n]` is the line of IRQ n, `isa[n].input()` when several devices share it. Injected callbacks:
    `intr(cpu, level)` on every change of `pending(cpu)`; `nmi(cpu)`, `init(cpu)`, `startup(cpu, vector)`.
    """

    def __init__(
        self, clock, cpus: int = 1, *, intr=None, nmi=None, init=None, startup=None, tsc_to_ns=None, bus_ns=1
    ):
        nothing = lambda *_: None  # noqa: E731
        intr, nmi, init, startup = (each or nothing for each in (intr, nmi, init, startup))
        self.bus = ApicBus()
        # I/O APIC and local APICs share one space of IDs.
        self.ioapic = IoApic(self.bus, apic_id=cpus & 0xF)
        self.lapics = self.bus.lapics
        for cpu in range(cpus):
            self.lapics.append(
                LocalApic(
                    clock,
                    cpu,
                    cpu == 0,
                    ipi=self.bus.ipi,
                    eoi=self.ioapic.eoi,
                    nmi=lambda cpu=cpu: nmi(cpu),
                    init=lambda cpu=cpu: init(cpu),
                    startup=lambda vector, cpu=cpu: startup(cpu, vector),
                    intr=Line(lambda level, cpu=cpu: intr(cpu, level)),
                    tsc_to_ns=tsc_to_ns,
                    bus_ns=bus_ns,
                )
            )
        self.pic = PicPair(Line(*(lapic.set_lint0 for lapic in self.lapics)))
        self.nmi_line = Line(*(lapic.set_lint1 for lapic in self.lapics))
        self.page = LocalApicPage(self.lapics)
        self.isa = [Line(self._isa_target(irq)) for irq in range(ISA_LINES)]

    def _isa_target(self, irq: int):
        set_irq, set_pin, pin = self.pic.set_irq, self.ioapic.set_pin, ISA_TO_PIN.get(irq)

        def target(level: bool) -> None:
            set_irq(irq, level)
            if pin is not None:
                set_pin(pin, level)

        return target

    def virtual_wire(self) -> None:
        """What firmware leaves behind: the boot processor's APIC on, ExtINT on LINT0, NMI on LINT1."""
        lapic = self.lapics[0]
        lapic.write(SVR, 4, SVR_ENABLE | 0xFF)
        lapic.write(LVT_LINT0, 4, 0x700)
        lapic.write(LVT_LINT1, 4, 0x400)

    def pending(self, cpu: int) -> bool:
        return self.lapics[cpu].intr.level

    def acknowledge(self, cpu: int) -> int:
        """The vector that `cpu` now takes. The 8259A's comes first: it has waited longest for a free
        processor.
        """
        lapic = self.lapics[cpu]
        return self.pic.acknowledge() if lapic.has_extint() else lapic.acknowledge()

    def reset(self) -> None:
        self.pic.reset()
        self.ioapic.reset()
        for lapic in self.lapics:
            lapic.reset()

    def state(self) -> dict:
        return {
            "pic": self.pic.state(),
            "ioapic": self.ioapic.state(),
            "lapics": [lapic.state() for lapic in self.lapics],
        }

    def load(self, state: dict) -> None:
        if len(state["lapics"]) != len(self.lapics):
            raise ValueError(
                f"InterruptSystem: state of {len(state['lapics'])} CPUs for a machine of {len(self.lapics)}"
            )
        self.ioapic.load(state["ioapic"])
        self.pic.load(state["pic"])
        for lapic, saved in zip(self.lapics, state["lapics"], strict=True):
            lapic.load(saved)

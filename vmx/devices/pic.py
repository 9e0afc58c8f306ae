"""The pair of 8259A interrupt controllers (Intel 8259A data sheet; ELCR: 82371 PIIX data sheet).

A latched edge stays requested when its line drops before the acknowledge, as in the chip sets' integrated
controllers; a request that has gone by then (level-triggered, or masked meanwhile) gives the spurious IRQ7
or IRQ15.
"""

from __future__ import annotations

from .bus import Line
from .device import Device, check_names

ICW1_ICW4, ICW1_SINGLE, ICW1_LTIM, ICW1 = 0x01, 0x02, 0x08, 0x10
ICW4_AEOI, ICW4_SFNM = 0x02, 0x10
OCW3 = 0x08
OCW3_RIS, OCW3_RR, OCW3_POLL, OCW3_SMM, OCW3_ESMM = 0x01, 0x02, 0x04, 0x20, 0x40
# OCW2, bits 7:5 (rotate, specific, EOI)
EOI, SPECIFIC_EOI, ROTATE_EOI, ROTATE_SPECIFIC_EOI = 1, 3, 5, 7
ROTATE_AEOI_CLEAR, ROTATE_AEOI_SET, SET_PRIORITY = 0, 4, 6
CASCADE = 2
SPURIOUS = 7
ELCR_WRITABLE = (0xF8, 0xDE)  # the timer, keyboard, cascade, RTC and FPU lines are always edge-triggered

CHIP_FIELDS = (
    "irr imr isr lines elcr ltim vector_base lowest icw_step single has_icw4 auto_eoi rotate_aeoi "
    "special_fully_nested special_mask poll read_isr"
).split()


class Pic8259:
    """One chip: request, in-service and mask registers, priorities, command words."""

    def __init__(self):
        self.elcr = 0
        self.lines = 0
        self.vector_base = 0
        self.imr = 0
        self.initialise(0)
        self.icw_step = 0

    def initialise(self, icw1: int) -> None:
        self.ltim = bool(icw1 & ICW1_LTIM)
        self.single = bool(icw1 & ICW1_SINGLE)
        self.has_icw4 = bool(icw1 & ICW1_ICW4)
        self.irr = self.isr = self.imr = 0
        self.lowest = 7
        self.auto_eoi = self.rotate_aeoi = False
        self.special_fully_nested = self.special_mask = False
        self.poll = self.read_isr = False
        self.icw_step = 2

    def level_mask(self) -> int:
        return 0xFF if self.ltim else self.elcr

    def set_line(self, irq: int, level: bool) -> None:
        bit = 1 << irq
        if level:
            if not self.lines & bit:
                self.irr |= bit
            self.lines |= bit
        else:
            self.lines &= ~bit
        self.refresh_levels()

    def refresh_levels(self) -> None:
        """IRR follows the lines that are level-triggered."""
        mask = self.level_mask()
        if mask:
            self.irr = (self.irr & ~mask) | (self.lines & mask)

    def _rank(self, bits: int) -> int:
        """0 for the highest priority in `bits`, 8 for none."""
        if not bits:
            return 8
        first = (self.lowest + 1) & 7
        rotated = (bits >> first | bits << (8 - first)) & 0xFF
        return (rotated & -rotated).bit_length() - 1

    def requested(self) -> int:
        """The input that the chip would deliver now, or -1."""
        requests = self.irr & ~self.imr
        if not requests:
            return -1
        serving = self.isr
        if self.special_mask:
            serving &= ~self.imr
            requests &= ~self.isr
        if self.special_fully_nested:
            serving &= ~(1 << CASCADE)  # a slave may interrupt its own service
        rank = self._rank(requests)
        if rank >= self._rank(serving):
            return -1
        return (rank + self.lowest + 1) & 7

    def acknowledge(self, irq: int) -> None:
        bit = 1 << irq
        if not self.level_mask() & bit:
            self.irr &= ~bit
        if not self.auto_eoi:
            self.isr |= bit
        elif self.rotate_aeoi:
            self.lowest = irq

    def write_command(self, value: int) -> None:
        if value & ICW1:
            self.initialise(value)
            self.refresh_levels()
        elif value & OCW3:
            if value & OCW3_POLL:
                self.poll = True
            if value & OCW3_RR:
                self.read_isr = bool(value & OCW3_RIS)
            if value & OCW3_ESMM:
                self.special_mask = bool(value & OCW3_SMM)
        else:
            self._write_ocw2(value >> 5, value & 7)

    def _write_ocw2(self, command: int, irq: int) -> None:
        if command in (EOI, ROTATE_EOI):
            # Non-specific: the highest in service; in special mask mode masked ones do not count.
            serving = self.isr & ~self.imr if self.special_mask else self.isr
            if serving:
                highest = (self._rank(serving) + self.lowest + 1) & 7
                self.isr &= ~(1 << highest)
                if command == ROTATE_EOI:
                    self.lowest = highest
        elif command in (SPECIFIC_EOI, ROTATE_SPECIFIC_EOI):
            self.isr &= ~(1 << irq)
            if command == ROTATE_SPECIFIC_EOI:
                self.lowest = irq
        elif command == SET_PRIORITY:
            self.lowest = irq
        elif command in (ROTATE_AEOI_CLEAR, ROTATE_AEOI_SET):
            self.rotate_aeoi = command == ROTATE_AEOI_SET

    def write_data(self, value: int) -> None:
        if self.icw_step == 0:
            self.imr = value
        elif self.icw_step == 2:
            self.vector_base = value & 0xF8
            self.icw_step = 3 if not self.single else (4 if self.has_icw4 else 0)
        elif self.icw_step == 3:
            # ICW3 names the cascade inputs; on a PC the wiring is fixed.
            self.icw_step = 4 if self.has_icw4 else 0
        else:
            self.special_fully_nested = bool(value & ICW4_SFNM)
            self.auto_eoi = bool(value & ICW4_AEOI)
            self.icw_step = 0

    def state(self) -> dict:
        return {name: getattr(self, name) for name in CHIP_FIELDS}

    def load(self, state: dict) -> None:
        check_names("Pic8259", state, CHIP_FIELDS)
        for name in CHIP_FIELDS:
            setattr(self, name, state[name])


class PicPair(Device):
    """Master at offsets 0-1, slave at 2-3, ELCR at 4-5. `intr` is the master's INT pin."""

    access_sizes = (1,)
    WINDOWS = ((0x20, 2, 0), (0xA0, 2, 2), (0x4D0, 2, 4))

    def __init__(self, intr=None):
        self.intr = intr if intr is not None else Line()
        self.reset()

    def reset(self) -> None:
        self.master = Pic8259()
        self.slave = Pic8259()
        self.intr.set(False)

    def state(self) -> dict:
        return {"master": self.master.state(), "slave": self.slave.state()}

    def load(self, state: dict) -> None:
        check_names("PicPair", state, ("master", "slave"))
        self.master.load(state["master"])
        self.slave.load(state["slave"])
        self._update()

    def set_irq(self, irq: int, level: bool) -> None:
        """ISA IRQ 0 to 15; input 2 is the cascade and has no line of its own."""
        if irq >= 8:
            self.slave.set_line(irq - 8, level)
        elif irq != CASCADE:
            self.master.set_line(irq, level)
        self._update()

    def _update(self) -> None:
        cascade = self.slave.requested() >= 0
        # The slave's INT drops and rises between two requests, so the master sees an edge for each of them.
        if cascade:
            self.master.irr |= 1 << CASCADE
            self.master.lines |= 1 << CASCADE
        else:
            self.master.irr &= ~(1 << CASCADE)
            self.master.lines &= ~(1 << CASCADE)
        self.intr.set(self.master.requested() >= 0)

    def acknowledge(self) -> int:
        """The two INTA cycles: the vector, and the chips' new state."""
        irq = self.master.requested()
        if irq < 0:
            vector = self.master.vector_base + SPURIOUS
        else:
            self.master.acknowledge(irq)
            vector = self.master.vector_base + irq
            if irq == CASCADE:
                vector = self._acknowledge_slave()
        self._update()
        return vector

    def _acknowledge_slave(self) -> int:
        irq = self.slave.requested()
        if irq < 0:
            return self.slave.vector_base + SPURIOUS
        self.slave.acknowledge(irq)
        return self.slave.vector_base + irq

    def read(self, offset: int, size: int) -> int:
        if offset >= 4:
            return (self.master, self.slave)[offset & 1].elcr
        chip = self.slave if offset & 2 else self.master
        if chip.poll:
            chip.poll = False
            irq = chip.requested()
            if irq < 0:
                return 0
            chip.acknowledge(irq)
            self._update()
            return 0x80 | irq
        if offset & 1:
            return chip.imr
        return chip.isr if chip.read_isr else chip.irr

    def write(self, offset: int, size: int, value: int) -> None:
        value &= 0xFF
        if offset >= 4:
            which = offset & 1
            chip = (self.master, self.slave)[which]
            chip.elcr = value & ELCR_WRITABLE[which]
            chip.refresh_levels()
        else:
            chip = self.slave if offset & 2 else self.master
            if offset & 1:
                chip.write_data(value)
            else:
                chip.write_command(value)
        self._update()

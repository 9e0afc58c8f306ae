"""Local APIC: xAPIC registers and x2APIC MSRs (Intel SDM volume 3, "Advanced Programmable Interrupt
Controller (APIC)").

IRR, ISR and TMR are 256-bit integers, so that the highest vector is one `bit_length()`.
"""

from __future__ import annotations

from .bus import Line
from .device import Device

# xAPIC offsets; the x2APIC MSR is 0x800 + offset / 16
ID, VERSION, TPR, APR, PPR, EOI, RRD = 0x20, 0x30, 0x80, 0x90, 0xA0, 0xB0, 0xC0
LDR, DFR, SVR, ISR, TMR, IRR, ESR = 0xD0, 0xE0, 0xF0, 0x100, 0x180, 0x200, 0x280
ICR_LOW, ICR_HIGH = 0x300, 0x310
LVT_TIMER, LVT_THERMAL, LVT_PMC, LVT_LINT0, LVT_LINT1, LVT_ERROR = 0x320, 0x330, 0x340, 0x350, 0x360, 0x370
INITIAL_COUNT, CURRENT_COUNT, DIVIDE, SELF_IPI = 0x380, 0x390, 0x3E0, 0x3F0

IA32_APIC_BASE, IA32_TSC_DEADLINE = 0x1B, 0x6E0
X2APIC_FIRST, X2APIC_LAST, X2APIC_ICR = 0x800, 0x8FF, 0x830
BASE_BSP, BASE_EXTD, BASE_EN = 1 << 8, 1 << 10, 1 << 11
DEFAULT_BASE = 0xFEE0_0000

VERSION_VALUE = 0x0005_0014  # integrated APIC, six LVT entries
SVR_ENABLE = 0x100
LVT_MASKED, LVT_LEVEL, LVT_REMOTE_IRR, LVT_STATUS = 1 << 16, 1 << 15, 1 << 14, 1 << 12
LVT_WRITABLE = {
    LVT_TIMER: 0x700FF,
    LVT_THERMAL: 0x107FF,
    LVT_PMC: 0x107FF,
    LVT_LINT0: 0x1A7FF,
    LVT_LINT1: 0x1A7FF,
    LVT_ERROR: 0x100FF,
}
ONE_SHOT, PERIODIC, TSC_DEADLINE = 0, 1, 2

FIXED, LOWEST_PRIORITY, SMI, NMI, INIT, STARTUP, EXTINT = 0, 1, 2, 4, 5, 6, 7
ESR_SEND_ILLEGAL, ESR_RECEIVE_ILLEGAL, ESR_ILLEGAL_REGISTER = 0x20, 0x40, 0x80
ICR_WRITABLE = 0xCCFFF  # low half without the delivery-status bit

BROADCAST = 0xFFFF_FFFF
MASK32 = 0xFFFF_FFFF

# What a general-protection fault answers to, per x2APIC register: the bits a write may set
X2_WRITABLE = {TPR: 0xFF, EOI: 0, SVR: 0x1FF, ESR: 0, INITIAL_COUNT: MASK32, DIVIDE: 0xB, SELF_IPI: 0xFF}
X2_WRITABLE |= LVT_WRITABLE
X2_READABLE = {ID, VERSION, TPR, PPR, LDR, SVR, ESR, INITIAL_COUNT, CURRENT_COUNT, DIVIDE, *LVT_WRITABLE}
X2_READABLE |= {base + 16 * i for base in (ISR, TMR, IRR) for i in range(8)}


class LocalApic(Device):
    """The APIC of one virtual CPU.

    Injected: `ipi(lapic, destination, logical, mode, vector, level, assert_, shorthand)` sends an
    interprocessor interrupt; `eoi(vector)` broadcasts the end of a level-triggered interrupt;
    `nmi()`, `init()`, `startup(vector)` reach the processor. `intr` is high while `has_interrupt()`.
    `tsc_to_ns(tsc)` gives the virtual time of a TSC value. The timer's input clock has `bus_ns` ns per tick.
    """

    access_sizes = (1, 2, 4, 8)
    FIELDS = (
        "base tpr ldr dfr svr esr esr_pending icr_low icr_high lvt initial_count divide timer_start timer_at "
        "tsc_deadline irr isr tmr lint0_level lint1_level"
    ).split()

    def __init__(
        self,
        clock,
        apic_id: int = 0,
        bsp: bool = True,
        *,
        ipi=None,
        eoi=None,
        nmi=None,
        init=None,
        startup=None,
        intr=None,
        tsc_to_ns=None,
        bus_ns: int = 1,
        physical_address_bits: int = 52,
    ):
        nothing = lambda *_: None  # noqa: E731
        self.clock = clock
        self.apic_id = apic_id
        self.bsp = bsp
        self.ipi = ipi or nothing
        self.eoi = eoi or nothing
        self.nmi = nmi or nothing
        self.init = init or nothing
        self.startup = startup or nothing
        self.intr = intr if intr is not None else Line()
        self.tsc_to_ns = tsc_to_ns or (lambda tsc: tsc)
        self.bus_ns = bus_ns
        self.base_writable = ((1 << physical_address_bits) - 1) & ~0xFFF | BASE_BSP | BASE_EXTD | BASE_EN
        self.lint0_level = self.lint1_level = False
        self.reset()

    def reset(self) -> None:
        """Power-up."""
        self.base = DEFAULT_BASE | BASE_EN | (BASE_BSP if self.bsp else 0)
        self._reset_registers()

    def init_reset(self) -> None:
        """INIT: as power-up, but IA32_APIC_BASE (so mode and ID) stays."""
        self._reset_registers()

    def _reset_registers(self) -> None:
        self.tpr = 0
        self.ldr = 0
        self.dfr = MASK32
        self.svr = 0xFF
        self.esr = self.esr_pending = 0
        self.icr_low = self.icr_high = 0
        self.lvt = {register: LVT_MASKED for register in LVT_WRITABLE}
        self.initial_count = self.divide = 0
        self.timer_start = 0
        self.tsc_deadline = 0
        self.irr = self.isr = self.tmr = 0
        self._set_timer(None)
        self._update()

    def after_load(self) -> None:
        self._set_timer(self.timer_at)
        self._update()

    @property
    def enabled(self) -> bool:
        """Enabled in IA32_APIC_BASE."""
        return bool(self.base & BASE_EN)

    @property
    def x2apic(self) -> bool:
        return bool(self.base & BASE_EXTD)

    @property
    def address(self) -> int:
        """Guest-physical address of the register page."""
        return self.base & ~0xFFF

    # interrupts in

    def accept(self, vector: int, level: bool = False) -> None:
        """A fixed interrupt from the bus, an LVT entry or itself."""
        vector &= 0xFF
        if vector < 16:
            self._error(ESR_RECEIVE_ILLEGAL)
            return
        if not self.enabled or not self.svr & SVR_ENABLE:
            return
        bit = 1 << vector
        self.irr |= bit
        if level:
            self.tmr |= bit
        else:
            self.tmr &= ~bit
        self._update()

    def receive(self, mode: int, vector: int, level: bool = False) -> bool:
        """A message of the APIC bus in any delivery mode; False when this APIC cannot take it."""
        if not self.enabled:
            return False
        if mode in (FIXED, LOWEST_PRIORITY):
            if not self.svr & SVR_ENABLE:
                return False
            self.accept(vector, level)
        elif mode == NMI:
            self.nmi()
        elif mode == INIT:
            self.init_reset()
            self.init()
        elif mode == STARTUP:
            self.startup(vector)
        else:
            # SMI: no system-management mode here. ExtINT arrives through LINT0 only.
            return False
        return True

    def matches(self, destination: int, logical: bool) -> bool:
        """Whether a message to `destination` is for this APIC."""
        if destination == BROADCAST:
            return True
        if not logical:
            return destination == self.apic_id or (destination == 0xFF and not self.x2apic)
        if self.x2apic:
            own = self._logical_id()
            return own >> 16 == destination >> 16 and bool(own & destination & 0xFFFF)
        if destination == 0xFF:
            return True
        own = self.ldr >> 24
        if self.dfr >> 28 == 0xF:  # flat model
            return bool(own & destination & 0xFF)
        return own >> 4 == (destination >> 4) & 0xF and bool(own & destination & 0xF)

    def set_lint0(self, level: bool) -> None:
        rising = level and not self.lint0_level
        self.lint0_level = bool(level)
        if rising:
            self._local_edge(LVT_LINT0)
        self._update()

    def set_lint1(self, level: bool) -> None:
        rising = level and not self.lint1_level
        self.lint1_level = bool(level)
        if rising:
            self._local_edge(LVT_LINT1)

    def _local_edge(self, register: int) -> None:
        """A LINT pin rose; ExtINT is not latched but looked at when the processor asks."""
        if not self.enabled:
            if register == LVT_LINT1:
                self.nmi()
            return
        entry = self.lvt[register]
        if (entry >> 8) & 7 == FIXED and entry & LVT_LEVEL and not entry & LVT_MASKED:
            self.lvt[register] = entry | LVT_REMOTE_IRR
            self.accept(entry, True)
        else:
            self._deliver_local(register)

    def _deliver_local(self, register: int) -> None:
        entry = self.lvt[register]
        if entry & LVT_MASKED:
            return
        mode = (entry >> 8) & 7 if register != LVT_ERROR and register != LVT_TIMER else FIXED
        if mode == FIXED:
            self.accept(entry & 0xFF)
        elif mode == NMI:
            self.nmi()
        elif mode == INIT:
            self.init_reset()
            self.init()

    # interrupts out

    def ppr(self) -> int:
        serving = (self.isr.bit_length() - 1) & 0xF0 if self.isr else 0
        return self.tpr if self.tpr & 0xF0 >= serving else serving

    def has_fixed(self) -> bool:
        """A vector in IRR whose class is above the processor priority."""
        irr = self.irr
        return bool(irr) and (irr.bit_length() - 1) & 0xF0 > self.ppr() & 0xF0

    def has_extint(self) -> bool:
        """The 8259A's INTR passes through LINT0, or straight through when the APIC is disabled."""
        if not self.lint0_level:
            return False
        if not self.base & BASE_EN:
            return True
        entry = self.lvt[LVT_LINT0]
        return not entry & LVT_MASKED and (entry >> 8) & 7 == EXTINT

    def has_interrupt(self) -> bool:
        return self.intr.level

    def acknowledge(self) -> int:
        """Moves the highest deliverable vector from IRR to ISR; the spurious vector when there is none."""
        if not self.has_fixed():
            self._update()
            return self.svr & 0xFF
        vector = self.irr.bit_length() - 1
        self.irr &= ~(1 << vector)
        self.isr |= 1 << vector
        self._update()
        return vector

    def _update(self) -> None:
        self.intr.set(self.has_extint() or self.has_fixed())

    def _end_of_interrupt(self) -> None:
        if not self.isr:
            return
        vector = self.isr.bit_length() - 1
        bit = 1 << vector
        self.isr &= ~bit
        if self.tmr & bit:
            for register, level in ((LVT_LINT0, self.lint0_level), (LVT_LINT1, self.lint1_level)):
                entry = self.lvt[register]
                if entry & LVT_REMOTE_IRR and entry & 0xFF == vector:
                    self.lvt[register] = entry & ~LVT_REMOTE_IRR
                    if level:
                        self._local_edge(register)
            self.eoi(vector)
        self._update()

    def set_tpr(self, value: int) -> None:
        """Also what MOV to CR8 does, shifted by four."""
        self.tpr = value & 0xFF
        self._update()

    # registers

    def _logical_id(self) -> int:
        if self.x2apic:
            return (self.apic_id & 0xF_FFF0) << 12 | 1 << (self.apic_id & 0xF)
        return self.ldr

    def _get(self, register: int) -> int | None:
        """The 32-bit register, None for a reserved one."""
        if register in self.lvt:
            return self.lvt[register]
        if ISR <= register < ESR:
            bits = (self.isr, self.tmr, self.irr)[(register - ISR) >> 7]
            return bits >> (((register >> 4) & 7) * 32) & MASK32
        if register == TPR:
            return self.tpr
        if register == ID:
            return self.apic_id if self.x2apic else (self.apic_id & 0xFF) << 24
        if register == VERSION:
            return VERSION_VALUE
        if register == PPR:
            return self.ppr()
        if register == LDR:
            return self._logical_id()
        if register == DFR:
            return self.dfr
        if register == SVR:
            return self.svr
        if register == ESR:
            return self.esr
        if register == ICR_LOW:
            return self.icr_low
        if register == ICR_HIGH:
            return self.icr_high
        if register == INITIAL_COUNT:
            return self.initial_count
        if register == CURRENT_COUNT:
            return self._current_count()
        if register == DIVIDE:
            return self.divide
        if register in (APR, EOI, RRD):
            return 0
        return None

    def _set(self, register: int, value: int) -> bool:
        """Writes the 32-bit register; False for a reserved or read-only one."""
        if register == EOI:
            self._end_of_interrupt()
        elif register == TPR:
            self.set_tpr(value)
        elif register == INITIAL_COUNT:
            self._start_timer(value)
        elif register in self.lvt:
            self._write_lvt(register, value)
        elif register == SVR:
            self.svr = value & 0x1FF
            if not value & SVR_ENABLE:
                for entry in self.lvt:
                    self.lvt[entry] |= LVT_MASKED
            self._update()
        elif register == LDR:
            self.ldr = value & 0xFF00_0000
        elif register == DFR:
            self.dfr = value | 0x0FFF_FFFF
        elif register == ESR:
            self.esr = self.esr_pending
            self.esr_pending = 0
        elif register == ICR_LOW:
            self.icr_low = value & ICR_WRITABLE
            self._send(self.icr_high >> 24)
        elif register == ICR_HIGH:
            self.icr_high = value & 0xFF00_0000
        elif register == DIVIDE:
            self._write_divide(value)
        else:
            return False
        return True

    def _write_lvt(self, register: int, value: int) -> None:
        old = self.lvt[register]
        value &= LVT_WRITABLE[register]
        if not self.svr & SVR_ENABLE:
            value |= LVT_MASKED
        if register in (LVT_LINT0, LVT_LINT1) and value & LVT_LEVEL:
            value |= old & LVT_REMOTE_IRR
        self.lvt[register] = value
        if register == LVT_TIMER and (old ^ value) & 0x60000:
            # Another timer mode disarms the timer.
            self.initial_count = 0
            self.tsc_deadline = 0
            self._set_timer(None)
        self._update()

    def _error(self, bit: int) -> None:
        self.esr_pending |= bit
        if self.enabled and self.svr & SVR_ENABLE:
            entry = self.lvt[LVT_ERROR]
            # An illegal vector in the error entry itself must not report for ever.
            if not entry & LVT_MASKED and entry & 0xFF >= 16:
                self.accept(entry)

    def read(self, offset: int, size: int) -> int:
        """xAPIC page. Only aligned 32-bit accesses are defined; others see the register's bytes."""
        mask = (1 << 8 * size) - 1
        if not self.enabled or self.x2apic:
            return mask
        value = self._get(offset & 0xFF0)
        if value is None:
            self._error(ESR_ILLEGAL_REGISTER)
            return 0
        byte = offset & 0xF
        return (value >> (8 * byte)) & mask if byte < 4 else 0

    def write(self, offset: int, size: int, value: int) -> None:
        if not self.enabled or self.x2apic or size < 4 or offset & 0xF:
            return
        if not self._set(offset & 0xFF0, value & MASK32) and self._get(offset & 0xFF0) is None:
            self._error(ESR_ILLEGAL_REGISTER)

    # MSRs

    def read_msr(self, msr: int) -> tuple[bool, int]:
        """(ok, value) for IA32_APIC_BASE, IA32_TSC_DEADLINE and 0x800 to 0x8FF; not ok means #GP."""
        if msr == IA32_APIC_BASE:
            return True, self.base
        if msr == IA32_TSC_DEADLINE:
            self._expire(self.clock.now)
            return True, self.tsc_deadline
        if not self.x2apic or not X2APIC_FIRST <= msr <= X2APIC_LAST:
            return False, 0
        if msr == X2APIC_ICR:
            return True, self.icr_high << 32 | self.icr_low
        register = (msr - X2APIC_FIRST) << 4
        if register not in X2_READABLE:
            return False, 0
        return True, self._get(register)

    def write_msr(self, msr: int, value: int) -> bool:
        """False means #GP: no such register, reserved bits set, or an illegal mode transition."""
        if msr == IA32_APIC_BASE:
            return self._write_base(value)
        if msr == IA32_TSC_DEADLINE:
            self._write_deadline(value)
            return True
        if not self.x2apic or not X2APIC_FIRST <= msr <= X2APIC_LAST:
            return False
        if msr == X2APIC_ICR:
            if value & MASK32 & ~ICR_WRITABLE:
                return False
            self.icr_high = value >> 32 & MASK32
            self.icr_low = value & ICR_WRITABLE
            self._send(self.icr_high)
            return True
        register = (msr - X2APIC_FIRST) << 4
        writable = X2_WRITABLE.get(register)
        if writable is None or value & ~writable:
            return False
        if register == SELF_IPI:
            self._self_ipi(value)
            return True
        return self._set(register, value)

    def _write_base(self, value: int) -> bool:
        if value & ~self.base_writable:
            return False
        mode, new = self.base & (BASE_EN | BASE_EXTD), value & (BASE_EN | BASE_EXTD)
        illegal = new == BASE_EXTD or (mode == 0 and new & BASE_EXTD) or (mode & BASE_EXTD and new == BASE_EN)
        if illegal:
            return False
        # Disabled, or switched on again: the registers are as after power-up.
        if new != mode and (new == 0 or mode == 0):
            self._reset_registers()
        self.base = value
        self._update()
        return True

    # interprocessor interrupts

    def _self_ipi(self, vector: int) -> None:
        if vector < 16:
            self._error(ESR_SEND_ILLEGAL)
        self.accept(vector)

    def _send(self, destination: int) -> None:
        low = self.icr_low
        mode, vector, shorthand = (low >> 8) & 7, low & 0xFF, (low >> 18) & 3
        if mode in (FIXED, LOWEST_PRIORITY) and vector < 16:
            self._error(ESR_SEND_ILLEGAL)
            return
        asserted, level = bool(low & 1 << 14), bool(low & 1 << 15)
        if shorthand == 1:
            if mode == FIXED:
                self.accept(vector)
            return
        if mode == INIT and level and not asserted:
            return  # INIT level de-assert only synchronises arbitration IDs of old processors
        if not self.x2apic and destination == 0xFF and not low & 1 << 11:
            destination = BROADCAST
        self.ipi(self, destination, bool(low & 1 << 11), mode, vector, level, asserted, shorthand)

    # timer

    def _timer_mode(self) -> int:
        return (self.lvt[LVT_TIMER] >> 17) & 3

    def _tick_ns(self) -> int:
        shift = ((self.divide & 3) | (self.divide >> 1 & 4)) + 1 & 7  # 111 divides by one
        return self.bus_ns << shift

    def _start_timer(self, count: int) -> None:
        if self._timer_mode() >= TSC_DEADLINE:
            return
        self.initial_count = count
        self.timer_start = self.clock.now
        self._set_timer(self.timer_start + count * self._tick_ns() if count else None)

    def _write_divide(self, value: int) -> None:
        remaining = self._current_count()
        self.divide = value & 0xB
        if self.timer_at is not None and self._timer_mode() < TSC_DEADLINE:
            now = self.clock.now
            elapsed = self.initial_count - remaining
            self.timer_start = now - elapsed * self._tick_ns()
            self._set_timer(now + remaining * self._tick_ns())

    def _current_count(self) -> int:
        if self.timer_at is None or self._timer_mode() >= TSC_DEADLINE:
            return 0
        elapsed = (self.clock.now - self.timer_start) // self._tick_ns()
        if elapsed < self.initial_count:
            return self.initial_count - elapsed
        return self.initial_count - elapsed % self.initial_count if self._timer_mode() == PERIODIC else 0

    def _write_deadline(self, value: int) -> None:
        if self._timer_mode() != TSC_DEADLINE:
            return  # outside its mode the MSR ignores writes and reads zero
        self.tsc_deadline = value & 0xFFFF_FFFF_FFFF_FFFF
        self._set_timer(self.tsc_to_ns(self.tsc_deadline) if self.tsc_deadline else None)
        self._expire(self.clock.now)

    def _set_timer(self, at: int | None) -> None:
        self.timer_at = at
        self.clock.set_event(self, at, self.run_events)

    def next_event(self) -> int | None:
        return self.timer_at

    def run_events(self, now: int) -> None:
        self._expire(now)

    def _expire(self, now: int) -> None:
        if self.timer_at is None or now < self.timer_at:
            return
        if self._timer_mode() == PERIODIC and self.initial_count:
            period = self.initial_count * self._tick_ns()
            self.timer_start += (now - self.timer_start) // period * period
            self._set_timer(self.timer_start + period)
        else:
            self.tsc_deadline = 0
            self._set_timer(None)
        self._deliver_local(LVT_TIMER)

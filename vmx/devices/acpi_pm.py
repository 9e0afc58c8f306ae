"""ACPI fixed hardware (ACPI specification, "ACPI Hardware Specification"): PM1a event and control blocks, PM
timer, reset register, one general-purpose event block.

There is no system-management mode, so the machine is always in ACPI mode: SCI_EN reads as one, and the FADT
that goes with this device has no SMI command port.
"""

from __future__ import annotations

from collections.abc import Callable

from .device import NS_PER_SECOND, Device

PM1_STS, PM1_EN, PM1_CNT, PM_TMR, RESET_REG, GPE0_STS, GPE0_EN = 0x00, 0x02, 0x04, 0x08, 0x0C, 0x10, 0x12
LENGTH = 0x14

TMR_STS, GBL_STS, PWRBTN_STS, SLPBTN_STS, RTC_STS, WAK_STS = 0x0001, 0x0020, 0x0100, 0x0200, 0x0400, 0x8000
STS_CLEARABLE = TMR_STS | 0x0010 | GBL_STS | PWRBTN_STS | SLPBTN_STS | RTC_STS | WAK_STS
EN_WRITABLE = TMR_STS | GBL_STS | PWRBTN_STS | SLPBTN_STS | RTC_STS
SCI_EN, CNT_WRITABLE, SLP_TYP_SHIFT, SLP_EN = 0x0001, 0x1C02, 10, 0x2000
SLP_TYP_S5 = 5  # what the DSDT's \_S5 package must name
RESET_VALUE = 0x06
PM_TIMER_HZ = 3_579_545


class AcpiPm(Device):
    """All blocks in one window of 20 bytes. `sci` is the level-triggered SCI line.

    `poweroff()` is called for SLP_EN with the S5 type; other sleep types wake up at once (WAK_STS).
    """

    access_sizes = (1, 2, 4)
    WINDOWS = ((0x600, LENGTH, 0),)
    FIELDS = ("sts", "en", "cnt", "gpe_sts", "gpe_en", "half_periods", "event_at")

    def __init__(
        self,
        clock,
        sci,
        poweroff: Callable[[], object],
        reset: Callable[[], object],
        timer_bits: int = 32,
    ):
        if timer_bits not in (24, 32):
            raise ValueError(f"the PM timer has 24 or 32 bits, not {timer_bits}")
        self.clock = clock
        self.sci = sci
        self.poweroff = poweroff
        self.pull_reset = reset
        self.timer_mask = (1 << timer_bits) - 1
        self.half = 1 << (timer_bits - 1)
        self.reset()

    def reset(self) -> None:
        self.sts = self.en = self.cnt = 0
        self.gpe_sts = self.gpe_en = 0
        self.half_periods = self._ticks() // self.half
        self.event_at: int | None = None
        self._update()

    def after_load(self) -> None:
        self.clock.set_event(self, self.event_at, self.run_events)
        self.sci.set(self._requesting())

    def press_power_button(self) -> None:
        self.sts |= PWRBTN_STS
        self._update()

    def raise_gpe(self, number: int) -> None:
        """General-purpose event 0 to 15."""
        self.gpe_sts |= 1 << (number & 15)
        self._update()

    def _ticks(self) -> int:
        return self.clock.now * PM_TIMER_HZ // NS_PER_SECOND

    def _sync(self) -> None:
        """TMR_STS is set whenever the timer's highest bit changes."""
        periods = self._ticks() // self.half
        if periods != self.half_periods:
            self.half_periods = periods
            self.sts |= TMR_STS

    def _requesting(self) -> bool:
        return bool(self.sts & self.en & EN_WRITABLE) or bool(self.gpe_sts & self.gpe_en)

    def _update(self) -> None:
        self.event_at = None
        if self.en & TMR_STS and not self.sts & TMR_STS:
            tick = (self.half_periods + 1) * self.half
            self.event_at = -(-tick * NS_PER_SECOND // PM_TIMER_HZ)
        self.clock.set_event(self, self.event_at, self.run_events)
        self.sci.set(self._requesting())

    def next_event(self) -> int | None:
        return self.event_at

    def run_events(self, now: int) -> None:
        if self.event_at is not None and now >= self.event_at:
            self._sync()
            self._update()

    def read(self, offset: int, size: int) -> int:
        if offset == PM_TMR and size == 4:
            return self._ticks() & self.timer_mask
        value = 0
        for i in range(size):
            value |= self._read_byte(offset + i) << (8 * i)
        return value

    def _read_byte(self, offset: int) -> int:
        block, shift = offset & ~1, 8 * (offset & 1)
        if block == PM1_STS:
            self._sync()
            register = self.sts
        elif block == PM1_EN:
            register = self.en
        elif block == PM1_CNT:
            register = self.cnt | SCI_EN
        elif PM_TMR <= offset < PM_TMR + 4:
            return (self._ticks() & self.timer_mask) >> (8 * (offset - PM_TMR)) & 0xFF
        elif block == GPE0_STS:
            register = self.gpe_sts
        elif block == GPE0_EN:
            register = self.gpe_en
        else:
            register = 0
        return register >> shift & 0xFF

    def write(self, offset: int, size: int, value: int) -> None:
        self._sync()
        # Bytes from the low one up: SLP_EN is in the high byte, after SLP_TYP of the same write.
        for i in range(size):
            self._write_byte(offset + i, value >> (8 * i) & 0xFF)
        self._update()

    def _write_byte(self, offset: int, byte: int) -> None:
        block, shift = offset & ~1, 8 * (offset & 1)
        bits, mask = byte << shift, 0xFF << shift
        if block == PM1_STS:
            self.sts &= ~(bits & STS_CLEARABLE)
        elif block == PM1_EN:
            self.en = self.en & ~mask | bits & EN_WRITABLE
        elif block == PM1_CNT:
            self.cnt = self.cnt & ~mask | bits & CNT_WRITABLE
            if bits & SLP_EN:
                self._sleep()
        elif offset == RESET_REG:
            if byte == RESET_VALUE:
                self.pull_reset()
        elif block == GPE0_STS:
            self.gpe_sts &= ~bits
        elif block == GPE0_EN:
            self.gpe_en = self.gpe_en & ~mask | bits

    def _sleep(self) -> None:
        if self.cnt >> SLP_TYP_SHIFT & 7 == SLP_TYP_S5:
            self.poweroff()
        else:
            self.sts |= WAK_STS

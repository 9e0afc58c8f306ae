"""MC146818 real-time clock with CMOS RAM (Motorola MC146818A data sheet; RAM layout: PC/AT and later BIOSes).

The date is virtual time plus an offset. Flags of register C are worked out when somebody looks; only an
enabled interrupt costs an event, and none while the request line is already up.
"""

from __future__ import annotations

from .device import NS_PER_SECOND, Device

SECONDS, SECONDS_ALARM, MINUTES, MINUTES_ALARM, HOURS, HOURS_ALARM = range(6)
DAY_OF_WEEK, DAY, MONTH, YEAR, REG_A, REG_B, REG_C, REG_D = range(6, 14)
CENTURY = 0x32
TIME_REGISTERS = (SECONDS, MINUTES, HOURS, DAY_OF_WEEK, DAY, MONTH, YEAR, CENTURY)

A_UIP = 0x80
B_SET, B_PIE, B_AIE, B_UIE, B_DM, B_24H = 0x80, 0x40, 0x20, 0x10, 0x04, 0x02
C_IRQF, C_PF, C_AF, C_UF = 0x80, 0x40, 0x20, 0x10
D_VRT = 0x80
DONT_CARE = 0xC0
# UIP rises 244 us before the update, which takes 1984 us with the 32.768 kHz time base.
UIP_NS = (244 + 1984) * 1000
DAY_SECONDS = 86400


def days_from_civil(year: int, month: int, day: int) -> int:
    """Days since 1970-01-01; months and days out of range carry over."""
    year += (month - 1) // 12
    month = (month - 1) % 12 + 1
    year -= month <= 2
    day_of_year = (153 * ((month + 9) % 12) + 2) // 5 + day - 1
    return year * 365 + year // 4 - year // 100 + year // 400 + day_of_year - 719468


def civil_from_days(days: int) -> tuple[int, int, int]:
    """(year, month, day) of the Gregorian calendar, counted from 0000-03-01 within 400-year eras."""
    days += 719468
    era, of_era = divmod(days, 146097)
    year_of_era = (of_era - of_era // 1460 + of_era // 36524 - of_era // 146096) // 365
    day_of_year = of_era - (365 * year_of_era + year_of_era // 4 - year_of_era // 100)
    shifted = (5 * day_of_year + 2) // 153
    month = shifted + 3 if shifted < 10 else shifted - 9
    return year_of_era + era * 400 + (month <= 2), month, day_of_year - (153 * shifted + 2) // 5 + 1


class Rtc(Device):
    """Index at offset 0, data at 1. `start` is the date of virtual time 0 in seconds since 1970 (UTC)."""

    access_sizes = (1,)
    WINDOWS = ((0x70, 2, 0),)
    FIELDS = "index ram offset_ns halted weekday_shift flags flags_since event_at".split()

    def __init__(self, clock, irq, start: int = 1_700_000_000, memory_bytes: int = 64 << 20):
        self.clock = clock
        self.irq = irq
        self.index = 0
        self.ram = bytearray(128)
        self.offset_ns = start * NS_PER_SECOND
        self.halted: bool = False  # time registers stand still and are kept in `ram`
        self.weekday_shift = 0
        self.flags = 0
        self.flags_since = clock.now
        self.event_at: int | None = None
        self._cached_second: int | None = None
        self.ram[REG_A] = 0x26  # 32.768 kHz, 1024 Hz
        self.ram[REG_B] = B_24H
        self._describe_machine(memory_bytes)
        self._arm()

    def reset(self) -> None:
        """The RESET pin: clears the interrupt enables and flags; time and RAM run on the battery."""
        self._sync()
        self.ram[REG_B] &= ~(B_PIE | B_AIE | B_UIE | 0x08)
        self.flags = 0
        self.flags_since = self.clock.now
        self._arm()

    def after_load(self) -> None:
        self._cached_second = None
        self.clock.set_event(self, self.event_at, self.run_events)
        self.irq.set(self._requesting())

    def _describe_machine(self, memory: int) -> None:
        def word(low: int, high: int, value: int) -> None:
            value = max(0, min(value, 0xFFFF))
            self.ram[low], self.ram[high] = value & 0xFF, value >> 8

        below_4g = min(memory, 0xC000_0000)
        word(0x15, 0x16, 640)  # base memory in KiB
        word(0x17, 0x18, (memory >> 10) - 1024)  # above 1 MiB, in KiB
        word(0x30, 0x31, (memory >> 10) - 1024)
        word(0x34, 0x35, (below_4g - (16 << 20)) >> 16)  # above 16 MiB, in 64 KiB
        above = (memory - below_4g) >> 16
        self.ram[0x5B:0x5E] = min(above, 0xFF_FFFF).to_bytes(3, "little")
        self.ram[0x14] = 0x06  # equipment: FPU, PS/2 port
        checksum = sum(self.ram[0x10:0x2E])
        self.ram[0x2E], self.ram[0x2F] = checksum >> 8 & 0xFF, checksum & 0xFF

    # time

    def _time_ns(self) -> int:
        return self.clock.now + self.offset_ns

    def _encode(self, value: int) -> int:
        return value if self.ram[REG_B] & B_DM else (value // 10 % 10) << 4 | value % 10

    def _decode(self, byte: int) -> int:
        return byte if self.ram[REG_B] & B_DM else (byte >> 4) * 10 + (byte & 0xF)

    def _encode_hour(self, hour: int) -> int:
        if self.ram[REG_B] & B_24H:
            return self._encode(hour)
        return self._encode(hour % 12 or 12) | (0x80 if hour >= 12 else 0)

    def _decode_hour(self, byte: int) -> int:
        if self.ram[REG_B] & B_24H:
            return self._decode(byte)
        return self._decode(byte & 0x7F) % 12 + (12 if byte & 0x80 else 0)

    def _fill_time(self) -> None:
        """Brings the time registers in `ram` up to the present second."""
        second = self._time_ns() // NS_PER_SECOND
        if self.halted or second == self._cached_second:
            return
        self._cached_second = second
        days, of_day = divmod(second, DAY_SECONDS)
        year, month, day = civil_from_days(days)
        ram, encode = self.ram, self._encode
        ram[SECONDS] = encode(of_day % 60)
        ram[MINUTES] = encode(of_day // 60 % 60)
        ram[HOURS] = self._encode_hour(of_day // 3600)
        ram[DAY_OF_WEEK] = encode((days + 4 + self.weekday_shift) % 7 + 1)
        ram[DAY] = encode(day)
        ram[MONTH] = encode(month)
        ram[YEAR] = encode(year % 100)
        ram[CENTURY] = encode(year // 100 % 100)

    def _adopt_time(self, fraction_ns: int) -> None:
        """Makes the registers in `ram` the present time."""
        ram, decode = self.ram, self._decode
        year = decode(ram[CENTURY]) * 100 + decode(ram[YEAR])
        days = days_from_civil(year, decode(ram[MONTH]), decode(ram[DAY]))
        of_day = self._decode_hour(ram[HOURS]) * 3600 + decode(ram[MINUTES]) * 60 + decode(ram[SECONDS])
        second = days * DAY_SECONDS + of_day
        self.offset_ns = second * NS_PER_SECOND + fraction_ns - self.clock.now
        weekday = decode(ram[DAY_OF_WEEK]) - 1
        self.weekday_shift = (weekday - (second // DAY_SECONDS + 4)) % 7
        self._cached_second = None

    def _uip(self) -> bool:
        if self.halted:
            return False
        return self._time_ns() % NS_PER_SECOND >= NS_PER_SECOND - UIP_NS

    # flags and interrupts

    def _period_ns_numerator(self) -> int:
        """Periods of 1/32768 s between periodic interrupts, 0 for none."""
        rate = self.ram[REG_A] & 0xF
        if not rate or self.ram[REG_A] & 0x60 == 0x60:
            return 0
        return 1 << (rate - 1 if rate > 2 else rate + 6)

    def _next_periodic(self, since: int) -> int | None:
        period = self._period_ns_numerator()
        if not period:
            return None
        count = (since + self.offset_ns) * 32768 // (NS_PER_SECOND * period) + 1
        return -(-count * period * NS_PER_SECOND // 32768) - self.offset_ns

    def _next_update(self, since: int) -> int | None:
        if self.halted:
            return None
        return ((since + self.offset_ns) // NS_PER_SECOND + 1) * NS_PER_SECOND - self.offset_ns

    def _alarm_values(self, register: int, limit: int) -> list[int]:
        byte = self.ram[register]
        if byte >= DONT_CARE:
            return list(range(limit))
        value = self._decode_hour(byte) if register == HOURS_ALARM else self._decode(byte)
        return [value] if value < limit else []

    def _next_alarm(self, since: int) -> int | None:
        if self.halted:
            return None
        seconds = self._alarm_values(SECONDS_ALARM, 60)
        minutes = self._alarm_values(MINUTES_ALARM, 60)
        hours = self._alarm_values(HOURS_ALARM, 24)
        if not (seconds and minutes and hours):
            return None
        day, of_day = divmod((since + self.offset_ns) // NS_PER_SECOND + 1, DAY_SECONDS)
        for h in hours + [hours[0] + 24]:
            if h * 3600 + 3599 < of_day:
                continue
            for m in minutes:
                base = h * 3600 + m * 60
                if base + 59 < of_day:
                    continue
                for s in seconds:
                    if base + s >= of_day:
                        return (day * DAY_SECONDS + base + s) * NS_PER_SECOND - self.offset_ns
        return None

    def _sync(self) -> None:
        """Folds what happened since the last look into the flags."""
        now, since = self.clock.now, self.flags_since
        for flag, following in (
            (C_PF, self._next_periodic),
            (C_AF, self._next_alarm),
            (C_UF, self._next_update),
        ):
            if not self.flags & flag:
                at = following(since)
                if at is not None and at <= now:
                    self.flags |= flag
        self.flags_since = now

    def _requesting(self) -> bool:
        return bool(self.flags & self.ram[REG_B] & 0x70)

    def _arm(self) -> None:
        """Sets the line and the next event from the flags."""
        requesting = self._requesting()
        at = None
        if not requesting:
            enables, since = self.ram[REG_B], self.flags_since
            times = [
                self._next_periodic(since) if enables & B_PIE else None,
                self._next_alarm(since) if enables & B_AIE else None,
                self._next_update(since) if enables & B_UIE else None,
            ]
            at = min((each for each in times if each is not None), default=None)
        self.event_at = at
        self.clock.set_event(self, at, self.run_events)
        self.irq.set(requesting)

    def next_event(self) -> int | None:
        return self.event_at

    def run_events(self, now: int) -> None:
        if self.event_at is not None and now >= self.event_at:
            self._sync()
            self._arm()

    # registers

    def read(self, offset: int, size: int) -> int:
        if offset == 0:
            return 0xFF  # the index port is write-only
        index = self.index
        if index == REG_A:
            return self.ram[REG_A] | (A_UIP if self._uip() else 0)
        if index == REG_C:
            self._sync()
            value = self.flags | (C_IRQF if self._requesting() else 0)
            self.flags = 0
            self._arm()
            return value
        if index == REG_D:
            return D_VRT
        if index in TIME_REGISTERS:
            self._fill_time()
        return self.ram[index]

    def write(self, offset: int, size: int, value: int) -> None:
        value &= 0xFF
        if offset == 0:
            self.index = value & 0x7F  # bit 7 masks NMI; nothing on this board raises one
            return
        index = self.index
        if index in (REG_C, REG_D):
            return
        if index in TIME_REGISTERS:
            self._sync()
            self._fill_time()
            self.ram[index] = value
            if not self.halted:
                self._adopt_time(self._time_ns() % NS_PER_SECOND)
            self._arm()
        elif index == REG_A or index == REG_B:
            self._sync()
            self._fill_time()
            self.ram[index] = value & 0x7F if index == REG_A else value
            self._run_or_halt(divider_reset=index == REG_A)
            if index == REG_B:
                if value & B_SET:
                    self.ram[REG_B] &= ~B_UIE
                self._cached_second = None  # formats may have changed
            self._arm()
        elif index in (SECONDS_ALARM, MINUTES_ALARM, HOURS_ALARM):
            self._sync()
            self.ram[index] = value
            self._arm()
        else:
            self.ram[index] = value

    def _run_or_halt(self, divider_reset: bool) -> None:
        halt = bool(self.ram[REG_B] & B_SET) or self.ram[REG_A] & 0x70 != 0x20
        if self.halted and not halt:
            self.halted = False
            # After a divider reset the first update comes half a second later; SET leaves the divider
            # running.
            running = self._time_ns() % NS_PER_SECOND
            self._adopt_time(NS_PER_SECOND // 2 if divider_reset else running)
        else:
            self.halted = halt

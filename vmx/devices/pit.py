"""8254 programmable interval timer (Intel 8254 data sheet) and port 0x61, which gates channel 2.

Nothing ticks: each channel remembers the CLK number at which its count was loaded, and works out counter
and output from the present one when somebody asks.
"""

from __future__ import annotations

from .device import NS_PER_SECOND, Device, check_names

PIT_HZ = 1_193_182
CONTROL = 3
READ_BACK = 3
# Control word, bits 5:4
LATCH, LSB, MSB, LSB_MSB = 0, 1, 2, 3
READ_BACK_NO_COUNT, READ_BACK_NO_STATUS = 0x20, 0x10

CHANNEL_FIELDS = (
    "mode access bcd count pending_count loaded_at frozen gate low_byte high_next read_high latched_count "
    "latched_status out_idle stopped"
).split()


def tick_at(now: int) -> int:
    return now * PIT_HZ // NS_PER_SECOND


def time_of(tick: int) -> int:
    """The first ns at which `tick_at` gives `tick`."""
    return -(-tick * NS_PER_SECOND // PIT_HZ)


class Channel:
    """One counter. Times are in CLK periods since the start of virtual time."""

    def __init__(self, gate: bool):
        self.mode = 3
        self.access = LSB_MSB
        self.bcd = False
        self.count = 0x10000
        self.pending_count: int | None = None
        self.loaded_at: int | None = None  # CLK at which the count was, or will be, loaded
        self.frozen: int | None = None  # elapsed CLKs while the gate holds the count
        self.gate = gate
        self.low_byte = 0
        self.high_next = False
        self.read_high = False
        self.latched_count: list[int] = []
        self.latched_status: int | None = None
        self.out_idle = True  # level before the first load
        self.stopped = True

    # the count

    def elapsed(self, tick: int) -> int | None:
        """CLKs since the load, or None when no count is loaded yet."""
        if self.loaded_at is None:
            return None
        if self.frozen is not None:
            return self.frozen
        if self.pending_count is not None and self.mode in (2, 3):
            # A new count for a periodic mode takes over at the end of the running period.
            if tick - self.loaded_at >= self.count:
                self.loaded_at += self.count
                self.count = self.pending_count
                self.pending_count = None
        since = tick - self.loaded_at
        return since if since >= 0 else None

    def value(self, tick: int) -> int:
        since = self.elapsed(tick)
        modulus = 10_000 if self.bcd else 0x10000
        n = self.count
        if since is None:
            value = n
        elif self.mode == 2:
            value = n - since % n
        elif self.mode == 3:
            phase = since % n
            high = (n + 1) // 2
            value = (n & ~1) - 2 * (phase if phase < high else phase - high)
        else:
            value = n - since
        value %= modulus
        if self.bcd:
            value = int(str(value), 16)
        return value

    def out(self, tick: int) -> bool:
        since = self.elapsed(tick)
        if since is None or self.stopped:
            return self.out_idle
        n = self.count
        if self.mode == 0:
            return since >= n
        if self.mode == 1:
            return since >= n
        if self.mode == 2:
            return not self.gate or since % n != n - 1
        if self.mode == 3:
            return not self.gate or since % n < (n + 1) // 2
        return since != n

    def next_rise(self, tick: int) -> int | None:
        """The CLK after `tick` at which the output next goes from low to high, or None."""
        if self.loaded_at is None or self.frozen is not None or self.stopped:
            return None
        self.elapsed(tick)
        n = self.count
        if self.mode in (2, 3):
            if not self.gate:
                return None
            since = max(tick - self.loaded_at, 0)
            return self.loaded_at + (since // n + 1) * n
        rise = self.loaded_at + n + (1 if self.mode >= 4 else 0)
        return rise if rise > tick else None

    # programming

    def write_control(self, value: int) -> None:
        self.access = (value >> 4) & 3
        mode = (value >> 1) & 7
        self.mode = mode if mode < 6 else mode - 4  # modes 2 and 3 ignore the top bit
        self.bcd = bool(value & 1)
        self.high_next = self.read_high = False
        self.latched_count = []
        self.latched_status = None
        self.pending_count = None
        self.loaded_at = None
        self.frozen = None
        self.out_idle = self.mode != 0
        self.stopped = True

    def write_count(self, byte: int, tick: int) -> None:
        if self.access == LSB:
            self._load(byte, tick)
        elif self.access == MSB:
            self._load(byte << 8, tick)
        elif not self.high_next:
            self.low_byte = byte
            self.high_next = True
            if self.mode == 0:
                self.out_idle = False
                self.stopped = True  # the first byte stops a mode 0 count
        else:
            self.high_next = False
            self._load(byte << 8 | self.low_byte, tick)

    def _load(self, value: int, tick: int) -> None:
        if self.bcd:
            digits = [(value >> shift) & 0xF for shift in (12, 8, 4, 0)]
            count = (digits[0] * 1000 + digits[1] * 100 + digits[2] * 10 + digits[3]) or 10_000
        else:
            count = value or 0x10000
        if self.mode in (1, 5):
            self.pending_count = count  # waits for the gate
            if self.loaded_at is None:
                self.count = count
            return
        if self.mode in (2, 3) and self.loaded_at is not None and self.frozen is None:
            # From here on, periods count from the start of the present one.
            since = self.elapsed(tick)
            if since is not None:
                self.loaded_at += since // self.count * self.count
            self.pending_count = count
            return
        self.count = count
        self.pending_count = None
        self.loaded_at = tick + 1
        self.frozen = None if self.gate else 0
        self.stopped = False

    def set_gate(self, gate: bool, tick: int) -> None:
        if gate == self.gate:
            return
        since = self.elapsed(tick)
        self.gate = gate
        if self.mode in (1, 5):
            if gate and (self.pending_count is not None or self.loaded_at is not None):
                if self.pending_count is not None:
                    self.count = self.pending_count
                    self.pending_count = None
                self.loaded_at = tick + 1
                self.stopped = False
        elif self.loaded_at is None:
            return
        elif not gate:
            self.frozen = max(since or 0, 0)
        else:
            # Modes 0 and 4 continue, modes 2 and 3 start over.
            self.loaded_at = tick - self.frozen if self.mode in (0, 4) else tick + 1
            self.frozen = None
            if self.mode in (2, 3) and self.pending_count is not None:
                self.count = self.pending_count
                self.pending_count = None

    # reading

    def latch_count(self, tick: int) -> None:
        if not self.latched_count:
            value = self.value(tick)
            low, high = value & 0xFF, value >> 8
            self.latched_count = {LSB: [low], MSB: [high]}.get(self.access, [low, high])
            if len(self.latched_count) == 2 and self.read_high:
                self.latched_count = [high]
                self.read_high = False

    def latch_status(self, tick: int) -> None:
        if self.latched_status is None:
            null = self.loaded_at is None or self.pending_count is not None or tick < self.loaded_at
            out = self.out(tick)
            self.latched_status = out << 7 | null << 6 | self.access << 4 | self.mode << 1 | self.bcd

    def read(self, tick: int) -> int:
        if self.latched_status is not None:
            status = self.latched_status
            self.latched_status = None
            return status
        if self.latched_count:
            return self.latched_count.pop(0)
        value = self.value(tick)
        if self.access == LSB:
            return value & 0xFF
        if self.access == MSB:
            return value >> 8
        self.read_high = not self.read_high
        return value & 0xFF if self.read_high else value >> 8

    def state(self) -> dict:
        state = {name: getattr(self, name) for name in CHANNEL_FIELDS}
        state["latched_count"] = list(self.latched_count)
        return state

    def load(self, state: dict) -> None:
        check_names("8254 channel", state, CHANNEL_FIELDS)
        for name in CHANNEL_FIELDS:
            setattr(self, name, state[name])
        self.latched_count = list(state["latched_count"])


class Pit8254(Device):
    """Counters 0 to 2 at offsets 0 to 2, control word at 3. `irq` is channel 0's output."""

    access_sizes = (1,)
    WINDOWS = ((0x40, 4, 0),)

    def __init__(self, clock, irq):
        self.clock = clock
        self.irq = irq
        self.event_at: int | None = None
        self.reset()

    def reset(self) -> None:
        self.channels = [Channel(True), Channel(True), Channel(False)]
        self._arm()

    def state(self) -> dict:
        return {"channels": [channel.state() for channel in self.channels], "event_at": self.event_at}

    def load(self, state: dict) -> None:
        check_names("Pit8254", state, ("channels", "event_at"))
        for channel, saved in zip(self.channels, state["channels"], strict=True):
            channel.load(saved)
        self.event_at = state["event_at"]
        self.clock.set_event(self, self.event_at, self.run_events)
        self.irq.set(self.channels[0].out(tick_at(self.clock.now)))

    def read(self, offset: int, size: int) -> int:
        if offset == CONTROL:
            return 0xFF  # write-only
        return self.channels[offset].read(tick_at(self.clock.now))

    def write(self, offset: int, size: int, value: int) -> None:
        value &= 0xFF
        tick = tick_at(self.clock.now)
        if offset != CONTROL:
            self.channels[offset].write_count(value, tick)
            if offset == 0:
                self._arm()
        elif value >> 6 == READ_BACK:
            for i, channel in enumerate(self.channels):
                if value & (2 << i):
                    if not value & READ_BACK_NO_COUNT:
                        channel.latch_count(tick)
                    if not value & READ_BACK_NO_STATUS:
                        channel.latch_status(tick)
        elif (value >> 4) & 3 == LATCH:
            self.channels[value >> 6].latch_count(tick)
        else:
            self.channels[value >> 6].write_control(value)
            if value >> 6 == 0:
                self._arm()

    def set_gate2(self, gate: bool) -> None:
        self.channels[2].set_gate(gate, tick_at(self.clock.now))

    def out2(self) -> bool:
        return self.channels[2].out(tick_at(self.clock.now))

    # Channel 0: only rising edges are events. The line is let down just before, not when the output really
    # falls: nothing can observe the difference, and a periodic timer costs one event per period instead of
    # two.

    def _arm(self) -> None:
        tick = tick_at(self.clock.now)
        channel = self.channels[0]
        rise = channel.next_rise(tick)
        self.event_at = None if rise is None else time_of(rise)
        self.clock.set_event(self, self.event_at, self.run_events)
        self.irq.set(channel.out(tick))

    def next_event(self) -> int | None:
        return self.event_at

    def run_events(self, now: int) -> None:
        if self.event_at is None or now < self.event_at:
            return
        self.irq.set(False)
        self.irq.set(True)
        rise = self.channels[0].next_rise(tick_at(now))
        self.event_at = None if rise is None else time_of(rise)
        self.clock.set_event(self, self.event_at, self.run_events)


class SystemControlB(Device):
    """Port 0x61: speaker gate and data, NMI masks, the refresh toggle, and channel 2's output."""

    access_sizes = (1,)
    WINDOWS = ((0x61, 1, 0),)
    FIELDS = ("control",)

    GATE2, SPEAKER, NMI_MASKS = 0x01, 0x02, 0x0C
    REFRESH, OUT2 = 0x10, 0x20
    REFRESH_NS = 15_085  # 18 CLKs: DRAM refresh of the PC/AT

    def __init__(self, clock, pit: Pit8254):
        self.clock = clock
        self.pit = pit
        self.reset()

    def reset(self) -> None:
        self.control = 0
        self.pit.set_gate2(False)

    def read(self, offset: int, size: int) -> int:
        value = self.control
        if self.clock.now // self.REFRESH_NS & 1:
            value |= self.REFRESH
        if self.pit.out2():
            value |= self.OUT2
        return value

    def write(self, offset: int, size: int, value: int) -> None:
        self.control = value & 0x0F
        self.pit.set_gate2(bool(value & self.GATE2))

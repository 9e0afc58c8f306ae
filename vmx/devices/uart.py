"""16550A UART (National Semiconductor PC16550D data sheet).

The line is infinitely fast outwards: a byte written to THR is in the sink at once, so THRE and TEMT are
always set. Inwards, bytes wait in a queue and enter the receive FIFO as the guest drains it: none is lost
to overrun.
"""

from __future__ import annotations

from collections.abc import Callable

from .device import NS_PER_SECOND, Device

# Registers (offset; DLL and DLM replace the first two while LCR.DLAB is set)
RBR = THR = DLL = 0
IER = DLM = 1
IIR = FCR = 2
LCR, MCR, LSR, MSR, SCR = 3, 4, 5, 6, 7

IER_ERBFI, IER_ETBEI, IER_ELSI, IER_EDSSI = 0x01, 0x02, 0x04, 0x08
IIR_NONE, IIR_MODEM, IIR_THRE, IIR_DATA, IIR_LINE, IIR_TIMEOUT = 0x01, 0x00, 0x02, 0x04, 0x06, 0x0C
IIR_FIFO_ENABLED = 0xC0
FCR_ENABLE, FCR_CLEAR_RX, FCR_CLEAR_TX = 0x01, 0x02, 0x04
FCR_KEPT = 0xC9
LCR_DLAB = 0x80
MCR_DTR, MCR_RTS, MCR_OUT1, MCR_OUT2, MCR_LOOP = 0x01, 0x02, 0x04, 0x08, 0x10
LSR_DR, LSR_OE, LSR_THRE, LSR_TEMT = 0x01, 0x02, 0x20, 0x40
MSR_CTS, MSR_DSR, MSR_RI, MSR_DCD = 0x10, 0x20, 0x40, 0x80
MSR_TERI = 0x04

FIFO_DEPTH = 16
TRIGGER_LEVELS = (1, 4, 8, 14)
BAUD_BASE = 115200  # 1.8432 MHz / 16
# The other end is there and ready: carrier, data set ready, clear to send
CONNECTED = MSR_DCD | MSR_DSR | MSR_CTS


class Uart16550(Device):
    """`sink(bytes)` gets each transmitted byte; `receive(bytes)` queues input.

    `rts_flow_control`: the other end sends only while RTS is on. Linux flushes the receiver while it sets the
    port up and raises RTS afterwards, so input that was piped in before the boot arrives whole. Guests that
    never set RTS need it off.
    The interrupt is not gated by MCR.OUT2: many small kernels never set it, and emulators let them.
    """

    access_sizes = (1,)
    WINDOWS = ((0x3F8, 8, 0),)
    FIELDS = (
        "ier fcr lcr mcr lsr_errors msr_inputs msr_deltas scr divisor fifo backlog thre_pending "
        "timeout_at timed_out"
    ).split()

    def __init__(self, clock, irq, sink: Callable[[bytes], object], rts_flow_control: bool = False):
        self.clock = clock
        self.irq = irq
        self.sink = sink
        self.rts_flow_control = rts_flow_control
        self.backlog: list[int] = []
        self.scr = 0
        self.divisor = 1
        self.reset()

    def reset(self) -> None:
        """Master reset; SCR and the divisor latch keep their values, queued input stays queued."""
        self.ier = self.fcr = self.lcr = self.mcr = 0
        self.lsr_errors = 0
        self.msr_inputs = CONNECTED
        self.msr_deltas = 0
        self.fifo: list[int] = []
        self.thre_pending = False
        self.timeout_at: int | None = None
        self.timed_out = False
        self._set_timeout(None)
        self._feed()

    def after_load(self) -> None:
        self._set_timeout(self.timeout_at)
        self._update()

    def receive(self, data: bytes) -> None:
        """Queues bytes from the other end."""
        self.backlog.extend(data)
        self._feed()

    # registers

    def read(self, offset: int, size: int) -> int:
        if offset == LSR:
            value = LSR_THRE | LSR_TEMT | self.lsr_errors
            if self.fifo:
                value |= LSR_DR
            if self.lsr_errors:
                self.lsr_errors = 0
                self._update()
            return value
        if offset == RBR:
            if self.lcr & LCR_DLAB:
                return self.divisor & 0xFF
            return self._read_rbr()
        if offset == IER:
            return self.divisor >> 8 if self.lcr & LCR_DLAB else self.ier
        if offset == IIR:
            source = self._source()
            if source == IIR_THRE:
                self.thre_pending = False
                self._update()
            return source | (IIR_FIFO_ENABLED if self.fcr & FCR_ENABLE else 0)
        if offset == LCR:
            return self.lcr
        if offset == MCR:
            return self.mcr
        if offset == MSR:
            value = self._modem_inputs() | self.msr_deltas
            self.msr_deltas = 0
            self._update()
            return value
        return self.scr

    def write(self, offset: int, size: int, value: int) -> None:
        value &= 0xFF
        if offset == THR:
            if self.lcr & LCR_DLAB:
                self.divisor = (self.divisor & 0xFF00) | value
            else:
                self._transmit(value)
        elif offset == IER:
            if self.lcr & LCR_DLAB:
                self.divisor = (self.divisor & 0xFF) | value << 8
            else:
                # Switching ETBEI on while the transmitter is empty raises the interrupt: Linux tests for it.
                if value & ~self.ier & IER_ETBEI:
                    self.thre_pending = True
                self.ier = value & 0x0F
                self._update()
        elif offset == FCR:
            self._write_fcr(value)
        elif offset == LCR:
            self.lcr = value
        elif offset == MCR:
            before = self._modem_inputs()
            self.mcr = value & 0x1F
            self._note_deltas(before)
            self._feed()
        elif offset == SCR:
            self.scr = value
        # LSR and MSR are read-only here: their write access is for factory tests.

    def _read_rbr(self) -> int:
        if not self.fifo:
            return 0
        value = self.fifo.pop(0)
        self.timed_out = False
        self._set_timeout(None)
        self._feed()
        return value

    def _transmit(self, value: int) -> None:
        # The interrupt drops while THR holds the byte and rises when it left: an edge for each byte.
        self.thre_pending = False
        self._update()
        if self.mcr & MCR_LOOP:
            self._push(value)
        else:
            self.sink(bytes((value,)))
        self.thre_pending = True
        self._update()

    def _write_fcr(self, value: int) -> None:
        if (value ^ self.fcr) & FCR_ENABLE or value & FCR_CLEAR_RX:
            self.fifo = []
            self.timed_out = False
            self._set_timeout(None)
        if value & FCR_CLEAR_TX:
            self.thre_pending = True
        # The other bits can only be programmed together with the enable bit.
        self.fcr = value & FCR_KEPT if value & FCR_ENABLE else 0
        self._feed()

    # modem lines

    def _modem_inputs(self) -> int:
        if not self.mcr & MCR_LOOP:
            return self.msr_inputs
        mcr = self.mcr
        return (
            (MSR_CTS if mcr & MCR_RTS else 0)
            | (MSR_DSR if mcr & MCR_DTR else 0)
            | (MSR_RI if mcr & MCR_OUT1 else 0)
            | (MSR_DCD if mcr & MCR_OUT2 else 0)
        )

    def _note_deltas(self, before: int) -> None:
        after = self._modem_inputs()
        deltas = (before ^ after) >> 4
        if not (before & MSR_RI and not after & MSR_RI):
            deltas &= ~MSR_TERI  # RI reports its trailing edge only
        self.msr_deltas |= deltas

    # receiver

    def _depth(self) -> int:
        return FIFO_DEPTH if self.fcr & FCR_ENABLE else 1

    def _push(self, value: int) -> None:
        if len(self.fifo) >= self._depth():
            self.lsr_errors |= LSR_OE
            if not self.fcr & FCR_ENABLE:
                self.fifo[0] = value  # without FIFO, the newer byte wins
        else:
            self.fifo.append(value)
        self._after_receive()

    def _feed(self) -> None:
        open_for_input = not self.mcr & MCR_LOOP and (not self.rts_flow_control or self.mcr & MCR_RTS)
        if self.backlog and open_for_input:
            room = self._depth() - len(self.fifo)
            if room > 0:
                self.fifo.extend(self.backlog[:room])
                del self.backlog[:room]
        self._after_receive()

    def _after_receive(self) -> None:
        if self.fifo and self.fcr & FCR_ENABLE and not self.timed_out:
            if len(self.fifo) < self._trigger():
                self._set_timeout(self.clock.now + 4 * self._character_ns())
        self._update()

    def _trigger(self) -> int:
        return TRIGGER_LEVELS[self.fcr >> 6] if self.fcr & FCR_ENABLE else 1

    def _character_ns(self) -> int:
        lcr = self.lcr
        bits = 1 + 5 + (lcr & 3) + (1 if lcr & 8 else 0) + (2 if lcr & 4 else 1)
        return bits * (self.divisor or 0x10000) * NS_PER_SECOND // BAUD_BASE

    # interrupts

    def _source(self) -> int:
        """The IIR's source bits, in the data sheet's order of priority."""
        ier = self.ier
        if ier & IER_ELSI and self.lsr_errors:
            return IIR_LINE
        if ier & IER_ERBFI and self.fifo:
            if len(self.fifo) >= self._trigger():
                return IIR_DATA
            if self.timed_out:
                return IIR_TIMEOUT
        if ier & IER_ETBEI and self.thre_pending:
            return IIR_THRE
        if ier & IER_EDSSI and self.msr_deltas:
            return IIR_MODEM
        return IIR_NONE

    def _update(self) -> None:
        self.irq.set(self._source() != IIR_NONE)

    def _set_timeout(self, at: int | None) -> None:
        self.timeout_at = at
        self.clock.set_event(self, at, self.run_events)

    def next_event(self) -> int | None:
        return self.timeout_at

    def run_events(self, now: int) -> None:
        if self.timeout_at is not None and now >= self.timeout_at:
            self._set_timeout(None)
            self.timed_out = bool(self.fifo)
            self._update()

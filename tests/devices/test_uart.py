"""16550A against its data sheet and the probes of Linux's 8250 driver."""

import pytest

from vmx.devices import uart as u
from vmx.devices.bus import Line


@pytest.fixture
def setup(time):
    out, irq = bytearray(), Line()
    return u.Uart16550(time.clock, irq, out.extend), out, irq


def test_linux_autoconfig(setup):
    uart, _, _ = setup
    uart.write(u.IER, 1, 0)
    assert uart.read(u.IER, 1) == 0
    uart.write(u.IER, 1, 0xFF)
    assert uart.read(u.IER, 1) == 0x0F
    uart.write(u.IER, 1, 0)
    uart.write(u.MCR, 1, u.MCR_LOOP | 0x0A)
    assert uart.read(u.MSR, 1) & 0xF0 == 0x90
    uart.write(u.MCR, 1, 0)
    uart.write(u.FCR, 1, u.FCR_ENABLE)
    assert uart.read(u.IIR, 1) >> 6 == 3
    uart.write(u.SCR, 1, 0xA5)
    assert uart.read(u.SCR, 1) == 0xA5


def test_transmit_and_thre_interrupt(setup):
    uart, out, irq = setup
    edges = []
    irq.targets = (edges.append,)
    uart.write(u.IER, 1, u.IER_ETBEI)
    assert irq.level and uart.read(u.IIR, 1) == u.IIR_THRE
    assert not irq.level and uart.read(u.IIR, 1) == u.IIR_NONE
    uart.write(u.THR, 1, 0x41)
    uart.write(u.THR, 1, 0x42)
    assert out == b"AB" and edges == [True, False, True, False, True]
    # Linux's test for a lost THRE: switched off and on again it must interrupt again
    uart.read(u.IIR, 1)
    uart.write(u.IER, 1, 0), uart.write(u.IER, 1, u.IER_ETBEI)
    assert uart.read(u.IIR, 1) == u.IIR_THRE
    assert uart.read(u.LSR, 1) == u.LSR_THRE | u.LSR_TEMT


def test_receive_trigger_and_timeout(setup, time):
    uart, _, irq = setup
    uart.write(u.LCR, 1, 3)
    uart.write(u.FCR, 1, u.FCR_ENABLE | 0x80)  # trigger at 8
    uart.write(u.IER, 1, u.IER_ERBFI)
    uart.receive(b"abc")
    assert not irq.level and uart.read(u.LSR, 1) & u.LSR_DR
    # 8N1 at 115200: four characters of ten bits
    assert uart.next_event() == 4 * (10 * 1_000_000_000 // 115200)
    time.advance(400_000)
    assert irq.level and uart.read(u.IIR, 1) & 0xF == u.IIR_TIMEOUT
    assert uart.read(u.RBR, 1) == ord("a") and not irq.level
    uart.receive(b"0123456789" * 3)
    assert uart.read(u.IIR, 1) & 0xF == u.IIR_DATA
    received = bytes(uart.read(u.RBR, 1) for _ in range(32))
    assert received == b"bc" + b"0123456789" * 3 and not uart.read(u.LSR, 1) & u.LSR_DR


def test_rts_flow_control(time):
    uart = u.Uart16550(time.clock, Line(), lambda b: None, rts_flow_control=True)
    uart.receive(b"x")
    assert not uart.read(u.LSR, 1) & u.LSR_DR
    uart.write(u.FCR, 1, u.FCR_ENABLE | u.FCR_CLEAR_RX)
    uart.write(u.MCR, 1, u.MCR_RTS)
    assert uart.read(u.RBR, 1) == ord("x")


def test_loopback_overrun_and_line_status(setup):
    uart, out, irq = setup
    uart.write(u.MCR, 1, u.MCR_LOOP)
    uart.write(u.IER, 1, u.IER_ELSI)
    uart.write(u.THR, 1, 1), uart.write(u.THR, 1, 2)
    assert uart.read(u.IIR, 1) == u.IIR_LINE and irq.level
    assert uart.read(u.LSR, 1) & u.LSR_OE and not irq.level
    assert uart.read(u.RBR, 1) == 2 and out == b""

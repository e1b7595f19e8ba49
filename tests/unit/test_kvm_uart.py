"""The 16550A without a guest: registers, interrupts, both directions, and its saved state."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from vmm.errors import ConfigError, InternalError
from vmm.kvm_cffi import Uart

THR, IER, IIR, LCR, MCR, LSR, MSR, SCR = range(8)
FCR = IIR
RX, THRE, LINE, MODEM = 1, 2, 4, 8
DLAB = 0x80
LOOP = 0x10
NONE = 0xC1
"""IIR with nothing pending: bit 0, and the two FIFO bits."""


@pytest.fixture
def irq() -> Iterator[int]:
    fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    yield fd
    os.close(fd)


@pytest.fixture
def uart(irq: int) -> Iterator[Uart]:
    with Uart(irq, transmit_capacity=64) as made:
        yield made


def signals(fd: int) -> int:
    """Return how often an eventfd was signalled since the last look."""
    try:
        return os.eventfd_read(fd)
    except BlockingIOError:
        return 0


def test_reset_values_are_those_of_the_machine(uart: Uart) -> None:
    registers = [uart.read(at) for at in (IER, IIR, LCR, MCR, LSR, MSR, SCR)]
    uart.write(LCR, DLAB)

    assert registers == [0, NONE, 3, 0x08, 0x60, 0xB0, 0]
    assert (uart.read(THR), uart.read(IER)) == (12, 0)


def test_divisor_latch_hides_data_and_interrupt_registers(uart: Uart) -> None:
    uart.write(LCR, DLAB | 3)
    uart.write(THR, 0x34)
    uart.write(IER, 0x12)
    latch = uart.read(THR), uart.read(IER)
    uart.write(LCR, 3)

    assert latch == (0x34, 0x12)
    assert (uart.read(IER), uart.drain()) == (0, b"")


def test_registers_keep_only_the_bits_a_16550a_has(uart: Uart) -> None:
    for at in (IER, MCR, SCR, LCR):
        uart.write(at, 0x7F)

    assert [uart.read(at) for at in (IER, MCR, SCR, LCR)] == [0x0F, 0x1F, 0x7F, 0x7F]


def test_status_registers_cannot_be_written(uart: Uart) -> None:
    uart.write(LSR, 0)
    uart.write(MSR, 0)

    assert (uart.read(LSR), uart.read(MSR)) == (0x60, 0xB0)


@pytest.mark.parametrize("size", [2, 4, 8])
def test_wide_access_reads_ones_and_writes_nothing(uart: Uart, size: int) -> None:
    uart.write(THR, 0x41, size)

    assert uart.read(SCR, size) == (1 << 8 * size) - 1
    assert uart.drain() == b""


def test_linux_probe_finds_a_16550a(uart: Uart) -> None:
    """The steps by which Linux's 8250 driver tells the chips apart."""
    uart.write(IER, 0)
    none = uart.read(IER)
    uart.write(IER, 0x0F)
    all_ = uart.read(IER)
    uart.write(IER, 0)
    uart.write(MCR, LOOP | 0x0A)
    looped = (uart.read(MSR) or 0) & 0xF0
    uart.write(MCR, 0)
    uart.write(LCR, 0xBF)
    efr = uart.read(IIR)
    uart.write(LCR, 0)
    uart.write(FCR, 1)
    fifo = (uart.read(IIR) or 0) >> 6
    uart.write(FCR, 0x21)
    sixty_four = (uart.read(IIR) or 0) >> 5

    assert (none, all_, looped) == (0, 0x0F, 0x90)
    assert efr != 0
    assert fifo == 3
    assert sixty_four == 6


def test_linux_fifo_size_probe_counts_sixteen(uart: Uart) -> None:
    uart.write(FCR, 0x07)
    uart.write(MCR, LOOP)
    for at in range(256):
        uart.write(THR, at)

    received = []
    while uart.read(LSR, 1) & 1:  # type: ignore[operator]  # a UART always answers
        received.append(uart.read(THR))

    assert received == list(range(16))
    assert uart.drain() == b""


def test_output_is_collected_and_announced_once(uart: Uart) -> None:
    for byte in b"hello":
        uart.write(THR, byte)

    assert signals(uart.fd) == 1
    assert uart.drain() == b"hello"
    assert signals(uart.fd) == 0
    uart.write(THR, 0x21)
    assert signals(uart.fd) == 1


def test_thre_interrupt_is_raised_when_enabled_and_after_each_byte(uart: Uart, irq: int) -> None:
    uart.write(IER, THRE)
    on_enable = signals(irq)
    first, second = uart.read(IIR), uart.read(IIR)
    uart.write(THR, 0x41)

    assert on_enable == 1
    assert (first, second) == (0xC2, NONE)
    assert signals(irq) == 1
    assert uart.read(IIR) == 0xC2


def test_thre_interrupt_enabled_again_is_raised_again(uart: Uart, irq: int) -> None:
    uart.write(IER, THRE)
    uart.read(IIR)
    uart.write(IER, 0)
    signals(irq)

    uart.write(IER, THRE)

    assert signals(irq) == 1
    assert uart.read(IIR) == 0xC2


def test_transmitter_is_busy_before_the_queue_is_full_and_empty_when_drained(
    uart: Uart, irq: int
) -> None:
    uart.write(IER, THRE)
    written = 0
    while uart.read(LSR) == 0x60:
        for _ in range(16):  # a driver fills the FIFO after one look
            uart.write(THR, written % 256)
            written += 1
    busy = uart.read(LSR), uart.dropped
    signals(irq)
    uart.read(IIR)

    drained = uart.drain()

    assert busy == (0, 0)
    assert drained == bytes(range(written))
    assert signals(irq) == 1
    assert (uart.read(LSR), uart.read(IIR)) == (0x60, 0xC2)


def test_transmitter_busy_stays_busy_in_loopback(uart: Uart) -> None:
    for _ in range(49):
        uart.write(THR, 0x2E)
    uart.write(MCR, LOOP)

    uart.write(THR, 0x41)

    assert uart.read(LSR) == 0x01
    assert uart.drain() == b"." * 49
    assert uart.read(LSR) == 0x61


def test_byte_written_to_a_busy_transmitter_is_counted(uart: Uart) -> None:
    for _ in range(70):
        uart.write(THR, 0x2E)

    assert uart.dropped == 6
    assert uart.drain() == b"." * 64


def test_input_raises_an_interrupt_and_is_read_in_order(uart: Uart, irq: int) -> None:
    uart.write(IER, RX)

    taken = uart.receive(b"ab")

    assert taken == 2
    assert signals(irq) == 1
    assert uart.read(IIR) == 0xC4
    assert uart.read(LSR) == 0x61
    assert [uart.read(THR), uart.read(THR)] == [0x61, 0x62]
    assert (uart.read(LSR), uart.read(IIR)) == (0x60, NONE)


def test_input_before_the_interrupt_is_enabled_is_told_on_enabling(uart: Uart, irq: int) -> None:
    uart.receive(b"a")
    silent = signals(irq)

    uart.write(IER, RX)

    assert (silent, signals(irq)) == (0, 1)


def test_input_below_the_trigger_level_is_a_timeout(uart: Uart) -> None:
    uart.write(FCR, 0x81)  # FIFOs on, trigger at 8
    uart.write(IER, RX)

    uart.receive(b"1234567")
    below = uart.read(IIR)
    uart.receive(b"8")

    assert (below, uart.read(IIR)) == (0xCC, 0xC4)


def test_input_beyond_the_fifo_is_refused_until_there_is_room(uart: Uart) -> None:
    data = bytes(range(256)) * 2
    taken = uart.receive(data)
    early = signals(uart.room_fd)

    read = bytes(uart.read(THR) or 0 for _ in range(taken // 2))
    late = signals(uart.room_fd)

    assert 0 < taken < len(data)
    assert read == data[: taken // 2]
    assert (early, late) == (0, 1)
    assert uart.receive(data[taken:]) > 0


def test_input_is_discarded_by_the_fifo_clear_bit_and_room_is_told(uart: Uart) -> None:
    uart.receive(bytes(1000))

    uart.write(FCR, 0x03)

    assert uart.read(LSR) == 0x60
    assert signals(uart.room_fd) == 1


def test_input_in_loopback_waits_for_its_end(uart: Uart) -> None:
    uart.write(MCR, LOOP)
    during = uart.receive(b"x")

    uart.write(MCR, 0)

    assert during == 0
    assert signals(uart.room_fd) == 1
    assert uart.receive(b"x") == 1


def test_loopback_overrun_is_a_line_error_that_reading_clears(uart: Uart, irq: int) -> None:
    uart.write(IER, LINE)
    uart.write(MCR, LOOP)

    for _ in range(17):
        uart.write(THR, 0)

    assert signals(irq) == 1
    assert uart.read(IIR) == 0xC6
    assert (uart.read(LSR), uart.read(LSR)) == (0x63, 0x61)


def test_modem_lines_follow_the_outputs_in_loopback(uart: Uart, irq: int) -> None:
    uart.write(IER, MODEM)
    uart.write(MCR, LOOP | 0x0F)
    raised = signals(irq)
    rung = uart.read(MSR)
    uart.write(MCR, LOOP | 0x0B)  # the ring ends

    assert raised == 0  # carrier, set ready and clear to send were there already
    assert rung == 0xF0
    assert signals(irq) == 1
    assert uart.read(IIR) == 0xC0
    assert (uart.read(MSR), uart.read(MSR)) == (0xB4, 0xB0)


def test_saved_state_loaded_elsewhere_is_the_same(uart: Uart, irq: int) -> None:
    uart.write(IER, RX | THRE)
    uart.write(FCR, 0x81)
    uart.write(SCR, 0x5A)
    uart.receive(b"typed")
    uart.write(THR, 0x6F)
    saved = uart.save()
    signals(irq)

    with Uart(irq, transmit_capacity=64) as other:
        other.load(saved)

        assert other.save() == saved == uart.save()
        assert signals(irq) == 1
        assert signals(other.fd) == 1
        assert (other.drain(), other.read(THR)) == (b"o", ord("t"))


def test_saved_state_too_long_is_refused(uart: Uart) -> None:
    saved = uart.save()

    with pytest.raises(ConfigError, match="at most 64 and 256"):
        uart.load(saved._replace(transmit=bytes(65)))
    with pytest.raises(ConfigError, match="lcr is 256"):
        uart.load(saved._replace(lcr=256))
    assert uart.save() == saved


def test_closed_uart_signals_nobody_and_keeps_its_output(irq: int) -> None:
    uart = Uart(irq)
    uart.write(IER, THRE)
    signals(irq)
    uart.close()
    uart.close()

    uart.write(THR, 0x41)

    assert signals(irq) == 0
    assert uart.drain() == b"A"


def test_transmit_queue_shorter_than_two_fifos_is_refused(irq: int) -> None:
    with pytest.raises(InternalError, match="32 or more"):
        Uart(irq, transmit_capacity=31)

"""The serial port with the UART that guests get, its registers accessed as a vCPU would."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import trio
import trio.testing

from vmm.kvm_cffi import ByteRing, Uart
from vmm.legacy import debug_console
from vmm.legacy.debug_console import DebugConsole
from vmm.legacy.serial import Serial
from vmm.testing.backends import MemoryConsole

DATA = 0
LINE_STATUS = 5
DATA_READY = 0x01
TRANSMITTER_EMPTY = 0x20


@pytest.fixture
def uart() -> Iterator[Uart]:
    irq = os.eventfd(0, os.EFD_NONBLOCK)
    with Uart(irq, transmit_capacity=64) as made:
        yield made
    os.close(irq)


def print_while_ready(uart: Uart, text: bytes) -> bytes:
    """Print as a polling guest does; return what the transmitter was too busy for."""
    for at, byte in enumerate(text):
        if not (uart.read(LINE_STATUS) or 0) & TRANSMITTER_EMPTY:
            return text[at:]
        uart.write(DATA, byte)
    return b""


async def test_serial_guest_that_prints_more_than_the_queue_holds_loses_nothing(
    uart: Uart,
) -> None:
    text = bytes(range(256)) * 8
    backend = MemoryConsole()
    async with trio.open_nursery() as nursery:
        await nursery.start(Serial(uart, backend).run)
        rest = text
        while rest := print_while_ready(uart, rest):
            await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()

    assert backend.written == text


async def test_serial_long_input_reaches_a_guest_that_reads_late(uart: Uart) -> None:
    typed = bytes(range(256)) * 8
    backend = MemoryConsole()
    heard = bytearray()
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            await nursery.start(Serial(uart, backend).run)
            await backend.type.send(typed)
            while len(heard) < len(typed):
                await trio.testing.wait_all_tasks_blocked()
                while (uart.read(LINE_STATUS) or 0) & DATA_READY:
                    heard.append(uart.read(DATA) or 0)
            nursery.cancel_scope.cancel()

    assert bytes(heard) == typed


async def test_debug_console_ring_reaches_the_backend() -> None:
    backend = MemoryConsole()
    with ByteRing(debug_console.READ_VALUE) as ring:
        async with trio.open_nursery() as nursery:
            await nursery.start(DebugConsole(ring, backend).run)
            for byte in b"early firmware":
                ring.write(0, byte)
            await trio.testing.wait_all_tasks_blocked()
            ring.write(0, ord("!"))
            nursery.cancel_scope.cancel()
        seen_by_guest = ring.read(0)

    assert backend.written == b"early firmware!"
    assert seen_by_guest == 0xFF

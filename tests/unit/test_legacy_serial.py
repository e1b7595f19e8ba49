"""The loop's half of the serial port and of the byte ports."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import trio
import trio.testing

from vmm.kvm_cffi import UartState
from vmm.legacy.debug_console import DebugConsole
from vmm.legacy.output import FLUSH_SECONDS
from vmm.legacy.serial import Serial
from vmm.testing.backends import MemoryConsole


class FakeUart:
    """A UART as C has it, less the guest: ``guest_writes`` and ``guest_reads`` are the guest."""

    def __init__(self, room: int = 4) -> None:
        self.fd = os.eventfd(0, os.EFD_NONBLOCK)
        self.room_fd = os.eventfd(0, os.EFD_NONBLOCK)
        self._output = b""
        self._input = b""
        self._room = room

    def guest_writes(self, data: bytes) -> None:
        self._output += data
        os.eventfd_write(self.fd, 1)

    def guest_reads(self) -> bytes:
        taken, self._input = self._input, b""
        os.eventfd_write(self.room_fd, 1)
        return taken

    def drain(self) -> bytes:
        taken, self._output = self._output, b""
        return taken

    def save(self) -> UartState:
        raise NotImplementedError("C has the registers")

    def load(self, saved: UartState) -> None:
        raise NotImplementedError("C has the registers")

    def receive(self, data: bytes) -> int:
        accepted = data[: self._room - len(self._input)]
        self._input += accepted
        return len(accepted)


@pytest.fixture
def uart() -> Iterator[FakeUart]:
    made = FakeUart()
    yield made
    os.close(made.fd)
    os.close(made.room_fd)


async def test_serial_output_reaches_the_backend_in_order(
    uart: FakeUart, nursery: trio.Nursery
) -> None:
    backend = MemoryConsole()
    await nursery.start(Serial(uart, backend).run)

    uart.guest_writes(b"one ")
    await trio.testing.wait_all_tasks_blocked()
    uart.guest_writes(b"two ")
    uart.guest_writes(b"three")
    await trio.testing.wait_all_tasks_blocked()

    assert backend.written == b"one two three"


async def test_serial_input_waits_for_room(uart: FakeUart, nursery: trio.Nursery) -> None:
    backend = MemoryConsole()
    await nursery.start(Serial(uart, backend).run)
    heard = []

    backend.type.send_nowait(b"0123456789")
    backend.type.send_nowait(b"ab")
    for _ in range(4):
        await trio.testing.wait_all_tasks_blocked()
        heard.append(uart.guest_reads())

    assert heard == [b"0123", b"4567", b"89ab", b""] or heard == [b"0123", b"4567", b"89", b"ab"]


async def test_serial_cancelled_still_hands_over_the_last_output(uart: FakeUart) -> None:
    backend = MemoryConsole()
    async with trio.open_nursery() as nursery:
        await nursery.start(Serial(uart, backend).run)
        uart.guest_writes(b"Kernel panic")
        nursery.cancel_scope.cancel()

    assert backend.written == b"Kernel panic"


async def test_serial_cancelled_with_a_stalled_backend_ends_in_time(
    uart: FakeUart, autojump_clock: trio.testing.MockClock
) -> None:
    backend = MemoryConsole()
    backend.is_stalled = True
    async with trio.open_nursery() as nursery:
        await nursery.start(Serial(uart, backend).run)
        uart.guest_writes(b"one")
        await trio.testing.wait_all_tasks_blocked()
        uart.guest_writes(b"two")
        nursery.cancel_scope.cancel()

    assert backend.written == b"onetwo"
    assert trio.current_time() == FLUSH_SECONDS


async def test_debug_console_output_reaches_the_backend_also_at_the_end(uart: FakeUart) -> None:
    backend = MemoryConsole()
    async with trio.open_nursery() as nursery:
        await nursery.start(DebugConsole(uart, backend).run)
        uart.guest_writes(b"firmware ")
        await trio.testing.wait_all_tasks_blocked()
        uart.guest_writes(b"log")
        nursery.cancel_scope.cancel()

    assert backend.written == b"firmware log"

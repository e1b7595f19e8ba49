"""The first serial port: COM1, a 16550A whose registers C answers in the vCPU's thread.

Ports 0x3F8 to 0x3FF, IRQ 4. Here is what needs the loop: bytes between the UART and a console.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn, Protocol

import trio

from vmm.console.backend import Backend
from vmm.kvm_cffi.uart import UartState
from vmm.legacy.output import OutputRing, run_output, wait_event

if TYPE_CHECKING:
    from vmm.legacy.saved import SavedUart

PORT = 0x3F8
PORTS = 8
IRQ = 4


class Uart(OutputRing, Protocol):
    """The UART as its host side sees it."""

    @property
    def room_fd(self) -> int:
        """An eventfd, readable when the guest has made room for input."""

    def save(self) -> UartState:
        """Give all that it holds."""

    def load(self, saved: UartState) -> None:
        """Take over what ``save`` gave. Raises: ConfigError (caller)."""

    def receive(self, data: bytes) -> int:
        """Give the guest input; return how many bytes there was room for."""


class Serial:
    """A serial port with a console on it."""

    def __init__(self, uart: Uart, backend: Backend) -> None:
        self._uart = uart
        self._backend = backend

    def save(self) -> SavedUart:
        """Give what a snapshot keeps."""
        from vmm.legacy.saved import SavedUart  # Only now: most VMs never are.

        return SavedUart(**self._uart.save()._asdict())

    def load(self, state: SavedUart) -> None:
        """Take over what a snapshot kept. Raises: ConfigError when it cannot be (caller)."""
        self._uart.load(UartState(**state.model_dump()))

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Move bytes both ways, for ever.

        Cancel: the guest's output so far still reaches the back end, for a bounded time.
        """
        async with trio.open_nursery() as nursery:
            await nursery.start(run_output, self._uart, self._backend)
            nursery.start_soon(self._feed)
            task_status.started()

    async def _feed(self) -> NoReturn:
        while True:
            keys = await self._backend.read()
            while keys := keys[self._uart.receive(keys) :]:
                await wait_event(self._uart.room_fd)

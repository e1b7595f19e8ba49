"""From a device's output ring, which C fills while the guest runs, to a console's back end."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import NoReturn, Protocol

import trio

from vmm.console.backend import Backend

FLUSH_SECONDS = 1.0


class OutputRing(Protocol):
    """What a UART or a byte port offers: an event descriptor, and all bytes since last asked."""

    @property
    def fd(self) -> int:
        """An eventfd, readable when there is output."""

    def drain(self) -> bytes:
        """Take all output there is."""


class OutputPort:
    """A port whose bytes go to a console as they are."""

    def __init__(self, ring: OutputRing, backend: Backend) -> None:
        self._ring = ring
        self._backend = backend

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Hand on what the guest writes, for ever.

        Cancel: the output so far still reaches the back end, for a bounded time.
        """
        await run_output(self._ring, self._backend, task_status=task_status)


async def run_output(
    ring: OutputRing,
    backend: Backend,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> NoReturn:
    """Hand on what the guest writes, for ever.

    While the back end waits the guest goes on: the ring fills, and decides what becomes of more.

    Cancel: what the guest has written by then is handed on first, for a bounded time.
    """
    task_status.started()
    try:
        while True:
            await wait_event(ring.fd)
            await backend.write(ring.drain())
    finally:
        # The last lines say why a guest died. A back end that is stalled does not get to hold up
        # the VM's end: the deadline bounds the wait.
        with trio.move_on_after(FLUSH_SECONDS, shield=True):
            await backend.write(ring.drain())


async def wait_event(fd: int) -> None:
    """Wait until an eventfd was written, and reset it."""
    await trio.lowlevel.wait_readable(fd)
    # Whoever else resets it may have been first.
    with suppress(BlockingIOError):
        os.eventfd_read(fd)

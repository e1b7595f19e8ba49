"""The back end of mode Pty: a new pseudo-terminal whose slave anybody may open, leave and reopen.

The kernel reports on the master that the slave was closed (a hang-up), but not that it was opened,
so while nobody has it open the master is asked at intervals. Output is kept meanwhile (the newest
mebibyte) and given to whoever opens the slave next. A change of the window's size is reported to
the slave's side only, so while somebody has it open the size is asked for.
"""

from __future__ import annotations

import os
import select
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import NoReturn

import trio

from vmm.console.backend import WindowSize
from vmm.console.outbox import Outbox
from vmm.console.terminal import make_raw, window_size
from vmm.errors import HostError

POLL_SECONDS = 0.25
SIZE_POLL_SECONDS = 0.5
READ_BYTES = 4096


class _SlaveClosedError(Exception):
    """Nobody has the slave open any more."""


class PtyBackend:
    """A console on the master side of a pty."""

    def __init__(self, master: int, path: str) -> None:
        self._master = master
        self._path = path
        self._outbox = Outbox()
        self._opened = trio.Event()
        self._reader = trio.CancelScope()
        self._poll = select.poll()
        self._poll.register(master, 0)

    @property
    def path(self) -> str:
        """The slave's path."""
        return self._path

    @property
    def size(self) -> WindowSize | None:
        """The size that a terminal program gave the slave."""
        return window_size(self._master)

    async def write(self, data: bytes) -> None:
        """Write to the slave, or keep it until the slave is opened."""
        await self._outbox.put(data)

    async def read(self) -> bytes:
        """Wait for what is written into the slave."""
        while True:
            await self._opened.wait()
            await trio.lowlevel.wait_readable(self._master)
            try:
                return os.read(self._master, READ_BYTES)
            except BlockingIOError:
                continue
            except OSError:
                # EIO: everything was read and the slave is closed.
                self._opened = trio.Event()
                self._reader.cancel()

    async def watch_size(self, changed: Callable[[], None]) -> NoReturn:
        """Compare the size with the last one, at intervals."""
        known = self.size
        while True:
            await self._opened.wait()
            await trio.sleep(SIZE_POLL_SECONDS)
            if self.size != known:
                known = self.size
                changed()

    async def run(self) -> None:
        """Serve one opener of the slave after the other, for ever."""
        while True:
            while self._is_hung_up():  # noqa: ASYNC110  the kernel reports no opening
                await trio.sleep(POLL_SECONDS)
            self._opened.set()
            with suppress(_SlaveClosedError), trio.CancelScope() as self._reader:
                await self._outbox.deliver(self._send)

    async def _send(self, data: bytes) -> int:
        while True:
            # Asked each time: the kernel takes some kilobytes for a slave that nobody has open.
            if self._is_hung_up():
                raise _SlaveClosedError
            try:
                return os.write(self._master, data)
            except BlockingIOError:
                await trio.lowlevel.wait_writable(self._master)
            except OSError as error:
                raise _SlaveClosedError from error

    def _is_hung_up(self) -> bool:
        return any(events & select.POLLHUP for _, events in self._poll.poll(0))


@asynccontextmanager
async def open_pty(name: str) -> AsyncIterator[PtyBackend]:
    """Make a pty in raw mode and serve it. ``name`` is the console's, for messages.

    Raises: HostError when the host has no pty left.
    """
    try:
        master, slave = os.openpty()
    except OSError as error:
        raise HostError.from_os_error(
            "openpty", error, hint=f"free a pty or choose another mode for the {name}"
        ) from error
    try:
        try:
            os.set_blocking(master, False)
            make_raw(slave)
            path = os.ttyname(slave)
        finally:
            # From here on the master hangs up until somebody else opens the slave.
            os.close(slave)
        backend = PtyBackend(master, path)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(backend.run)
            yield backend
            nursery.cancel_scope.cancel()
    finally:
        trio.lowlevel.notify_closing(master)
        os.close(master)

"""The back end of mode Socket: a unix socket with one client at a time.

While no client is connected the newest mebibyte of output is kept, and whoever connects next gets
it first. A newer client replaces an older one, whose connection is closed.
"""

from __future__ import annotations

import logging
import select
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, NoReturn

import trio

from vmm.console.outbox import Outbox
from vmm.listener import listening

if TYPE_CHECKING:
    from trio.socket import SocketType

logger = logging.getLogger(__name__)

READ_BYTES = 4096
ACCEPT_RETRY_SECONDS = 1.0


class SocketBackend:
    """A console on a listening unix socket. ``name`` is the console's, for the log."""

    path = None
    size = None

    def __init__(self, listener: SocketType, name: str) -> None:
        self._listener = listener
        self._name = name
        self._outbox = Outbox()
        self._client: SocketType | None = None
        self._is_speaking = False
        self._connected = trio.Event()

    async def write(self, data: bytes) -> None:
        """Send to the client, or keep it for the next one."""
        await self._outbox.put(data)

    async def read(self) -> bytes:
        """Wait for what the client sends, or the next one, or the one that replaces it."""
        while True:
            client = self._client
            if client is None or not self._is_speaking:
                await self._connected.wait()
                continue
            try:
                data = await client.recv(READ_BYTES)
            except (OSError, trio.ClosedResourceError):
                self._forget(client)
                continue
            if data:
                return data
            self._hear_end(client)

    async def watch_size(self, changed: Callable[[], None]) -> NoReturn:
        """Wait for ever: a socket has no size."""
        await trio.sleep_forever()

    async def run(self) -> None:
        """Accept clients and send them the output, for ever."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._accept_clients)
            while True:
                client = self._client
                if client is None:
                    await self._connected.wait()
                    continue
                try:
                    await self._outbox.deliver(client.send)
                except (OSError, trio.ClosedResourceError):
                    self._forget(client)

    def close(self) -> None:
        """Close the client's connection."""
        if self._client is not None:
            self._client.close()
            self._client = None

    async def _accept_clients(self) -> None:
        while True:
            try:
                client, _ = await self._listener.accept()
            except OSError as error:
                # The client left already, or the host is out of descriptors or memory.
                logger.warning("The %s cannot accept a client: %s", self._name, error.strerror)
                await trio.sleep(ACCEPT_RETRY_SECONDS)
                continue
            # Closing the older one ends the waits on it, and those tasks find the newer.
            self.close()
            self._client = client
            self._is_speaking = True
            self._connected.set()
            self._connected = trio.Event()

    def _hear_end(self, client: SocketType) -> None:
        """A client that says no more may still listen; one that is gone has hung up."""
        poll = select.poll()
        poll.register(client, 0)
        if any(events & select.POLLHUP for _, events in poll.poll(0)):
            self._forget(client)
        elif client is self._client:
            self._is_speaking = False

    def _forget(self, client: SocketType) -> None:
        if client is self._client:
            self.close()


@asynccontextmanager
async def open_socket(path: str, name: str) -> AsyncIterator[SocketBackend]:
    """Bind the socket and serve it; its file is removed at the end.

    ``name`` is the console's, for messages. The file is created with the process's umask.

    Raises: HostError with the path when it is taken, too long, or cannot be created.
    """
    with listening(path, name) as listener:
        backend = SocketBackend(trio.socket.from_stdlib_socket(listener), name)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(backend.run)
                yield backend
                nursery.cancel_scope.cancel()
        finally:
            backend.close()
            trio.lowlevel.notify_closing(listener)

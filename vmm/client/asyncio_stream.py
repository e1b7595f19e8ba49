"""A connection under asyncio."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from vmm.client.errors import connecting
from vmm.client.http import READ_SIZE
from vmm.client.streams import rights


@asynccontextmanager
async def connect(path: str) -> AsyncIterator[AsyncioStream]:
    """Connect to the socket at ``path``, until the end of the block. Raises: ConnectError."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.setblocking(False)
        with connecting(path):
            await asyncio.get_running_loop().sock_connect(connection, path)
        yield AsyncioStream(connection)


class AsyncioStream:
    """A connected socket that the running event loop waits for."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._loop = asyncio.get_running_loop()

    async def send(self, data: bytes, descriptors: Sequence[int]) -> None:
        # A new connection has room for the first bytes, so asyncio needs no sendmsg to wait with.
        sent = self._connection.sendmsg([data], rights(descriptors)) if descriptors else 0
        await self._loop.sock_sendall(self._connection, data[sent:])

    async def receive(self) -> bytes:
        return await self._loop.sock_recv(self._connection, READ_SIZE)

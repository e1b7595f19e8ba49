"""A connection under trio."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import trio

from vmm.client.errors import connecting
from vmm.client.http import READ_SIZE
from vmm.client.streams import rights


@asynccontextmanager
async def connect(path: str) -> AsyncIterator[TrioStream]:
    """Connect to the socket at ``path``, until the end of the block. Raises: ConnectError."""
    with trio.socket.socket(socket.AF_UNIX) as connection:
        with connecting(path):
            await connection.connect(path)
        yield TrioStream(connection)


class TrioStream:
    """A connected socket of trio."""

    def __init__(self, connection: trio.socket.SocketType) -> None:
        self._connection = connection

    async def send(self, data: bytes, descriptors: Sequence[int]) -> None:
        sent = await self._connection.sendmsg([data], rights(descriptors))
        while sent < len(data):
            sent += await self._connection.send(data[sent:])

    async def receive(self) -> bytes:
        return await self._connection.recv(READ_SIZE)

"""A small HTTP client for a VMM's API socket, for tests: one connection, JSON in and out.

Every reply is held against the API document: an undocumented status or field fails the test.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import cache

import trio

from vmm.client.http import READ_SIZE, Conversation, Reply
from vmm.testing.schema import Document

__all__ = ["ApiConnection", "Reply"]


class ApiConnection:
    """One keep-alive connection to a VMM."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self._conversation = Conversation()

    @classmethod
    @asynccontextmanager
    async def open(cls, path: str) -> AsyncIterator[ApiConnection]:
        """Connect to the socket at ``path``. Raises: OSError."""
        stream = await trio.open_unix_socket(path)
        async with stream:
            yield cls(stream)

    async def get(self, name: str) -> Reply:
        """GET /api/v1/``name``."""
        return await self.request("GET", name)

    async def put(self, name: str, body: object = None) -> Reply:
        """PUT /api/v1/``name``, with a JSON body unless it is None."""
        return await self.request("PUT", name, body)

    async def request(self, method: str, name: str, body: object = None) -> Reply:
        """Send one request and wait for its reply.

        Raises: AssertionError for a reply that the document does not describe.
        """
        data = None if body is None else json.dumps(body).encode()
        await self._stream.send_all(self._conversation.ask(method, f"/{name}", data))
        while True:
            reply = self._conversation.hear(await self._stream.receive_some(READ_SIZE))
            if reply is not None:
                _check(method, f"/{name}", reply)
                return reply


def _check(method: str, path: str, reply: Reply) -> None:
    """Hold a reply against the document. Raises: AssertionError with all that is wrong."""
    body = reply.json if reply.body else None
    faults = list(_document().answer_faults(method, path, reply.status, body))
    assert not faults, "; ".join(faults)


@cache
def _document() -> Document:
    # Here, as it imports the whole API: who only opens a connection starts without it.
    from vmm.api.openapi import document

    return Document(document())

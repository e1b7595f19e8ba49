"""A small HTTP client for a VMM's API socket, for tests: one connection, JSON in and out."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import h11
import trio

READ_SIZE = 65536


@dataclass(frozen=True, slots=True)
class Reply:
    """What the server answered: status code, headers by lower-case name, raw body."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:  # noqa: ANN401  whatever the server sent
        """The body as JSON. Raises: ValueError when it is none."""
        return json.loads(self.body)


class ApiConnection:
    """One keep-alive connection to a VMM."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self._http = h11.Connection(h11.CLIENT)

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
        """Send one request and wait for its reply."""
        data = b"" if body is None else json.dumps(body).encode()
        headers = [("Host", "localhost"), ("Accept", "*/*")]
        if body is not None:
            headers += [("Content-Type", "application/json"), ("Content-Length", str(len(data)))]
        await self._send(
            h11.Request(method=method, target=f"/api/v1/{name}", headers=headers),
            *([h11.Data(data=data)] if data else []),
            h11.EndOfMessage(),
        )
        reply = await self._receive()
        self._http.start_next_cycle()
        return reply

    async def _send(self, *events: h11.Event) -> None:
        await self._stream.send_all(b"".join(self._http.send(event) or b"" for event in events))

    async def _receive(self) -> Reply:
        status, headers, body = 0, {}, b""
        while True:
            event = self._http.next_event()
            if event is h11.NEED_DATA:
                self._http.receive_data(await self._stream.receive_some(READ_SIZE))
            elif isinstance(event, h11.Response):
                status = event.status_code
                headers = {name.decode(): value.decode() for name, value in event.headers}
            elif isinstance(event, h11.Data):
                body += bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                return Reply(status, headers, body)
            elif isinstance(event, h11.ConnectionClosed):
                raise ConnectionResetError("The VMM closed the connection without an answer")

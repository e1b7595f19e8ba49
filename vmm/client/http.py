"""HTTP/1.1 as a client of the API speaks it, on h11. Sans-I/O.

Spec: RFC 9112; Cloud Hypervisor API, transport: what ch-remote sends.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import h11

from vmm.client.errors import NoVmmError

PREFIX = "/api/v1"
READ_SIZE = 65536
"""Bytes that a transport should ask for at once."""


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


class Conversation:
    """Requests and replies, in turn, on one connection."""

    def __init__(self) -> None:
        self._http = h11.Connection(h11.CLIENT)
        self._head: h11.Response | None = None
        self._body = bytearray()

    def ask(self, method: str, path: str, body: bytes | None = None) -> bytes:
        """Give the bytes that send a request; ``path`` is below ``/api/v1``."""
        headers = [("Host", "localhost"), ("Accept", "*/*")]
        if body is not None:
            headers += [("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
        events: list[h11.Event] = [
            h11.Request(method=method, target=f"{PREFIX}{path}", headers=headers)
        ]
        if body:
            events.append(h11.Data(data=body))
        events.append(h11.EndOfMessage())
        return b"".join(self._http.send(event) or b"" for event in events)

    def hear(self, data: bytes) -> Reply | None:
        """Take what was received, empty at its end; give the reply once it is whole.

        Raises: NoVmmError (peer) for what is not HTTP, or no whole reply.
        """
        try:
            self._http.receive_data(data)
            return self._read()
        except h11.RemoteProtocolError as error:
            if not data:
                raise NoVmmError("The VMM closed the connection before it had answered") from error
            raise NoVmmError(f"This is no VMM, its answer is not HTTP: {error}") from error

    def _read(self) -> Reply | None:
        while (event := self._http.next_event()) not in (h11.NEED_DATA, h11.PAUSED):
            if isinstance(event, h11.Response):
                self._head = event
            elif isinstance(event, h11.Data):
                self._body += event.data
            elif isinstance(event, h11.EndOfMessage):
                return self._end()
            elif isinstance(event, h11.ConnectionClosed):
                raise NoVmmError("The VMM closed the connection before it had answered")
        return None

    def _end(self) -> Reply:
        assert self._head is not None  # h11 gives an end only after a head.
        headers = {name.decode(): value.decode() for name, value in self._head.headers}
        reply = Reply(self._head.status_code, headers, bytes(self._body))
        self._head, self._body = None, bytearray()
        if self._http.their_state is h11.DONE:
            self._http.start_next_cycle()
        return reply

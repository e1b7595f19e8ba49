"""One client's connection: Hypercorn's protocol between a socket and the application."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, cast

import trio
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.typing import ConnectionState

if TYPE_CHECKING:
    from collections.abc import Callable

    from hypercorn.config import Config
    from hypercorn.trio.worker_context import WorkerContext
    from hypercorn.typing import (
        ASGIFramework,
        ASGIReceiveCallable,
        ASGISendCallable,
        ASGISendEvent,
        Scope,
    )

logger = logging.getLogger(__name__)


class Connection:
    """Stands on both sides of Hypercorn: below as the stream, above as the application.

    As the stream it ends all tasks of the connection when either side closes it: Hypercorn's own
    wait for the end of the server or of a timeout that is not wanted here. It has no ``send_eof``,
    which Hypercorn then leaves out: closing does the same and cannot meet an answer half sent.
    """

    def __init__(self, app: ASGIFramework, stream: trio.SocketStream) -> None:
        self.is_answering = False
        self.socket = stream.socket
        self._app = app
        self._stream = stream
        self._scope = trio.CancelScope()

    async def run(self, config: Config, context: WorkerContext) -> None:
        """Serve the client until it leaves.

        Cancel: what the client asked for is carried out all the same; it hears nothing of it.
        """
        # The annotation knows TLS only; a plain stream is told apart by the handshake it lacks.
        stream = cast("trio.SSLStream[trio.SocketStream]", self)
        try:
            with self._scope:
                await TCPServer(self, config, context, ConnectionState({}), stream).run()
        except* Exception as errors:
            # Whatever Hypercorn made of this client's bytes is between the two of them. Without
            # this, one malformed or badly timed request would end the VM.
            logger.warning("The connection to a client was cut", exc_info=errors)

    def close(self) -> None:
        """Close the socket now; this also ends a send that is shielded from cancellation."""
        self.socket.close()

    async def receive_some(self, max_bytes: int) -> bytes | bytearray:
        """Read from the client."""
        data: bytes | bytearray = b""
        try:
            data = await self._stream.receive_some(max_bytes)
        finally:
            if not data:
                self._scope.cancel()
        return data

    async def send_all(self, data: bytes) -> None:
        """Write to the client."""
        try:
            await self._stream.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self._scope.cancel()
            raise

    async def aclose(self) -> None:
        """Close the socket."""
        await self._stream.aclose()

    async def __call__(
        self,
        scope: Scope,
        receive: ASGIReceiveCallable,
        send: ASGISendCallable,
        sync_spawn: Callable[..., object],
        call_soon: Callable[..., object],
    ) -> None:
        """Answer one request."""
        self.is_answering = True
        if scope["type"] == "http":
            scope["path"] = _without_authority(scope["path"])
            if scope["http_version"] != "2":  # RFC 9113, 8.2: there, names are lower case.
                send = _with_title_case(send)
        try:
            await self._app(scope, receive, send)
        finally:
            self.is_answering = False


def _without_authority(path: str) -> str:
    """Reduce a request's target, in whichever form of RFC 9112, 3.2, to a path from the root."""
    if path.startswith("/"):
        return path
    return "/" + path.partition("://")[2].partition("/")[2]


def _with_title_case(send: ASGISendCallable) -> ASGISendCallable:
    """Spell header names as in ``Content-Length``, which some clients look for to the letter."""

    async def send_titled(event: ASGISendEvent) -> None:
        if event["type"] == "http.response.start":
            headers = [(name.title(), value) for name, value in event["headers"]]
            event = {**event, "headers": headers}
        await send(event)

    return send_titled

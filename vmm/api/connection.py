"""One client's connection: Hypercorn's protocol between a socket and the application."""

from __future__ import annotations

import logging
import socket
from typing import TYPE_CHECKING, cast

import trio
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.typing import ConnectionState

from vmm.api.descriptors import ANCILLARY_BYTES, Descriptors

if TYPE_CHECKING:
    from collections.abc import Callable

    from hypercorn.config import Config
    from hypercorn.trio.worker_context import WorkerContext
    from hypercorn.typing import (
        ASGIFramework,
        ASGIReceiveCallable,
        ASGIReceiveEvent,
        ASGISendCallable,
        ASGISendEvent,
        Scope,
    )

logger = logging.getLogger(__name__)

BODY_REST_S = 5
"""Seconds that a client has to end a body that nobody wants, before the answer is sent anyway."""


class Connection:
    """Stands on both sides of Hypercorn: below as the stream, above as the application.

    As the stream it ends all tasks of the connection when either side closes it: Hypercorn's own
    wait for the end of the server or of a timeout that is not wanted here. It has no ``send_eof``,
    which Hypercorn then leaves out: closing does the same and cannot meet an answer half sent.
    """

    def __init__(self, app: ASGIFramework, stream: trio.SocketStream) -> None:
        self.socket = stream.socket
        self._app = app
        self._stream = stream
        self._scope = trio.CancelScope()
        self._descriptors = Descriptors()
        self._is_answering = False
        self._is_ending = False

    async def run(self, config: Config, context: WorkerContext) -> None:
        """Serve the client until it leaves.

        Cancel: what the client asked for is carried out all the same; it hears nothing of it.
        """
        # The annotation knows TLS only; a plain stream is told apart by the handshake it lacks.
        stream = cast("trio.SSLStream[trio.SocketStream]", self)
        try:
            with self._scope:
                # Shown to the application in the scope of each request.
                state = ConnectionState({"descriptors": self._descriptors})
                await TCPServer(self, config, context, state, stream).run()
        except* Exception as errors:
            # Whatever Hypercorn made of this client's bytes is between the two of them. Without
            # this, one malformed or badly timed request would end the VM.
            logger.warning("The connection to a client was cut", exc_info=errors)
        finally:
            self._descriptors.close()

    def end(self) -> None:
        """Close as soon as no request is being answered."""
        self._is_ending = True
        if not self._is_answering:
            self.close()

    def close(self) -> None:
        """Close the socket now; this also ends a send that is shielded from cancellation."""
        self.socket.close()

    async def receive_some(self, max_bytes: int) -> bytes | bytearray:
        """Read from the client; descriptors that it sends are kept for its request."""
        data = b""
        try:
            data, ancillary, flags, _ = await self.socket.recvmsg(
                max_bytes, ANCILLARY_BYTES, socket.MSG_CMSG_CLOEXEC
            )
            self._descriptors.receive(ancillary, flags)
        except OSError as error:
            raise trio.BrokenResourceError from error
        finally:
            if not data:
                self._scope.cancel()
        return data

    async def send_all(self, data: bytes) -> None:
        """Write to the client."""
        if not data:
            return  # Hypercorn ends every answer with one of these.
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
        self._is_answering = True
        if scope["type"] == "http":
            scope["path"] = _without_authority(scope["path"])
        # RFC 9113, 8.2: the names of HTTP/2 are lower case.
        is_titled = scope.get("http_version") != "2"
        exchange = _Exchange(receive, send, self._descriptors.close, is_titled=is_titled)
        try:
            await self._app(scope, exchange.receive, exchange.send)
        finally:
            self._is_answering = False
            exchange.finish()
            if self._is_ending:
                self.close()


def _without_authority(path: str) -> str:
    """Reduce a request's target, in whichever form of RFC 9112, 3.2, to a path from the root."""
    if path.startswith("/"):
        return path
    return "/" + path.partition("://")[2].partition("/")[2]


class _Exchange:
    """One request and its answer, between Hypercorn and the application.

    An answer that is ready early waits for the rest of the body: clients that are still sending
    when the connection closes report that, and not the answer.
    """

    def __init__(
        self,
        receive: ASGIReceiveCallable,
        send: ASGISendCallable,
        finish: Callable[[], None],
        *,
        is_titled: bool,
    ) -> None:
        """``finish`` is called once the request has been carried out."""
        self._receive = receive
        self._send = send
        self._finish: Callable[[], None] | None = finish
        self._is_titled = is_titled
        self._body_read = trio.Event()

    async def receive(self) -> ASGIReceiveEvent:
        event = await self._receive()
        if event["type"] != "http.request" or not event["more_body"]:
            self._body_read.set()
        return event

    async def send(self, event: ASGISendEvent) -> None:
        if event["type"] == "http.response.start":
            if not self._body_read.is_set():
                with trio.move_on_after(BODY_REST_S):
                    await self._body_read.wait()
            if self._is_titled:
                # Some clients look for "Content-Length: " to the letter.
                headers = [(name.title(), value) for name, value in event["headers"]]
                event = {**event, "headers": headers}
            # Once it has gone, what is read may be the next request.
            self.finish()
        await self._send(event)

    def finish(self) -> None:
        """Give back what the request brought. A second call does nothing."""
        finish, self._finish = self._finish, None
        if finish is not None:
            finish()

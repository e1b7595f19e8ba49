"""Connections on which both sides have shown who they are, and that nobody else can read.

Each side shows a certificate of one authority: ``tls_dir`` has ``ca-cert.pem`` and the side's own,
``server-…`` at the destination and ``client-…`` at the source. TLS is in Python's hands, so guest
memory is copied through it, in the loop's thread.

Spec: Cloud Hypervisor migration, section TLS.
"""

from __future__ import annotations

import os
import ssl
from typing import TYPE_CHECKING

import trio

from vmm.errors import ConfigError
from vmm.migration.link import PATIENCE_S, Link, LostConnectionError

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmm.kvm_cffi import GuestMemoryMap, RangeTable

PIECE_BYTES = 1 << 17
"""Of guest memory, encrypted in one step of the loop: some hundred microseconds."""


def sender_context(folder: str) -> ssl.SSLContext:
    """What the source shows and believes. Raises: ConfigError for files that are no good."""
    return _loaded(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), folder, "client")


def receiver_context(folder: str) -> ssl.SSLContext:
    """What the destination shows and believes. Raises: ConfigError for files that are no good."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.verify_mode = ssl.CERT_REQUIRED
    return _loaded(context, folder, "server")


def _loaded(context: ssl.SSLContext, folder: str, side: str) -> ssl.SSLContext:
    own, key = (os.path.join(folder, f"{side}-{name}.pem") for name in ("cert", "key"))
    try:
        context.load_verify_locations(os.path.join(folder, "ca-cert.pem"))
        # Without a phrase, be it none, OpenSSL asks the terminal for one, and the loop waits.
        context.load_cert_chain(own, key, password="")
    except (ssl.SSLError, OSError) as error:
        raise ConfigError(
            f"tls_dir {folder} has files that cannot be used: {error}; give certificates and keys "
            "in PEM that belong together, and need no phrase"
        ) from error
    return context


class TlsLink(Link):
    """A link through TLS; ``open`` makes one."""

    is_encrypted = True

    def __init__(
        self,
        sock: trio.socket.SocketType,
        stream: trio.SSLStream[trio.SocketStream],
        patience_s: float,
    ) -> None:
        super().__init__(sock, patience_s)
        self.stream = stream
        self._ahead = b""

    @classmethod
    async def open(
        cls,
        sock: trio.socket.SocketType,
        context: ssl.SSLContext,
        *,
        server_name: str | None = None,
        patience_s: float = PATIENCE_S,
    ) -> TlsLink:
        """Shake hands over a connected socket, which becomes the link's own.

        A source gives the ``server_name`` that the destination's certificate must be for; without
        it this is the destination. Raises: PeerError; the socket is closed then.
        """
        stream = trio.SSLStream(
            trio.SocketStream(sock),
            context,
            server_hostname=server_name,
            server_side=server_name is None,
            https_compatible=True,
        )
        link = cls(sock, stream, patience_s)
        try:
            with link._waiting("agree on TLS with"):
                await stream.do_handshake()
        except BaseException:
            sock.close()
            raise
        return link

    async def _put(self, data: memoryview) -> int:
        await self.stream.send_all(data)
        return len(data)

    async def _some(self, most: int) -> bytes:
        if self._ahead:
            part, self._ahead = self._ahead[:most], self._ahead[most:]
            return part
        return bytes(await self.stream.receive_some(most))

    async def readable(self) -> None:
        """Wait, as long as it takes, until something comes or the connection ends."""
        if not self._ahead:
            try:
                self._ahead = bytes(await self.stream.receive_some())
            except trio.BrokenResourceError as error:
                raise LostConnectionError(
                    f"The other VMM is gone: {error.__cause__ or error}"
                ) from error

    async def send_memory(
        self, memory: GuestMemoryMap, table: RangeTable, sent: Callable[[int], None]
    ) -> None:
        """Send ranges of guest memory, saying how much went. Raises: PeerError."""
        for piece in table.views(memory, PIECE_BYTES):
            with self._waiting("send to"):
                await self.stream.send_all(piece)
            sent(len(piece))

    async def receive_memory(
        self, memory: GuestMemoryMap, table: RangeTable, received: Callable[[int], None]
    ) -> None:
        """Receive ranges into guest memory, saying how much came. Raises: PeerError."""
        for piece in table.views(memory, PIECE_BYTES):
            piece[:] = await self.receive(len(piece))
            received(len(piece))

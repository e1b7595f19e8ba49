"""One connection of a migration: requests, responses, guest memory and descriptors over a socket.

Guest memory goes straight between RAM and the socket, in C, in a worker thread that waits for 50 ms
at most: when the socket would block longer, the task waits for it. One task at a time uses a link.
"""

from __future__ import annotations

import array
import os
import socket
from contextlib import contextmanager
from typing import TYPE_CHECKING

import trio

from vmm.errors import PeerError
from vmm.kvm_cffi import Transfer
from vmm.migration.protocol import HEADER_BYTES, Request, Response, Status

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from vmm.kvm_cffi import GuestMemoryMap, RangeTable

STEP_BYTES = 16 << 20
"""Guest memory that one call moves at most, if it can in its 50 milliseconds."""

KEEPALIVE_IDLE_S = 60
KEEPALIVE_INTERVAL_S = 15
KEEPALIVE_PROBES = 4
USER_TIMEOUT_MS = 120_000
"""A peer that is gone is noticed by then, also while nothing is sent."""


PATIENCE_S = 30.0
"""How long the other side may be silent where it should send, take or answer something."""


class Link:
    """A connected socket, which is the link's own, also where none can be made of it.

    ``patience_s`` bounds each wait for the other side. What is sent or received raises PeerError
    when it was longer, or the connection is lost, which it may be from the start.
    """

    is_encrypted = False

    def __init__(self, sock: trio.socket.SocketType, patience_s: float = PATIENCE_S) -> None:
        self._socket = sock
        self.patience_s = patience_s
        if sock.family != socket.AF_UNIX:
            try:
                _watch_peer(sock)
            except OSError as error:
                sock.close()
                raise PeerError(f"The other VMM is gone: {error.strerror}") from error

    def fileno(self) -> int:
        """The socket's descriptor."""
        return self._socket.fileno()

    def close(self) -> None:
        """Close the socket. A second call does nothing."""
        self._socket.close()

    async def send(self, data: bytes | bytearray, *, fd: int | None = None) -> None:
        """Send bytes, and a descriptor with the first of them. Raises: PeerError."""
        rest = memoryview(data)
        if fd is not None:
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))]
            with self._waiting("send to"):
                rest = rest[await self._socket.sendmsg([rest], rights) :]
        while rest:
            with self._waiting("send to"):
                rest = rest[await self._put(rest) :]

    async def receive(self, size: int) -> bytes:
        """Receive exactly so many bytes. Raises: PeerError, also when the peer closes before."""
        data = await self.receive_or_end(size)
        if data is None:
            raise PeerError("The other VMM closed the connection")
        return data

    async def receive_or_end(self, size: int) -> bytes | None:
        """The same, None when the peer closed before the first byte. Raises: PeerError."""
        data = bytearray()
        while len(data) < size:
            part = await self.receive_some(min(size - len(data), 1 << 20))
            if not part and not data:
                return None
            if not part:
                raise PeerError("The other VMM closed the connection in the middle of a message")
            data += part
        return bytes(data)

    async def receive_some(self, most: int) -> bytes:
        """Receive what there is, at most so many bytes; none at the end. Raises: PeerError."""
        with self._waiting("receive from"):
            return await self._some(most)

    async def _put(self, data: memoryview) -> int:
        """Send some of the bytes, and say how many."""
        return await self._socket.send(data)

    async def _some(self, most: int) -> bytes:
        """Receive some bytes, none at the end."""
        return await self._socket.recv(most)

    async def readable(self) -> None:
        """Wait, as long as it takes, until something comes or the connection ends."""
        await trio.lowlevel.wait_readable(self._socket)

    async def writable(self) -> None:
        """Wait until something can be sent. Raises: PeerError."""
        with self._waiting("send to"):
            await trio.lowlevel.wait_writable(self._socket)

    async def receive_with_fd(self, size: int) -> tuple[bytes, int]:
        """Receive bytes that a descriptor came with; it is the caller's. Raises: PeerError."""
        fds: list[int] = []
        try:
            with self._waiting("receive from"):
                data, extra, _, _ = await self._socket.recvmsg(
                    size, socket.CMSG_SPACE(16 * array.array("i").itemsize), socket.MSG_CMSG_CLOEXEC
                )
            for level, kind, content in extra:
                if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                    numbers = array.array("i")
                    numbers.frombytes(
                        content[: len(content) // numbers.itemsize * numbers.itemsize]
                    )
                    fds += numbers
            if len(fds) != 1:
                raise PeerError(f"A message brought {len(fds)} descriptors; it must bring one")
            rest = await self.receive(size - len(data))
            return data + rest, fds.pop()
        finally:
            for fd in fds:
                os.close(fd)

    async def send_memory(
        self, memory: GuestMemoryMap, table: RangeTable, sent: Callable[[int], None]
    ) -> None:
        """Send ranges of guest memory, saying how much went. Raises: PeerError."""
        transfer = Transfer(self._socket.fileno(), memory, table)
        while not transfer.is_done:
            with self._waiting("send to"):
                moved = await trio.to_thread.run_sync(transfer.send, STEP_BYTES)
                if not moved:
                    await trio.lowlevel.wait_writable(self._socket)
            sent(moved)

    async def receive_memory(
        self, memory: GuestMemoryMap, table: RangeTable, received: Callable[[int], None]
    ) -> None:
        """Receive ranges into guest memory, saying how much came. Raises: PeerError."""
        transfer = Transfer(self._socket.fileno(), memory, table)
        while not transfer.is_done:
            with self._waiting("receive from"):
                moved = await trio.to_thread.run_sync(transfer.receive, STEP_BYTES)
                if not moved:
                    await trio.lowlevel.wait_readable(self._socket)
            received(moved)

    async def respond(self, status: Status) -> None:
        """Answer a request. Raises: PeerError."""
        await self.send(Response(status).encode())

    async def expect_ok(self, request: Request) -> None:
        """Wait for a request's answer. Raises: RefusedError when it is an error, PeerError."""
        response = Response.decode(await self.receive(HEADER_BYTES))
        if response.length:
            raise PeerError(
                f"The destination answered {request.command.name} with {response.length} bytes; "
                "it may answer with none"
            )
        if response.status is not Status.OK:
            raise RefusedError(f"The destination refused {request.command.name}; its log says why")

    @contextmanager
    def _waiting(self, action: str) -> Iterator[None]:
        try:
            with trio.fail_after(self.patience_s):
                yield
        except trio.TooSlowError:
            raise PeerError(
                f"Could not {action} the other VMM: nothing moved for {self.patience_s:g} s"
            ) from None
        except (OSError, trio.BrokenResourceError) as error:
            reason = error if isinstance(error, OSError) else error.__cause__ or error
            text = reason.strerror if isinstance(reason, OSError) else None
            raise LostConnectionError(
                f"Could not {action} the other VMM: {text or reason}"
            ) from error


class LostConnectionError(PeerError):
    """The other VMM has closed the connection, or cannot be reached any more."""


class RefusedError(PeerError):
    """The other VMM answered that it could not do what it was asked."""


def _watch_peer(sock: trio.socket.SocketType) -> None:
    for level, option, value in (
        (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
        (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_IDLE_S),
        (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE_INTERVAL_S),
        (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, KEEPALIVE_PROBES),
        (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, USER_TIMEOUT_MS),
        # Headers are small and each waits for its answer.
        (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
    ):
        sock.setsockopt(level, option, value)

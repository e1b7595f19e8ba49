"""A man in the middle of a migration's first connection, who knows its messages and spoils one."""

from __future__ import annotations

import socket
import struct
from contextlib import suppress
from enum import Enum

import trio

from vmm.migration.protocol import HEADER_BYTES, Command, Request, Response, Status

SLOW_S = 0.1
"""What a slow line adds to each message."""

GIVING = Request(Command.COMPLETE).encode()
TAKING = Response(Status.OK).encode()

_ENTRY = struct.Struct("<QQ")


class Deed(Enum):
    """What is done to the chosen message."""

    CUT_BEFORE = "cut before it"
    CUT_WITHIN = "cut within it"
    CUT_BEFORE_ANSWER = "cut before its answer"
    CORRUPT_COMMAND = "another command"
    CORRUPT_LENGTH = "another length"
    CORRUPT_ANSWER = "another answer"
    REPEAT = "sent twice"
    STALL = "kept"
    SLOW = "late, and all alike"


class Meddler:
    """Forwards one connection; does its deed to the ``number``-th message of ``command``."""

    def __init__(self, target: int, command: Command, deed: Deed, number: int = 0) -> None:
        self._target = target
        self._command = command
        self._deed = deed
        self._left = number
        self._is_spoiling_answer = False
        self.reached = trio.Event()
        """Set when the deed is done."""
        self.port = 0

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve one connection until it ends."""
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        async with listener:
            self.port = listener.socket.getsockname()[1]
            task_status.started()
            source = await listener.accept()
        destination = await trio.open_tcp_stream("127.0.0.1", self._target)
        async with source, destination, trio.open_nursery() as nursery:
            nursery.start_soon(self._carry_answers, destination, source, nursery)
            with suppress(_Cut, trio.BrokenResourceError, trio.ClosedResourceError):
                await self._carry_requests(source, destination)
            nursery.cancel_scope.cancel()

    async def _carry_requests(self, source: trio.SocketStream, to: trio.SocketStream) -> None:
        while (header := await _exactly(source, HEADER_BYTES)) is not None:
            number, length = struct.unpack("<H6xQ", header)
            if number == self._command and self._deed is Deed.SLOW:
                await trio.sleep(SLOW_S)
            is_chosen = number == self._command and self._left == 0
            if number == self._command:
                self._left -= 1
            if is_chosen and self._deed in _AT_HEADER:
                await self._spoil_header(header, source, to)
            payload = await _exactly(source, length) or b""
            self._is_spoiling_answer |= is_chosen and self._deed in _AT_ANSWER
            await to.send_all(header + payload)
            if is_chosen and self._deed is Deed.REPEAT:
                self.reached.set()
                await to.send_all(header + payload)
            if number == Command.MEMORY:
                await _copy(source, to, sum(size for _, size in _ENTRY.iter_unpack(payload)))

    async def _spoil_header(
        self, header: bytes, source: trio.SocketStream, to: trio.SocketStream
    ) -> None:
        self.reached.set()
        match self._deed:
            case Deed.CUT_WITHIN:
                await to.send_all(header[:7])
            case Deed.CORRUPT_COMMAND:
                await to.send_all(b"\x63\x00" + header[2:])
                await _until_closed(source)
            case Deed.CORRUPT_LENGTH:
                await to.send_all(header[:8] + (1 << 60).to_bytes(8, "little"))
                await _until_closed(source)
            case Deed.STALL:
                await _until_closed(source)
        raise _Cut

    async def _carry_answers(
        self, destination: trio.SocketStream, to: trio.SocketStream, nursery: trio.Nursery
    ) -> None:
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            while (answer := await _exactly(destination, HEADER_BYTES)) is not None:
                if self._is_spoiling_answer:
                    self.reached.set()
                    if self._deed is Deed.CUT_BEFORE_ANSWER:
                        break
                    answer = b"\x07\x00" + answer[2:]
                await to.send_all(answer)
        nursery.cancel_scope.cancel()


class FaultDeed(Enum):
    """What is done to the connection over which memory follows a VM."""

    CUT = "cut"
    CUT_BEFORE_GIVING = "cut when the VM was to be given away, which is kept"
    MISLEAD = "asks for what is no page"
    KEEP_TAKING = "the word that the VM was taken is kept for a while; all memory may go"


class FaultMeddler:
    """Forwards a migration's two connections. The second stalls when some memory went, until its
    deed may be done to it."""

    def __init__(self, target: int, deed: FaultDeed, after_bytes: int) -> None:
        self._target = target
        self._deed = deed
        self._left = after_bytes
        self.reached = trio.Event()
        """Set when it stalls."""
        self.may_spoil = trio.Event()
        self._is_given = False
        self.port = 0

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve both until they end."""
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        async with listener, trio.open_nursery() as nursery:
            self.port = listener.socket.getsockname()[1]
            task_status.started()
            for spoils in (False, True):
                source = await listener.accept()
                to = await trio.open_tcp_stream("127.0.0.1", self._target)
                nursery.start_soon(self._carry_both, source, to, spoils)

    async def _carry_both(
        self, source: trio.SocketStream, to: trio.SocketStream, spoils: bool
    ) -> None:
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            async with source, to, trio.open_nursery() as nursery:
                nursery.start_soon(self._carry, to, source, nursery, False)
                nursery.start_soon(self._carry, source, to, nursery, spoils)

    async def _carry(
        self, one: trio.SocketStream, to: trio.SocketStream, nursery: trio.Nursery, spoils: bool
    ) -> None:
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            async for data in one:
                self._left -= len(data) if spoils else 0
                if spoils and self._left <= 0 and not self.reached.is_set():
                    self.reached.set()
                    await self.may_spoil.wait()
                    if self._deed is not FaultDeed.MISLEAD:
                        break
                    await one.send_all(b"\xff" * 32)
                if self._deed is FaultDeed.CUT_BEFORE_GIVING and data == GIVING:
                    self.may_spoil.set()
                    await trio.sleep_forever()
                if self._deed is FaultDeed.KEEP_TAKING and self._is_given and data == TAKING:
                    self.reached.set()
                    await self.may_spoil.wait()
                self._is_given |= data == GIVING
                await to.send_all(data)
        nursery.cancel_scope.cancel()


_AT_HEADER = {
    Deed.CUT_BEFORE,
    Deed.CUT_WITHIN,
    Deed.CORRUPT_COMMAND,
    Deed.CORRUPT_LENGTH,
    Deed.STALL,
}


_AT_ANSWER = {Deed.CUT_BEFORE_ANSWER, Deed.CORRUPT_ANSWER}


class _Cut(Exception):
    """The connection ends here."""


async def _exactly(stream: trio.SocketStream, size: int) -> bytes | None:
    data = b""
    while len(data) < size:
        part = await stream.receive_some(size - len(data))
        if not part:
            return None
        data += part
    return data


async def _until_closed(stream: trio.SocketStream) -> None:
    while await stream.receive_some(1 << 16):
        pass


async def _copy(source: trio.SocketStream, to: trio.SocketStream, size: int) -> None:
    while size:
        part = await source.receive_some(min(size, 1 << 20))
        if not part:
            raise _Cut
        await to.send_all(part)
        size -= len(part)


def free_port() -> int:
    """A port that nobody has just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port

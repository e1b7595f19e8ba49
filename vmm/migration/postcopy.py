"""RAM that follows a VM: fetched from where it was when it is touched, and in the background.

The destination asks over a connection of its own, page by page, in the threads of a pager; the
source answers until the destination closes. If that connection is lost, the VM is lost: half of its
RAM is here and half there.

Spec: Cloud Hypervisor migration, section Postcopy.
"""

from __future__ import annotations

import logging
import os
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING

import trio

from vmm.errors import ConfigError, PeerError
from vmm.kvm_cffi import RangeTable
from vmm.kvm_cffi.closing import Closing
from vmm.kvm_cffi.pager import FaultServer, Pager
from vmm.machine.content import has_named_file
from vmm.migration.link import Link, LostConnectionError
from vmm.migration.protocol import (
    HEADER_BYTES,
    RANGE_BYTES,
    ROLE_BYTES,
    Command,
    Request,
    Response,
    Role,
    Status,
    decode_role,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from vmm.kvm_cffi import GuestMemoryMap
    from vmm.machine.memory import GuestMemory
    from vmm.migration.destination import Listener

logger = logging.getLogger(__name__)

FAULT_CONNECTION_S = 30.0
"""How long the connection for faults may take to come once the state is there."""
ROLE_PATIENCE_S = 10.0
"""How long a connection beside the first may take to say what it is for."""
FAULT_BYTES = HEADER_BYTES + RANGE_BYTES
MOST_PAGE_BYTES = 1 << 30
MOST_FAULTS = 64
"""Requests that are taken from a connection through TLS at once."""
ANSWER_BYTES = 1 << 17
"""What is sent through TLS at once, if there is as much."""


class MemoryLostError(PeerError):
    """The VM has changed sides, and not all of its memory could follow: it is lost."""


class FaultConnection(Closing):
    """Where the destination asks for pages: a descriptor, without TLS, and what is behind it.

    Both become its own.
    """

    def __init__(self, fd: int, behind: Closing | None = None) -> None:
        self.fd = fd
        self._behind = behind

    def close(self) -> None:
        """Say to the other side that nothing more is wanted. A second call does nothing."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)
        if self._behind is not None:
            self._behind.close()


async def accept_faults(listener: Listener) -> FaultConnection:
    """Wait for the one connection beside the first, and let go who has no business here.

    Raises: PeerError when the source means something else.
    """
    while True:
        try:
            return await _accepted(listener)
        except _StrangerError as error:
            logger.warning("A connection beside the first is left out: %s", error)


async def _accepted(listener: Listener) -> FaultConnection:
    with ExitStack() as stack:
        sock = stack.enter_context(await listener.accept())
        terminator = None
        if listener.tls_dir is not None:
            from vmm.migration.terminator import Terminator

            opened = await Terminator.open(sock, listener.tls_dir)
            terminator = stack.enter_context(opened)
            sock.close()
            sock = stack.enter_context(opened.sock)
        try:
            role = decode_role(await Link(sock, ROLE_PATIENCE_S).receive(ROLE_BYTES))
        except PeerError as error:
            raise _StrangerError(str(error)) from error
        if role is not Role.FAULT:
            raise PeerError(
                "The source sends its memory over several connections, and here it is to follow "
                "the VM; give memory_mode=Postcopy at both sides or at none"
            )
        connection = FaultConnection(sock.detach(), terminator)
        stack.pop_all()
        return connection


class _StrangerError(PeerError):
    """Somebody has connected and not said what for."""


class RemotePager(Pager):
    """A pager that asks over a connection, which becomes its own."""

    def __init__(self, connection: FaultConnection) -> None:
        self._connection = connection
        try:
            super().__init__(-1, 0)
        except BaseException:
            connection.close()
            raise
        self.ask(connection.fd)

    def close(self) -> None:
        """End the threads, and say to the other side that nothing more is wanted."""
        super().close()
        self._connection.close()


def fetch_on_demand(connection: FaultConnection, memory: GuestMemory) -> None:
    """Begin to fetch RAM; ``memory`` has the pager until all of it is there.

    Raises: ConfigError for what a file has already (caller), HostError.
    """
    pager = RemotePager(connection)
    memory.hold(pager)
    for region in memory.regions:
        if has_named_file(region):
            # The kernel asks for no page that the file has, and nobody knows whose that is.
            raise ConfigError(
                f"Memory zone {region.zone.id!r} is the file {region.zone.file}, whose content "
                "cannot follow the VM; move it with memory_mode Precopy"
            )
    numbers = {
        region.slot: pager.add(region.hva, region.size, region.zone.page_size, region.gpa)
        for region in memory.regions
    }
    for region, range_ in memory.present:
        pager.mark(numbers[region.slot], range_.gpa - region.gpa, range_.size)
    pager.start()
    memory.pager = pager


async def serve_faults(link: Link, memory: GuestMemoryMap, served: Callable[[int], None]) -> None:
    """Answer for pages until the other side has all it wants: until it closes, however it does.

    Raises: PeerError.
    """
    if link.is_encrypted:
        with suppress(LostConnectionError):
            await _serve_through(link, memory, served)
        return
    server = FaultServer(link.fileno(), memory)
    while True:
        await (link.writable() if server.is_answering else link.readable())
        pages = await trio.to_thread.run_sync(server.serve)
        if pages is None:
            return
        served(pages)


async def _serve_through(link: Link, memory: GuestMemoryMap, served: Callable[[int], None]) -> None:
    """The same where what is sent has to pass through Python anyhow."""
    came = bytearray()
    while True:
        await link.readable()
        part = await link.receive_some(MOST_FAULTS * FAULT_BYTES)
        if not part:
            return
        came += part
        pages = len(came) // FAULT_BYTES
        answers = bytearray()
        for at in range(0, pages * FAULT_BYTES, FAULT_BYTES):
            for piece in _answer(bytes(came[at : at + FAULT_BYTES]), memory):
                answers += piece
                if len(answers) >= ANSWER_BYTES:
                    await link.send(answers)
                    answers.clear()
        await link.send(answers)
        del came[: pages * FAULT_BYTES]
        served(pages)


def _answer(asked: bytes, memory: GuestMemoryMap) -> Iterator[bytes | memoryview]:
    """What answers a request: a header, and the page. Raises: PeerError for what is no page."""
    request = Request.decode(asked[:HEADER_BYTES])
    page = RangeTable.decode(asked[HEADER_BYTES:])
    size = page.bytes_in(memory)
    if request.command is not Command.PAGE_FAULT or size is None or size > MOST_PAGE_BYTES:
        raise PeerError(
            "The destination's faults cannot be served: it asked for what is no page of RAM"
        )
    yield Response(Status.OK, size).encode()
    yield from page.views(memory, ANSWER_BYTES)

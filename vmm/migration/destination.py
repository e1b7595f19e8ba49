"""The side that a VM comes to: it listens, takes memory in, and builds the machine from its state.

Nothing that arrives is trusted: whatever is not what it should be fails this migration, leaves
nothing behind, and the VMM may receive again. The VM runs here once Complete has come.

Spec: Cloud Hypervisor migration, sections 4.3 to 4.5.
"""

from __future__ import annotations

import logging
import os
import socket
from contextlib import ExitStack, asynccontextmanager, suppress
from typing import TYPE_CHECKING, NamedTuple

import trio

from vmm.config.info import MigrationPhase
from vmm.errors import ConfigError, HostError, PeerError
from vmm.kvm_cffi import GuestMemoryMap, RangeTable
from vmm.kvm_cffi.closing import Closing
from vmm.listener import listening
from vmm.machine.brought_back import mark_plugged
from vmm.migration.address import UnixAddress
from vmm.migration.link import PATIENCE_S, Link
from vmm.migration.messages import Description
from vmm.migration.postcopy import (
    FAULT_CONNECTION_S,
    ROLE_PATIENCE_S,
    FaultConnection,
    accept_faults,
    fetch_on_demand,
)
from vmm.migration.protocol import (
    HEADER_BYTES,
    MOST_CONNECTIONS,
    ROLE_BYTES,
    SLOT_BYTES,
    Command,
    Receiver,
    Request,
    Role,
    Status,
    decode_role,
)
from vmm.snapshot.prepare import prepare_to_arrive
from vmm.snapshot.state import MachineState

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator, Callable, Mapping

    from vmm.kvm_cffi import Vm
    from vmm.machine.memory import GuestMemory
    from vmm.machine.saved import SavedMemory
    from vmm.migration.address import Address
    from vmm.migration.progress import Progress

logger = logging.getLogger(__name__)

REFUSAL_S = 1.0
MOST_REGIONS = 512
"""Descriptors of memory that may come."""


class Listener(NamedTuple):
    """Where a VM may come: with a context through TLS, whose files ``tls_dir`` has."""

    sock: trio.socket.SocketType
    context: ssl.SSLContext | None = None
    tls_dir: str | None = None

    async def accept(self) -> trio.socket.SocketType:
        """Wait for the next connection. Raises: HostError."""
        try:
            sock, _ = await self.sock.accept()
        except OSError as error:
            raise HostError.from_os_error("accept", error) from error
        return sock

    async def linked(self, sock: trio.socket.SocketType, patience_s: float) -> Link:
        """A link over a connection, through TLS where that is asked for. Raises: PeerError."""
        if self.context is None:
            return Link(sock, patience_s)
        from vmm.migration.tls import TlsLink

        return await TlsLink.open(sock, self.context, patience_s=patience_s)


@asynccontextmanager
async def listen(address: Address, tls_dir: str | None = None) -> AsyncIterator[Listener]:
    """Listen until the scope is left, for connections through TLS if its files are given.

    Raises: HostError when the address cannot be had, ConfigError for files that are no good.
    """
    with ExitStack() as stack:
        context = None
        if tls_dir is not None:
            from vmm.migration.tls import receiver_context

            context = receiver_context(tls_dir)
        if isinstance(address, UnixAddress):
            plain = stack.enter_context(listening(address.path, "migration", 0o600))
            plain.setblocking(False)
            yield Listener(trio.socket.from_stdlib_socket(plain))
            return
        try:
            family, kind, _, _, where = (
                await trio.socket.getaddrinfo(
                    address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
                )
            )[0]
            sock = stack.enter_context(trio.socket.socket(family, kind))
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            await sock.bind(where)
            sock.listen(MOST_CONNECTIONS)
        except OSError as error:
            raise HostError.from_os_error(
                "listen", error, path=str(address), hint="give an address of this host's"
            ) from error
        yield Listener(sock, context, tls_dir)


class Arrival(Closing):
    """One VM on its way in; a source for ``open_machine`` once ``meet`` has returned."""

    def __init__(
        self,
        listener: Listener,
        progress: Progress,
        check: Callable[[Description], None],
        patience_s: float = PATIENCE_S,
        *,
        is_postcopy: bool = False,
    ) -> None:
        self._is_postcopy = is_postcopy
        self._faults: FaultConnection | None = None
        self._faults_came = trio.Event()
        self._listener = listener
        self._progress = progress
        self._check = check
        self._patience_s = patience_s
        self._receiver = Receiver()
        self._open = ExitStack()
        self._link: Link | None = None
        self._description: Description | None = None
        self._memory_fds: dict[int, int] = {}

    def close(self) -> None:
        """Let go of all connections and descriptors."""
        if self._faults is not None:
            self._faults.close()
        self._open.close()

    @property
    def description(self) -> Description:
        """What the source said of its VM."""
        assert self._description is not None, "meet has returned"
        return self._description

    @property
    def memory(self) -> SavedMemory:
        """How the RAM is laid out."""
        return self.description.memory

    @property
    def memory_fds(self) -> Mapping[int, int]:
        """Of each slot, the descriptor of its RAM, where the source hands that over."""
        return self._memory_fds

    @property
    def link(self) -> Link:
        """The first connection."""
        assert self._link is not None, "somebody has connected"
        return self._link

    async def meet(self) -> Description:
        """Wait for a source, and for what it says of its VM. Raises: PeerError, ConfigError."""
        await trio.to_thread.run_sync(prepare_to_arrive)
        sock = await self._listener.accept()
        self._link = await self._listener.linked(sock, self._patience_s)
        self._open.callback(self._link.close)
        while True:
            request = await self._next()
            payload = await self._payload(request)
            if request.command is Command.CONFIG:
                self._description = Description.decode(payload)
                self._check(self._description)
                return self._description
            await self.link.respond(Status.OK)

    async def _next(self) -> Request:
        request = Request.decode(await self.link.receive(HEADER_BYTES))
        self._receiver.accept(request)
        return request

    async def _payload(self, request: Request) -> bytes:
        if request.command is not Command.MEMORY_FD:
            return await self.link.receive(request.length)
        data, fd = await self.link.receive_with_fd(SLOT_BYTES)
        self._open.callback(os.close, fd)
        slot = int.from_bytes(data, "little")
        if slot in self._memory_fds or len(self._memory_fds) >= MOST_REGIONS:
            raise PeerError(f"The memory of slot {slot} came twice, or there are too many slots")
        self._memory_fds[slot] = fd
        return data

    async def provide(self, memory: GuestMemory, vm: Vm) -> MachineState:
        """Take the memory in, and then the state. Raises: PeerError, ConfigError."""
        self._progress.memory_bytes = sum(each.size for each in memory.regions)
        self._progress.phase = MigrationPhase.MEMORY
        memory_map = GuestMemoryMap((each.gpa, each.size, each.hva) for each in memory.regions)
        await self.link.respond(Status.OK)
        self._progress.start_moving()
        async with trio.open_nursery() as nursery:
            if self._is_postcopy:
                nursery.start_soon(self._take_faults)
            else:
                nursery.start_soon(self._take_others, nursery, memory_map)
            text = await self._take_state(memory_map)
            if self._is_postcopy:
                await self._wait_for_faults()
            nursery.cancel_scope.cancel()
        state = MachineState.from_json(text)
        self._fetch_rest(memory, state)
        self._progress.stop_moving()
        self._progress.phase = MigrationPhase.STATE
        return state

    async def _take_faults(self) -> None:
        self._faults = await accept_faults(self._listener)
        self._faults_came.set()

    async def _wait_for_faults(self) -> None:
        with trio.move_on_after(FAULT_CONNECTION_S):
            await self._faults_came.wait()
            return
        raise PeerError(
            "The source sent the VM before its memory, and no connection to ask for that; give "
            "memory_mode=Postcopy at both sides"
        )

    def _fetch_rest(self, memory: GuestMemory, state: MachineState) -> None:
        """Have memory come as it is touched, where the source keeps it until then."""
        if self._faults is not None:
            mark_plugged(memory, state)  # What is plugged is asked for.
            self._progress.memory_bytes = sum(each.range.size for each in memory.present)
            self._progress.begin_pass(self._progress.memory_bytes, is_first=True)
            connection, self._faults = self._faults, None
            fetch_on_demand(connection, memory)

    async def _take_state(self, memory: GuestMemoryMap) -> str:
        while True:
            # The source may take its time between two passes; the kernel tells when it is gone.
            request = await self._next_whenever()
            if request.command is Command.MEMORY:
                await self._take_memory(self.link, request, memory)
                continue
            payload = await self._payload(request)
            try:
                return payload.decode()
            except UnicodeDecodeError as error:
                raise PeerError(f"The state of the VM is no text: {error}") from None

    async def _next_whenever(self) -> Request:
        await self.link.readable()
        return await self._next()

    async def _take_others(self, nursery: trio.Nursery, memory: GuestMemoryMap) -> None:
        for _ in range(MOST_CONNECTIONS):
            sock = await self._listener.accept()
            nursery.start_soon(self._serve_beside, sock, memory)

    async def _serve_beside(self, sock: trio.socket.SocketType, memory: GuestMemoryMap) -> None:
        """Take memory from a connection beside the first until that is closed."""
        with sock:
            try:
                link = await self._listener.linked(sock, ROLE_PATIENCE_S)
                role = decode_role(await link.receive(ROLE_BYTES))
            except PeerError as error:
                # Anybody may come to a port; the source finds out if it was one of its own.
                logger.warning("A connection beside the first is left out: %s", error)
                return
            if role is Role.FAULT:
                raise PeerError(
                    "A connection came to ask for memory, which nobody awaits; give "
                    "memory_mode=Postcopy at both sides"
                )
            link.patience_s = self._patience_s
            while True:
                await link.readable()
                header = await link.receive_or_end(HEADER_BYTES)
                if header is None:
                    return
                request = Request.decode(header)
                self._receiver.accept_beside(request)
                await self._take_memory(link, request, memory)

    async def _take_memory(self, link: Link, request: Request, memory: GuestMemoryMap) -> None:
        table = RangeTable.decode(await link.receive(request.length))
        size = table.bytes_in(memory)
        if size is None or size > self._progress.memory_bytes:
            raise PeerError("The source sent memory for addresses where the VM has no RAM")
        await link.receive_memory(memory, table, self._progress.moved)
        await link.respond(Status.OK)

    async def completion(self) -> bool:
        """Say that the machine is built, and wait to be told to have it: whether it is to run.

        Raises: PeerError when it stays with the source.
        """
        await self.link.respond(Status.OK)
        request = await self._next()
        return request.command is Command.COMPLETE

    async def confirm(self) -> None:
        """Say that the VM is here. A source that does not hear it lets the VM stand."""
        with suppress(PeerError):
            await self.link.respond(Status.OK)
        self._progress.has_arrived = True

    async def refuse(self) -> None:
        """Say that it has failed, if somebody is there to hear it."""
        if self._link is not None:
            with trio.move_on_after(REFUSAL_S, shield=True), suppress(PeerError):
                await self._link.respond(Status.ERROR)


def check_processors(description: Description) -> None:
    """Check that this host has what the guest saw at its source, before any memory comes.

    Raises: ConfigError naming what is missing, HostError.
    """
    from vmm.kvm_cffi import Kvm
    from vmm.machine import processors
    from vmm.machine.brought_back import check_cpuid

    with Kvm.open() as kvm:
        here = processors.describe(kvm, description.config.cpus)
    try:
        check_cpuid(description.common_cpuid, here.common)
    except ConfigError as error:
        raise ConfigError(*error.problems) from error

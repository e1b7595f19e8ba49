"""The side that a VM leaves: its memory goes first, then it stands still, then all the rest goes.

Start → Config → Memory, pass after pass, while the guest runs → the guest stands → what changed
last → State → Complete. Once Complete is sent the VM belongs to the destination: unless that
answers that it could not, this side never runs it again. Whatever goes wrong before, the VM runs on
here as if nothing had been.

Spec: Cloud Hypervisor migration, sections 4.3 to 4.5.
"""

from __future__ import annotations

import logging
import socket
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from typing import TYPE_CHECKING, NamedTuple, Protocol

import trio

from vmm.config.info import MigrationPhase
from vmm.config.requests import MigrationMode, TimeoutStrategy
from vmm.errors import HostError, PeerError, StateError, first_error
from vmm.machine.content import open_pagemap
from vmm.migration.address import TcpAddress
from vmm.migration.chunks import chunks, windows
from vmm.migration.link import PATIENCE_S, Link, RefusedError
from vmm.migration.postcopy import MemoryLostError, serve_faults
from vmm.migration.progress import Fate
from vmm.migration.protocol import VERSION, Command, Request, Role, encode_role
from vmm.migration.streams import Streams
from vmm.migration.throttle import Brake
from vmm.page import PAGE
from vmm.snapshot.prepare import prepare_to_save

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator, Iterator, Sequence

    from vmm.config.requests import SendMigrationData
    from vmm.kvm_cffi import PageSet
    from vmm.machine.dirty import DirtyLog
    from vmm.machine.interface import Events, Machine
    from vmm.migration.address import Address
    from vmm.migration.messages import Description
    from vmm.migration.progress import Progress

logger = logging.getLogger(__name__)

BUILD_PATIENCE_S = 300.0
"""How long the destination may take to map the VM's memory."""
DOWNTIMES = 3
"""How often downtime_ms the last of the memory may take, if that is more than a peer's patience."""
LOCKS_S = 5.0
"""How long a destination that failed may hold on to the disks."""
LOCKS_STEP_S = 0.02
ABANDON_S = 1.0
"""How long is spent on telling the destination that it is off."""


class Guest(Protocol):
    """The guest's own wishes."""

    @property
    def has_wish(self) -> bool:
        """Whether it has asked for its end, or its machine has failed."""


class LostError(PeerError):
    """Nobody here knows whether the destination runs the VM: it must not run here either."""


class Departure(NamedTuple):
    """One VM on its way out. ``is_running`` says whether it has to be stopped first.

    It goes through TLS where there is a ``context``.
    """

    machine: Machine
    description: Description
    data: SendMigrationData
    address: Address
    progress: Progress
    events: Events
    guest: Guest | None
    is_running: bool
    context: ssl.SSLContext | None = None
    patience_s: float = PATIENCE_S

    async def send(self) -> None:
        """Move the VM. When this returns it is the destination's, and must not run here.

        Raises: LostError when that may be so: it stands here; any other VmmError when it is not:
        it does what it did. Cancel: the same, unless it is the destination's already.
        """
        async with AsyncExitStack() as stack:
            link = await self._connect(stack)
            try:
                await self._send_over(link)
            except LostError:
                raise
            except BaseException:
                if self.progress.fate is Fate.HERE:
                    await self._abandon(link)
                raise

    async def _send_over(self, link: Link) -> None:
        with self._deadline():
            await self._ask(link, Request(Command.START, version=VERSION))
            if self.data.local:
                await self._hand_over_memory(link)
            await self._configure(link)
            self.progress.memory_bytes = sum(
                each.range.size for each in self.machine.memory.present
            )
        if self.data.local:
            await trio.to_thread.run_sync(prepare_to_save)
            async with self._standing():
                await self._finish(link)
            return
        if self.data.memory_mode is MigrationMode.POSTCOPY:
            await self._send_ahead(link)
            return
        async with self._streams(link) as streams:
            with self.machine.watch_ram() as log:
                with self._deadline():
                    rest = await self._send_passes(log, streams)
                async with self._standing():
                    await self._send_rest(log, streams, rest)
                    await self._finish(link)

    async def _send_ahead(self, link: Link) -> None:
        """Send the VM first, and its memory as it is asked for."""
        async with AsyncExitStack() as stack:
            with self._deadline():
                faults = await self._connect(stack)
                await faults.send(encode_role(Role.FAULT))
                await trio.to_thread.run_sync(prepare_to_save)
            self.progress.begin_pass(self.progress.memory_bytes, is_first=True)
            try:
                async with trio.open_nursery() as nursery:
                    # The destination may need a page before it can say that it has the VM.
                    nursery.start_soon(self._serve_faults, faults)
                    async with self._standing():
                        await self._finish(link)
                    self.progress.phase = MigrationPhase.MEMORY
            except ExceptionGroup as group:
                error = first_error(group.subgroup(LostError) or group)
                if self.progress.fate is not Fate.GONE:
                    raise error from error.__cause__
                raise MemoryLostError(
                    "The VM had gone to the destination before its memory, and not all of that "
                    "could follow; look there for what has become of it"
                ) from error
        self.events.emit("vm", "postcopy-migration-completed")

    async def _serve_faults(self, faults: Link) -> None:
        self.progress.start_moving()
        await serve_faults(
            faults, self.machine.memory_map, lambda pages: self.progress.moved(PAGE * pages)
        )

    @contextmanager
    def _deadline(self) -> Iterator[None]:
        """What may take until the timeout of a migration that is to be cancelled then."""
        left = self.data.timeout_s - self.progress.elapsed_s
        if self.data.timeout_strategy is not TimeoutStrategy.CANCEL:
            yield
            return
        try:
            with trio.fail_after(max(left, 0)):
                yield
        except trio.TooSlowError:
            raise StateError(
                f"The migration did not come to an end within timeout_s={self.data.timeout_s}; "
                "give it more time, a longer downtime_ms, or timeout_strategy=Ignore"
            ) from None

    async def _connect(self, stack: AsyncExitStack) -> Link:
        try:
            with trio.fail_after(min(self.patience_s, self.data.timeout_s)):
                sock = await _connected(self.address)
        except trio.TooSlowError:
            raise PeerError(f"{self.address} did not answer; is a VMM receiving there?") from None
        except OSError as error:
            raise HostError.from_os_error(
                "connect", error, path=str(self.address), hint="is a VMM receiving there?"
            ) from error
        stack.callback(sock.close)
        link = await self._linked(sock)
        stack.callback(link.close)
        return link

    async def _linked(self, sock: trio.socket.SocketType) -> Link:
        """A link over a socket, through TLS where that is asked for. Raises: PeerError."""
        if self.context is None or not isinstance(self.address, TcpAddress):
            return Link(sock, self.patience_s)
        from vmm.migration.tls import TlsLink

        name, patience_s = self.address.host, self.patience_s
        return await TlsLink.open(sock, self.context, server_name=name, patience_s=patience_s)

    async def _ask(self, link: Link, request: Request, payload: bytes = b"") -> None:
        await link.send(request.encode() + payload)
        await link.expect_ok(request)

    async def _hand_over_memory(self, link: Link) -> None:
        for region in self.machine.memory.regions:
            assert region.fd is not None, "the request was checked"
            request = Request(Command.MEMORY_FD, 4)
            await link.send(request.encode())
            await link.send(region.slot.to_bytes(4, "little"), fd=region.fd)
            await link.expect_ok(request)

    async def _configure(self, link: Link) -> None:
        payload = self.description.encode()
        link.patience_s = BUILD_PATIENCE_S
        await self._ask(link, Request(Command.CONFIG, len(payload)), payload)
        link.patience_s = self.patience_s

    @asynccontextmanager
    async def _streams(self, link: Link) -> AsyncIterator[Streams]:
        """What carries memory: the link itself, or others beside it, which are closed again."""
        async with AsyncExitStack() as stack:
            links = [link]
            if self.data.connections > 1:
                links = [await self._connect(stack) for _ in range(self.data.connections)]
                for each in links:
                    await each.send(encode_role(Role.MEMORY))
            yield Streams(links, self.machine.memory_map, self.progress, stack.aclose)

    async def _send_passes(self, log: DirtyLog, streams: Streams) -> Sequence[PageSet]:
        """Send RAM until what is left can be sent within the downtime; give what is left."""
        self.progress.phase = MigrationPhase.MEMORY
        sets = await trio.to_thread.run_sync(log.collect)
        self._begin_pass(sets, is_first=True)
        with open_pagemap() as pagemap_fd:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.to_thread.run_sync, prepare_to_save)
                await streams.send(windows(log.regions, sets, pagemap_fd))
        async with Brake.open(self.machine, self.progress) as brake:
            sent_before = 0
            while True:
                sets = await trio.to_thread.run_sync(log.collect)
                self._begin_pass(sets, is_first=False)
                if self._has_converged(sets):
                    return sets
                sent = self.progress.transferred_bytes
                brake.after_pass(sent - sent_before, _bytes_in(sets))
                sent_before = sent
                await streams.send(chunks(sets))

    def _begin_pass(self, sets: Sequence[PageSet], *, is_first: bool) -> None:
        self.progress.begin_pass(_bytes_in(sets), is_first=is_first)
        number = str(self.progress.iteration)
        self.events.emit("vm", "migration-memory-iteration", {"id": number})

    def _has_converged(self, sets: Sequence[PageSet]) -> bool:
        if not (dirty := _bytes_in(sets)) or not self.is_running:
            return True
        downtime_s = self.progress.time_for(dirty)
        is_short = downtime_s is not None and downtime_s * 1000 <= self.data.downtime_ms
        # With the other strategy there is a deadline instead.
        return is_short or self.progress.elapsed_s >= self.data.timeout_s

    @asynccontextmanager
    async def _standing(self) -> AsyncIterator[None]:
        """The VM stands, its disks unlocked for the other side; a failure is undone at the end."""
        began = trio.current_time()
        self.progress.phase = MigrationPhase.STATE
        if self.is_running:
            await self.machine.pause()
        try:
            if self.guest is not None and self.guest.has_wish:
                raise StateError("The guest has reset or powered off meanwhile, which comes first")
            if not self.data.preserve_source:
                self.machine.release_locks()
            yield
            self.progress.downtime_s = trio.current_time() - began
            logger.info(
                "The VM has moved to %s after %.3f s; it stood for %.1f ms of them and sent %d "
                "bytes of memory in %d passes before",
                self.address,
                self.progress.elapsed_s,
                self.progress.downtime_s * 1000,
                self.progress.transferred_bytes,
                self.progress.iteration,
            )
        except LostError:
            raise
        except BaseException:
            # Bounded: locks are asked for during some seconds, and waking waits for nothing.
            self.progress.stands = self.is_running
            with trio.CancelScope(shield=True):
                await self._stay()
            self.progress.stands = False
            raise

    async def _stay(self) -> None:
        """Go on here. Raises: HostError when a disk is another's by now: the VM stands then."""
        with trio.move_on_after(LOCKS_S):
            while True:
                with suppress(HostError):
                    self.machine.take_locks()
                    break
                await trio.sleep(LOCKS_STEP_S)  # Nobody says when the other side has let go.
        self.machine.take_locks()
        if self.is_running:
            await self.machine.resume()

    async def _send_rest(self, log: DirtyLog, streams: Streams, rest: Sequence[PageSet]) -> None:
        """Send what is left, and what changed since that was known."""
        sets = log.collect()
        for late, before in zip(sets, rest, strict=True):
            late.add(before)
        self.progress.begin_pass(_bytes_in(sets), is_first=False)
        with self._standing_time():
            await streams.send(chunks(sets))
            await streams.close()

    @contextmanager
    def _standing_time(self) -> Iterator[None]:
        """What may take as long as the VM may stand for it: a slow peer answers all the time."""
        most_s = max(self.patience_s, DOWNTIMES * self.data.downtime_ms / 1000)
        if not self.is_running or self.data.timeout_strategy is not TimeoutStrategy.CANCEL:
            yield
            return
        try:
            with trio.fail_after(most_s):
                yield
        except trio.TooSlowError:
            raise StateError(
                f"The rest of the VM did not go over in {most_s:g} s, in which it stood; "
                "it runs on here. Give it a longer downtime_ms, or timeout_strategy=Ignore"
            ) from None

    async def _finish(self, link: Link) -> None:
        state = self.machine.save().to_json().encode()
        request = Request(Command.STATE, len(state))
        with self._standing_time():
            await link.send(request.encode() + state)
        await link.expect_ok(request)
        command = Command.COMPLETE if self.is_running else Command.COMPLETE_PAUSED
        await self._commit(link, Request(command))

    async def _commit(self, link: Link, request: Request) -> None:
        """Give the VM away: the point of no return. Raises: RefusedError, LostError."""
        await trio.lowlevel.checkpoint()
        # Whoever stops the migration from here on waits for what becomes of this: memory that
        # follows must be served if the VM is taken.
        self.progress.fate = Fate.UNKNOWN
        # Bounded by the link's patience, twice.
        with trio.CancelScope(shield=True):
            try:
                await link.send(request.encode())
            except PeerError:
                # A request that did not go whole is none, and nothing may come to make it whole.
                link.close()
                self.progress.fate = Fate.HERE
                raise
            try:
                await link.expect_ok(request)
            except RefusedError:
                self.progress.fate = Fate.HERE
                raise
            except PeerError as error:
                raise LostError(
                    "The connection was lost when the VM was being handed over, so it may run at "
                    "the destination and stands here; resume it only when it does not run there"
                ) from error
            self.progress.fate = Fate.GONE

    async def _abandon(self, link: Link) -> None:
        # A link that was closed has nothing more to say.
        with trio.move_on_after(ABANDON_S, shield=True), suppress(PeerError, OSError):
            await link.send(Request(Command.ABANDON).encode())


async def _connected(address: Address) -> trio.socket.SocketType:
    if isinstance(address, TcpAddress):
        stream = await trio.open_tcp_stream(address.host, address.port)
        return stream.socket
    sock = trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        await sock.connect(address.path)
    except BaseException:
        sock.close()
        raise
    return sock


def _bytes_in(sets: Sequence[PageSet]) -> int:
    return PAGE * sum(len(each) for each in sets)

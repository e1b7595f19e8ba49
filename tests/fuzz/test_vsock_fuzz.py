"""Nothing that a guest or a host's program does to a vsock device raises.

The guest sends packets with any header, at any time, with few ports so that they meet connections,
and writes to its rings. Programs of the host connect, say anything, and leave. The worst that may
come of it is a device that needs a reset; after one it serves again.
"""

from __future__ import annotations

import socket
import tempfile
from contextlib import suppress
from pathlib import Path

import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.unit.vsock_guest import CID, OFFERED, VsockGuest, vsock_guest
from vmm.errors import InternalError
from vmm.testing.driver import Driver
from vmm.virtio.spec import Feature, Status
from vmm.vsock.packet import HEADER_BYTES, HOST_CID, STREAM, Header, Op

OWN_PORT = 1 << 30
"""The first that a call of the host's gets."""
LISTENING, GUEST_PORT = 5000, 7
U32 = st.integers(0, (1 << 32) - 1)

HEADERS = st.builds(
    Header,
    st.sampled_from([CID] * 8 + [0, 3]),
    st.sampled_from([HOST_CID] * 8 + [0, CID]),
    st.sampled_from([GUEST_PORT] * 4 + [8]),
    st.sampled_from([OWN_PORT, OWN_PORT + 1, LISTENING, LISTENING, 9]),
    st.sampled_from([0, 1, 10, 4000, 1 << 16, (1 << 32) - 1]),
    st.sampled_from([STREAM] * 8 + [0, 2]),
    st.sampled_from([*Op, *Op, Op.REQUEST, Op.RESPONSE, Op.RW, Op.RW, Op.RW, 0, 8, 0xFFFF]),
    st.sampled_from([0, 1, 2, 3, 0xFFFF_FFFF]),
    st.one_of(st.sampled_from([0, 10, 1 << 16]), U32),
    st.one_of(st.sampled_from([0, 10]), U32),
)
PACKETS = st.tuples(st.just("packet"), HEADERS, st.sampled_from([None, None, None, 0, 3, 5000]))
LINES = st.one_of(
    st.sampled_from([b"CONNECT 7\n", b"CONNECT 7\n", b"CONNECT 8\nmore", b"CONN", b"\n"]),
    st.binary(max_size=40),
)
HOST = st.one_of(
    st.tuples(st.just("connect"), LINES),
    st.tuples(st.just("say"), st.integers(0, 3), st.sampled_from([1, 100, 100_000])),
    st.tuples(st.just("read"), st.integers(0, 3)),
    st.tuples(st.just("shut"), st.integers(0, 3), st.sampled_from([0, 1, 2])),
    st.tuples(st.just("leave"), st.integers(0, 3)),
)
RINGS = st.tuples(
    st.just("ring"), st.integers(0, 2), st.integers(0, 4700), st.binary(min_size=1, max_size=16)
)
OTHER = st.one_of(st.tuples(st.just("post"), st.integers(0, 5)), st.tuples(st.just("reset")), RINGS)
ACTIONS = st.lists(st.one_of(PACKETS, PACKETS, PACKETS, HOST, HOST, OTHER), max_size=30)


class Hostile:
    """A guest and a host's programs that do as they are told."""

    def __init__(self, guest: VsockGuest) -> None:
        self._guest = guest
        self._queues: list[Driver] = []
        self._peers: list[socket.socket] = []
        self._server = self._socket()
        self._server.bind(f"{guest.path}_{LISTENING}")
        self._server.listen()

    async def start(self) -> None:
        features = OFFERED if self._guest.has_packed else OFFERED & ~Feature.RING_PACKED
        self._queues = list(await self._guest.bench.driver.start(features, size=64))
        await self.post(8)

    async def packet(self, header: Header, size: int | None) -> None:
        size = min(header.length, 1 << 16) if size is None else size
        await self._add(1, [header.encode(), bytes(size)][: 1 + bool(size)], [])

    async def post(self, count: int) -> None:
        for _ in range(count):
            await self._add(0, [], [HEADER_BYTES + 1000])

    async def ring(self, index: int, offset: int, data: bytes) -> None:
        self._guest.bench.memory.write(self._queues[index].state.desc + offset, data)
        await self._add(index, [bytes(HEADER_BYTES)], [])

    async def _add(self, index: int, readable: list[bytes], writable: list[int]) -> None:
        queue = self._queues[index]
        # A full ring and memory that is used up are this driver's own limits.
        with suppress(InternalError):
            queue.add(readable, writable)
        self._guest.bench.driver.kick(index)
        await self._settle()

    async def reset(self) -> None:
        await self._guest.bench.driver.reset()
        await self.start()

    async def connect(self, line: bytes) -> None:
        client = self._socket()
        client.connect(self._guest.path)
        with suppress(OSError):
            client.send(line)
        await self._settle()

    async def say(self, index: int, size: int) -> None:
        for peer in self._chosen(index):
            with suppress(OSError):
                peer.send(bytes(size))
        await self._settle()

    async def read(self, index: int) -> None:
        for peer in self._chosen(index):
            with suppress(OSError):
                peer.recv(1 << 20)
        await self._settle()

    async def shut(self, index: int, how: int) -> None:
        for peer in self._chosen(index):
            with suppress(OSError):
                peer.shutdown(how)
        await self._settle()

    async def leave(self, index: int) -> None:
        for peer in self._chosen(index):
            peer.close()
            self._peers.remove(peer)
        await self._settle()

    def _chosen(self, index: int) -> list[socket.socket]:
        with suppress(BlockingIOError):
            self._peers.append(self._server.accept()[0])
            self._peers[-1].setblocking(False)
        return self._peers[1:][index : index + 1]

    def _socket(self) -> socket.socket:
        made = socket.socket(socket.AF_UNIX)
        made.setblocking(False)
        self._peers.append(made)
        return made

    async def _settle(self) -> None:
        for _ in range(4):
            await trio.lowlevel.checkpoint()

    def close(self) -> None:
        for peer in self._peers:
            peer.close()


async def play(folder: Path, has_packed: bool, actions: list[tuple[object, ...]]) -> None:
    async with vsock_guest(folder) as guest:
        guest.has_packed = has_packed
        hostile = Hostile(guest)
        try:
            await hostile.start()
            for name, *arguments in actions:
                await getattr(hostile, str(name))(*arguments)
        finally:
            hostile.close()
        # Whatever it was, a reset mends it.
        await guest.start()
        assert not guest.bench.driver.status & Status.NEEDS_RESET
        await guest.forget()  # Programs of the host may have been waiting to connect.
        stream, port = await guest.called_by_host(GUEST_PORT)
        guest.send(Op.RW, port, GUEST_PORT, b"alive")
        assert await stream.receive_some(5) == b"alive"


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.booleans(), ACTIONS)
def test_no_guest_and_no_peer_breaks_more_than_the_device(
    has_packed: bool, actions: list[tuple[object, ...]]
) -> None:
    with tempfile.TemporaryDirectory(prefix="vsock-") as folder:
        trio.run(play, Path(folder), has_packed, actions)

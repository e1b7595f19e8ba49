"""A guest's side of a vsock device, and a device on a unix socket to go with it."""

from __future__ import annotations

import socket
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from vmm.config.vsock import VsockConfig
from vmm.machine.vsocks import open_vsock
from vmm.testing.driver import Driver
from vmm.testing.virtio_pci import Bench, driven
from vmm.virtio.spec import Common, Feature
from vmm.vsock.credit import ROOM_BYTES
from vmm.vsock.packet import HEADER_BYTES, HOST_CID, STREAM, Header, Op

CID = 42
OFFERED = Feature.VERSION_1 | Feature.IN_ORDER | Feature.RING_PACKED | Feature.RING_RESET
ROOM = 256 << 10
"""What this guest says it keeps for each of its streams."""
BUFFER_BYTES = 4096
CHUNK = bytes(range(256)) * 64
WAIT_S = 5.0


class VsockGuest:
    """Sends packets of any kind and collects those that come."""

    def __init__(self, bench: Bench, path: str) -> None:
        self.bench = bench
        self.path = path
        self.cid = CID
        self.has_packed = False
        self._come: deque[tuple[Header, bytes]] = deque()
        self._queues: list[Driver] = []
        self._streams: list[trio.SocketStream] = []

    async def start(self, buffers: int = 16) -> None:
        """Bring the device up and post buffers for packets."""
        features = OFFERED if self.has_packed else OFFERED & ~Feature.RING_PACKED
        self._queues = list(await self.bench.driver.start(features))
        self.post(buffers)

    async def reset_queue(self, index: int) -> None:
        """Take a queue from the device, with what is posted in it."""
        driver = self.bench.driver
        await driver.set(Common.QUEUE_SELECT, index)
        await driver.set(Common.QUEUE_RESET, 1)
        while driver.get(Common.QUEUE_RESET):
            await trio.testing.wait_all_tasks_blocked()

    async def give_queue(self, index: int) -> None:
        """Give the device a queue again, an empty one."""
        self._queues[index] = await self.bench.driver.queue(index)

    def post(self, buffers: int, *pieces: int) -> None:
        """Give the device buffers for packets."""
        for _ in range(buffers):
            self._queues[0].add(writable=pieces or [HEADER_BYTES + BUFFER_BYTES])
        self.bench.driver.kick(0)

    def add_event(self) -> bool:
        """Give the device a buffer for an event, and say nothing; whether it wanted no kick."""
        self._queues[2].add(writable=[4])
        return not self._queues[2].wants_kick()

    def post_event(self) -> None:
        """Give the device a buffer for an event."""
        self.add_event()
        self.bench.driver.kick(2)

    async def event(self) -> bytes:
        """Wait for an event."""
        while not (used := self._queues[2].collect()):
            await self.bench.interrupt(3)
        return used[0].data

    def send_chain(self, *pieces: bytes) -> None:
        """Send bytes as they are."""
        self._queues[1].add(pieces)
        self.bench.driver.kick(1)
        self._queues[1].collect()

    def send(
        self,
        op: Op | int,
        host_port: int,
        guest_port: int,
        data: bytes = b"",
        *,
        flags: int = 0,
        room: int = ROOM,
        taken: int = 0,
        **fields: int,
    ) -> None:
        """Send a packet; ``fields`` replace what it would have."""
        header = Header(
            self.cid, HOST_CID, guest_port, host_port, len(data), STREAM, op, flags, room, taken
        )._replace(**fields)
        self.send_chain(header.encode() + data[:10], *([data[10:]] if data[10:] else []))

    async def receive(self, host_cid: int = HOST_CID) -> tuple[Header, bytes]:
        """Wait for the next packet; its buffer is posted again."""
        while not self._come:
            for used in self._queues[0].collect():
                header = Header.decode(used.data[:HEADER_BYTES])
                self._come.append((header, used.data[HEADER_BYTES:]))
                self.post(1)
            if not self._come:
                await self.bench.interrupt(1)
        header, data = self._come.popleft()
        assert header.length == len(data)
        assert (header.src_cid, header.dst_cid) == (host_cid, self.cid)
        return header, data

    async def hears(self, op: Op, **fields: int) -> Header:
        """Wait for a packet and check what it is."""
        header, _ = await self.receive()
        assert header.op == op, header
        assert header == header._replace(**fields)
        return header

    async def forget(self) -> None:
        """Take no notice of what has come so far."""
        await trio.testing.wait_all_tasks_blocked(0.01)
        self._come.clear()
        while used := self._queues[0].collect():
            self.post(len(used))
            await trio.testing.wait_all_tasks_blocked()

    async def hears_nothing(self) -> None:
        """See that the device has said all it has to say."""
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert not self._come
        assert not self._queues[0].collect()

    async def hears_data(self, size: int) -> bytes:
        """Wait for so many bytes of one stream."""
        data = b""
        while len(data) < size:
            header, piece = await self.receive()
            assert header.op in (Op.RW, Op.CREDIT_UPDATE), header
            data += piece
        return data

    async def send_until_kept(self, host_port: int, guest_port: int, kept: int) -> int:
        """Send CHUNKs until the device keeps so many bytes that its peer does not take.

        Returns how many bytes were sent in all.
        """
        sent = 0
        while True:
            self.send(Op.RW, host_port, guest_port, CHUNK)
            sent += len(CHUNK)
            await trio.testing.wait_all_tasks_blocked()
            self.send(Op.CREDIT_REQUEST, host_port, guest_port)
            header = await self.hears(Op.CREDIT_UPDATE, buf_alloc=ROOM_BYTES)
            if sent - header.fwd_cnt >= kept:
                return sent

    async def silent_client(self) -> trio.SocketStream:
        """Connect as a host's program that says nothing yet; it is closed at the end."""
        stream = await trio.open_unix_socket(self.path)
        self._streams.append(stream)
        return stream

    async def called_by_host(self, guest_port: int) -> tuple[trio.SocketStream, int]:
        """Be called by a host's program: its stream, and its port."""
        stream = await self.silent_client()
        await stream.send_all(b"CONNECT %d\n" % guest_port)
        request = await self.hears(Op.REQUEST, dst_port=guest_port, type=STREAM)
        self.send(Op.RESPONSE, request.src_port, guest_port)
        assert await read_line(stream) == b"OK %d\n" % request.src_port
        return stream, request.src_port

    async def call_host(self, port: int, guest_port: int, room: int = ROOM) -> trio.SocketStream:
        """Call a host's program that listens for this call only: its stream."""
        with listener(f"{self.path}_{port}") as server:
            self.send(Op.REQUEST, port, guest_port, room=room)
            with trio.fail_after(WAIT_S):
                peer, _ = await server.accept()
        await trio.Path(f"{self.path}_{port}").unlink()
        self._streams.append(trio.SocketStream(peer))
        await self.hears(Op.RESPONSE, src_port=port, dst_port=guest_port)
        return self._streams[-1]

    async def hang_up(self) -> None:
        """Close every stream that is still open."""
        for stream in self._streams:
            await stream.aclose()


def listener(path: str) -> trio.socket.SocketType:
    """A host's program that listens."""
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    server.bind(path)
    server.listen()
    server.setblocking(False)
    return trio.socket.from_stdlib_socket(server)


async def read_line(stream: trio.SocketStream) -> bytes:
    """Read up to a line feed, and nothing behind it."""
    line = b""
    with trio.fail_after(WAIT_S):
        while not line.endswith(b"\n") and (byte := await stream.receive_some(1)):
            line += byte
    return line


async def read_all(stream: trio.SocketStream, size: int) -> bytes:
    """Read so many bytes, or up to the end of the stream."""
    data = b""
    with trio.fail_after(WAIT_S):
        while len(data) < size and (piece := await stream.receive_some(size - len(data))):
            data += piece
    return data


@asynccontextmanager
async def vsock_guest(folder: Path) -> AsyncIterator[VsockGuest]:
    """A device on a socket in a folder, and its guest, which has not started."""
    path = str(folder / "vsock")
    config = VsockConfig(cid=CID, socket=path)
    with open_vsock(config, "_vsock0") as device:
        async with driven(device) as bench:
            guest = VsockGuest(bench, path)
            try:
                yield guest
            finally:
                with trio.CancelScope(shield=True):
                    await guest.hang_up()

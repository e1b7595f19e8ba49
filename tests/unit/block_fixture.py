"""A disk and its driver, without a guest: for tests of requests."""

from __future__ import annotations

import os
import struct
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import NamedTuple

import trio

from vmm.block.formats import Format
from vmm.block.image import open_image
from vmm.kvm_cffi import Virtqueue
from vmm.kvm_cffi.limiter import Limiter
from vmm.testing.driver import Driver, PackedDriver, SplitDriver
from vmm.testing.memory import FakeMemory
from vmm.virtio.block import Block, BlockFeature
from vmm.virtio.device import Active

IN, OUT, FLUSH, GET_ID, DISCARD, WRITE_ZEROES = 0, 1, 4, 8, 11, 13
OK, IOERR, UNSUPP = 0, 1, 2
UNANSWERED = 0xEE
SECTOR = 512
WITH_FLUSH = BlockFeature.FLUSH | BlockFeature.CONFIG_WCE


class Answer(NamedTuple):
    """What became of a request; ``data`` is the room for data, whatever was written to it."""

    status: int
    written: int
    data: bytes


def header(kind: int, sector: int) -> bytes:
    """The first 16 bytes of a request."""
    return struct.pack("<IIQ", kind, 0, sector)


def segment(sector: int, count: int, flags: int = 0) -> bytes:
    """The payload of DISCARD and WRITE_ZEROES."""
    return struct.pack("<QII", sector, count, flags)


class BlockDriver:
    """The driver of one queue of a disk. ``queue`` is the device's side of it."""

    def __init__(self, memory: FakeMemory, ring: Driver) -> None:
        self.memory = memory
        self.ring = ring
        self._flags = os.EFD_CLOEXEC | os.EFD_NONBLOCK
        self.kick_fd = os.eventfd(0, self._flags)
        self.interrupt_fd = os.eventfd(0, self._flags)
        self.queue = Virtqueue(
            memory.map(), ring.state, kick_fd=self.kick_fd, interrupt_fd=self.interrupt_fd
        )
        self._rooms: dict[int, list[tuple[int, int]]] = {}
        self._answers: dict[int, Answer] = {}

    def close(self) -> None:
        """Close the descriptors."""
        os.close(self.kick_fd)
        os.close(self.interrupt_fd)

    def send(
        self, readable: Sequence[bytes], room: Sequence[int] = (1,), *, is_indirect: bool = False
    ) -> int:
        """Make a request of any shape; the status is the last byte of the room."""
        before = {id(each) for each in self.ring._requests.values()}
        token = self.ring.add(readable, room, is_indirect=is_indirect)
        (request,) = [r for r in self.ring._requests.values() if id(r) not in before]
        rooms = [(each.gpa, each.size) for each in request.buffers if each.is_writable]
        if rooms:
            self.memory.write(sum(rooms[-1]) - 1, bytes([UNANSWERED]))
        self._rooms[token] = rooms
        return token

    def kick(self) -> None:
        """Ring the doorbell if the device wants that."""
        if self.ring.wants_kick():
            os.eventfd_write(self.kick_fd, 1)

    def collect(self) -> None:
        """Take what has been answered."""
        for used in self.ring.collect():
            room = b"".join(self.memory.read(*each) for each in self._rooms.pop(used.token))
            status = room[-1] if room else UNANSWERED
            self._answers[used.token] = Answer(status, used.written, room[:-1])

    async def answer(self, token: int) -> Answer:
        """Wait for a request's end."""
        while True:
            with trio.fail_after(10):
                self.ring.enable()
                self.collect()
                if token in self._answers:
                    return self._answers.pop(token)
                await trio.lowlevel.wait_readable(self.interrupt_fd)
                os.eventfd_read(self.interrupt_fd)

    async def ask(
        self, readable: Sequence[bytes], room: Sequence[int] = (1,), *, is_indirect: bool = False
    ) -> Answer:
        """Make a request and wait for its end."""
        token = self.send(readable, room, is_indirect=is_indirect)
        self.kick()
        return await self.answer(token)

    async def read(self, sector: int, count: int = 1) -> Answer:
        """Read whole sectors."""
        return await self.ask([header(IN, sector)], [count * SECTOR, 1])

    async def write(self, sector: int, data: bytes) -> Answer:
        """Write whole sectors."""
        return await self.ask([header(OUT, sector), data])

    async def flush(self) -> Answer:
        """Have what was written made stable."""
        return await self.ask([header(FLUSH, 0)])


class Disk(NamedTuple):
    """A running disk: its driver of the first queue, and what it is made of."""

    driver: BlockDriver
    drivers: tuple[BlockDriver, ...]
    device: Block
    path: Path
    serving: trio.CancelScope


def make_image(path: Path, size: int) -> None:
    """Make an image of zeros, unless there is one."""
    if not path.exists():
        path.touch()
        os.truncate(path, size)


@contextmanager
def block_device(
    path: Path,
    *,
    queue_sizes: tuple[int, ...] = (128,),
    read_only: bool = False,
    direct: bool = False,
    is_detected: bool = False,
    sparse: bool = True,
    serial: str | None = None,
    limiter: Limiter | None = None,
    wants_ring: bool = True,
) -> Iterator[Block]:
    """A disk over an image that exists."""
    wanted = None if is_detected else Format.RAW
    with open_image(str(path), wanted=wanted, read_only=read_only, direct=direct) as image:
        yield Block(
            "disk",
            image.file,
            queue_sizes,
            serial=serial,
            sparse=sparse,
            guards_first_sector=image.guards_first_sector,
            limiter=limiter,
            wants_ring=wants_ring,
        )


@contextmanager
def drivers_of(
    device: Block,
    *,
    memory_bytes: int = 8 << 20,
    is_packed: bool = False,
    has_event_idx: bool = False,
) -> Iterator[tuple[BlockDriver, ...]]:
    """A driver for each queue of a disk, all in one memory."""
    kind = PackedDriver if is_packed else SplitDriver
    memory = FakeMemory((0, memory_bytes))
    drivers = tuple(
        BlockDriver(
            memory, kind(memory, size, index=at, has_event_idx=has_event_idx, has_indirect=True)
        )
        for at, size in enumerate(device.queue_sizes)
    )
    try:
        yield drivers
    finally:
        for driver in drivers:
            driver.close()


@asynccontextmanager
async def serving(
    device: Block, drivers: tuple[BlockDriver, ...], features: int = WITH_FLUSH
) -> AsyncIterator[trio.CancelScope]:
    """Have a device serve its queues; leaving stops it."""
    queues = tuple(driver.queue for driver in drivers)
    active = Active(features, queues, drivers[0].memory, lambda: None)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(device.run_queues, active)
        yield nursery.cancel_scope
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def running_disk(
    path: Path,
    *,
    size: int = 1 << 20,
    memory_bytes: int = 8 << 20,
    features: int = WITH_FLUSH,
    queue_sizes: tuple[int, ...] = (128,),
    is_packed: bool = False,
    has_event_idx: bool = False,
    read_only: bool = False,
    direct: bool = False,
    is_detected: bool = False,
    sparse: bool = True,
    serial: str | None = None,
    limiter: Limiter | None = None,
    wants_ring: bool = True,
) -> AsyncIterator[Disk]:
    """A disk with its drivers over an image, which is made with ``size`` bytes unless it exists."""
    make_image(path, size)
    with (
        block_device(
            path,
            queue_sizes=queue_sizes,
            read_only=read_only,
            direct=direct,
            is_detected=is_detected,
            sparse=sparse,
            serial=serial,
            limiter=limiter,
            wants_ring=wants_ring,
        ) as device,
        drivers_of(
            device, memory_bytes=memory_bytes, is_packed=is_packed, has_event_idx=has_event_idx
        ) as drivers,
    ):
        async with serving(device, drivers, features) as scope:
            yield Disk(drivers[0], drivers, device, path, scope)

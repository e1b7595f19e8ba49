"""Nothing that a guest does to a small device raises.

A driver sets the device up and adds what it likes to the queues: requests of any bytes and rooms,
broken rings, writes to the configuration. It takes queues back. The worst that may come of it is a
device that needs a reset.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from contextlib import suppress

import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from vmm.console.null import NullBackend
from vmm.errors import GuestError, InternalError
from vmm.legacy.pvpanic import Pvpanic
from vmm.machine.memory_blocks import MemoryBlocks
from vmm.testing.driver import Driver
from vmm.testing.memory import FakeMemory
from vmm.testing.virtio_pci import Bench, RecordedEvents, driven
from vmm.virtio.balloon import Balloon
from vmm.virtio.console import Console
from vmm.virtio.device import VirtioDevice
from vmm.virtio.mem import Mem
from vmm.virtio.rtc import Rtc
from vmm.virtio.spec import Status
from vmm.virtio.watchdog import Watchdog

MIB = 1 << 20
RAM_BYTES = 8 * MIB

PIECES = st.one_of(
    st.binary(max_size=40),
    # Page numbers, and requests to the clock.
    st.lists(st.integers(0, 4096).map(lambda n: n.to_bytes(4, "little")), max_size=20).map(
        b"".join
    ),
    st.sampled_from([1, 2, 0x1000, 0x1001, 0x1002]).map(
        lambda n: n.to_bytes(8, "little") + bytes(8)
    ),
    # Requests to memory that is plugged, of which some are in order.
    st.tuples(st.integers(0, 4), st.integers(-1, 5), st.integers(0, 5)).map(
        lambda n: struct.pack("<H6xQH6x", n[0], (n[1] % (1 << 44)) << 20, n[2])
    ),
)
REQUESTS = st.tuples(
    st.just("add"),
    st.integers(0, 2),
    st.lists(PIECES, max_size=3),
    st.lists(st.sampled_from([0, 1, 7, 8, 16, 4096, 65536]), max_size=3),
)
CONFIG_WRITES = st.tuples(
    st.just("config"), st.integers(0, 20), st.sampled_from([1, 2, 4, 8]), st.integers(0, 1 << 32)
)
RING_WRITES = st.tuples(
    st.just("ring"), st.integers(0, 2), st.integers(0, 1200), st.binary(min_size=1, max_size=16)
)
RESETS = st.tuples(st.sampled_from(["reset", "reset_packed"]))
QUEUE_RESETS = st.tuples(st.just("reset_queue"), st.integers(0, 2))
ACTIONS = st.lists(
    st.one_of(REQUESTS, REQUESTS, CONFIG_WRITES, RING_WRITES, RESETS, QUEUE_RESETS), max_size=15
)


class Ram:
    """Memory that may be discarded: anything else is the guest's fault."""

    def discard(self, gpa: int, size: int) -> None:
        assert gpa >= 0
        assert size > 0
        if gpa + size > RAM_BYTES:
            raise GuestError(f"Guest address {gpa:#x} is not RAM")

    def provide(self, gpa: int, size: int) -> Iterator[None]:
        assert gpa >= 0
        assert size > 0
        yield

    def gpa_of(self, view: memoryview) -> int:
        assert len(view) > 0
        return 0


class Typing(NullBackend):
    """A console whose user never stops typing."""

    async def read(self) -> bytes:  # type: ignore[override]  # this one has input
        await trio.lowlevel.checkpoint()
        return b"key"


class NoLifecycle:
    def request_reset(self) -> None:
        raise AssertionError("No second passes here")


DEVICES: dict[str, Callable[[], VirtioDevice]] = {
    "console": lambda: Console("__console", Typing()),
    "balloon": lambda: Balloon(
        "__balloon", Ram(), MIB, deflate_on_oom=True, free_page_reporting=True
    ),
    "mem": lambda: Mem("mem0", Ram(), MemoryBlocks(0, 4 * MIB, MIB), 3 * MIB, node=0),
    "watchdog": lambda: Watchdog("__watchdog", NoLifecycle()),
    "rtc": lambda: Rtc("__rtc", lambda: 0),
}


class Hostile:
    """A driver that does what it is told, to a device that is up, or broken, or neither."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self._queues: list[Driver] = []

    async def start(self, *, is_packed: bool = False) -> None:
        self._queues = list(await self._bench.driver.start(size=8, is_packed=is_packed))

    async def add(self, index: int, readable: list[bytes], writable: list[int]) -> None:
        queue = self._queues[index % len(self._queues)]
        # A full ring, and nothing to add, are this driver's own limits.
        with suppress(InternalError):
            queue.add(readable, writable)
        self._bench.driver.kick(index % len(self._queues))
        for _ in range(5):
            await trio.lowlevel.checkpoint()

    async def config(self, offset: int, size: int, value: int) -> None:
        await self._bench.driver.write(0x4000 + offset, size, value % (1 << 8 * size))
        assert 0 <= self._bench.driver.read(0x4000 + offset, size) < 1 << 8 * size

    async def ring(self, index: int, offset: int, data: bytes) -> None:
        queue = self._queues[index % len(self._queues)]
        self._bench.memory.write(queue.state.desc + offset, data)
        await self.add(index, [b"x"], [16])

    async def reset(self, *, is_packed: bool = False) -> None:
        await self._bench.driver.reset()
        assert self._bench.driver.status == 0
        await self.start(is_packed=is_packed)

    async def reset_packed(self) -> None:
        await self.reset(is_packed=True)

    async def reset_queue(self, index: int) -> None:
        index %= len(self._queues)
        await self._bench.driver.reset_queue(index)
        self._queues[index] = await self._bench.driver.queue(index, 8)


async def play(make: Callable[[], VirtioDevice], actions: list[tuple[object, ...]]) -> None:
    async with driven(make(), FakeMemory((0, RAM_BYTES))) as bench:
        hostile = Hostile(bench)
        await hostile.start()
        for name, *arguments in actions:
            await getattr(hostile, str(name))(*arguments)
        # Whatever it was, a reset mends it.
        await hostile.reset()
        assert not bench.driver.status & Status.NEEDS_RESET


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(sorted(DEVICES)), ACTIONS)
def test_no_guest_breaks_more_than_its_device(name: str, actions: list[tuple[object, ...]]) -> None:
    trio.run(play, DEVICES[name], actions)


@given(st.lists(st.tuples(st.integers(0, 15), st.sampled_from([1, 2, 4, 8]), st.integers(0, 255))))
def test_no_access_to_pvpanic_raises_or_floods(accesses: list[tuple[int, int, int]]) -> None:
    events = RecordedEvents()
    pvpanic = Pvpanic("__pvpanic", events)

    for offset, size, value in accesses:
        pvpanic.write(offset, size, value)
        assert 0 <= pvpanic.read(offset, size) < 1 << 8 * size

    assert len(events.seen) <= 3

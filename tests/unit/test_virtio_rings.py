"""Every device with both ring formats, and with each of its queues taken back while it runs."""

from __future__ import annotations

import os
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
import trio

from tests.unit.block_fixture import IN, OK, OUT, SECTOR, block_device, header, make_image
from tests.unit.test_virtio_balloon import FakeRam, balloon, numbers
from tests.unit.test_virtio_net import arrival, net, order
from tests.unit.test_virtio_watchdog import Resets
from vmm.testing.backends import MemoryConsole, MemoryTap
from vmm.testing.driver import Driver, Used
from vmm.testing.memory import FakeMemory
from vmm.testing.packets import HEADER, RX_HEADER
from vmm.testing.virtio_pci import Bench, driven
from vmm.virtio.console import Console
from vmm.virtio.device import VirtioDevice
from vmm.virtio.pmem import Pmem
from vmm.virtio.rng import Rng
from vmm.virtio.rtc import Rtc
from vmm.virtio.spec import Feature, Status
from vmm.virtio.watchdog import Watchdog

SIZES = {"split": 8, "packed": 6}
"""Descriptors a queue: only a packed ring's number may be any."""
ROUNDS = 7
"""More than a ring has room for."""

Use = Callable[[Bench, Sequence[Driver]], Awaitable[None]]
"""Puts every queue to use and checks what comes of it."""


async def ask(
    bench: Bench, queue: Driver, readable: Sequence[bytes] = (), writable: Sequence[int] = ()
) -> Used:
    """Make a request, ring the doorbell, and wait for the interrupt and the answer."""
    index = queue.state.index
    queue.add(readable, writable)
    bench.driver.kick(index)
    await bench.interrupt(index + 1)
    [used] = queue.collect()
    queue.enable()
    return used


async def use_rng(bench: Bench, queues: Sequence[Driver]) -> None:
    first, second = [(await ask(bench, queues[0], (), [16])).data for _ in range(2)]
    assert len(first) == len(second) == 16
    assert first != second


async def use_disk(bench: Bench, queues: Sequence[Driver]) -> None:
    for sector, queue in enumerate(queues):
        data = os.urandom(SECTOR)
        written = await ask(bench, queue, [header(OUT, sector), data], [1])
        assert written.data == bytes([OK])
        read = await ask(bench, queue, [header(IN, sector)], [SECTOR, 1])
        assert read.data == data + bytes([OK])


async def use_balloon(bench: Bench, queues: Sequence[Driver]) -> None:
    for queue, page in zip(queues, (3, 5), strict=False):
        assert (await ask(bench, queue, [numbers([page])])).written == 0
    assert (await ask(bench, queues[2], (), [4096])).written == 0


async def use_watchdog(bench: Bench, queues: Sequence[Driver]) -> None:
    assert (await ask(bench, queues[0], (), [1])).data == b"\x01"


async def use_pmem(bench: Bench, queues: Sequence[Driver]) -> None:
    assert (await ask(bench, queues[0], [bytes(4)], [4])).data == bytes(4)


async def use_clock(bench: Bench, queues: Sequence[Driver]) -> None:
    answer = await ask(bench, queues[0], [struct.pack("<H6xH6x", 1, 0)], [16])
    assert answer.data == bytes(8) + struct.pack("<Q", 42)


def use_console(backend: MemoryConsole) -> Use:
    async def use(bench: Bench, queues: Sequence[Driver]) -> None:
        before = len(backend.written)
        await ask(bench, queues[1], [b"printed"])
        await trio.testing.wait_all_tasks_blocked()
        assert backend.written[before:] == b"printed"
        backend.type.send_nowait(b"typed")
        assert (await ask(bench, queues[0], (), [64])).data == b"typed"

    return use


def use_net(tap: MemoryTap) -> Use:
    async def use(bench: Bench, queues: Sequence[Driver]) -> None:
        rx, tx, _, _, commands = queues
        await ask(bench, tx, [HEADER, b"to the world"])
        assert await arrival(tap.wires[0]) == HEADER + b"to the world"
        tap.wires[0].send(HEADER + b"to the guest")
        assert (await ask(bench, rx, (), [12, 100])).data == RX_HEADER + b"to the guest"
        assert await order(bench, commands, b"\0\0\1") == b"\0"

    return use


@asynccontextmanager
async def opened(
    kind: str, folder: Path, memory: FakeMemory
) -> AsyncIterator[tuple[VirtioDevice, Use]]:
    """A device and how to use it."""
    async with AsyncExitStack() as stack:
        match kind:
            case "rng":
                fd = os.open("/dev/urandom", os.O_RDONLY | os.O_NONBLOCK)
                stack.callback(os.close, fd)
                yield Rng("rng", fd, "/dev/urandom"), use_rng
            case "disk":
                make_image(folder / "disk", 1 << 20)
                device = stack.enter_context(block_device(folder / "disk", queue_sizes=(16, 16)))
                yield device, use_disk
            case "net":
                tap = stack.enter_context(MemoryTap(2))
                yield net(tap), use_net(tap)
            case "console":
                backend = MemoryConsole()
                yield Console("console", backend), use_console(backend)
            case "balloon":
                yield balloon(FakeRam(memory)), use_balloon
            case "pmem":
                yield Pmem("pmem", 1 << 40, 2 << 20, flush=lambda: None), use_pmem
            case "watchdog":
                yield Watchdog("watchdog", Resets()), use_watchdog
            case _:
                yield Rtc("rtc", lambda: 42), use_clock


KINDS = ("rng", "disk", "net", "console", "balloon", "pmem", "watchdog", "clock")


@pytest.mark.parametrize("ring", ["split", "packed"])
@pytest.mark.parametrize("kind", KINDS)
async def test_device_serves_the_ring_agreed_on_past_its_end_and_after_the_reset_of_any_queue(
    tmp_path: Path, kind: str, ring: str
) -> None:
    memory = FakeMemory((0, 8 << 20))
    async with opened(kind, tmp_path, memory) as (device, use), driven(device, memory) as bench:
        driver = bench.driver
        queues = await driver.start(size=SIZES[ring], is_packed=ring == "packed")
        assert bool(driver.features & Feature.RING_PACKED) is (ring == "packed")
        for _ in range(ROUNDS):
            await use(bench, queues)
        for index in range(len(queues)):
            await driver.reset_queue(index)
            queues[index] = await driver.queue(index, SIZES[ring])
            await use(bench, queues)

        assert driver.status == (
            Status.ACKNOWLEDGE | Status.DRIVER | Status.FEATURES_OK | Status.DRIVER_OK
        )
        assert bench.events.names == ["activated"]


@pytest.mark.parametrize("is_packed", [False, True])
async def test_buffer_of_a_queue_that_was_reset_is_not_written_to_any_more(
    tmp_path: Path, is_packed: bool
) -> None:
    memory = FakeMemory((0, 8 << 20))
    async with opened("net", tmp_path, memory) as (device, _), driven(device, memory) as bench:
        queues = await bench.driver.start(size=8, is_packed=is_packed)
        queues[0].add(writable=[12, 100])
        bench.driver.kick(0)
        await trio.testing.wait_all_tasks_blocked()

        await bench.driver.reset_queue(0)
        before = memory.contents()
        wire = device._tap.wires[0]  # type: ignore[attr-defined]
        wire.send(HEADER + b"for later")
        await trio.testing.wait_all_tasks_blocked()

        assert memory.contents() == before
        fresh = await bench.driver.queue(0, 8)
        assert (await ask(bench, fresh, (), [12, 100])).data == RX_HEADER + b"for later"

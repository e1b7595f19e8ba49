"""Memory that the guest plugs: each request, what is refused, and what the guest is asked for."""

from __future__ import annotations

import struct
from collections.abc import AsyncIterator, Iterator

import pytest
import trio

from vmm.errors import ConfigError, HostError
from vmm.machine.memory_blocks import MemoryBlocks
from vmm.testing.virtio_pci import Bench, driven
from vmm.virtio.mem import Kind, Mem, Outcome, State
from vmm.virtio.saved import SavedMem
from vmm.virtio.spec import Feature, Status

MIB = 1 << 20
BLOCK = 2 * MIB
BASE = 4 << 30
COUNT = 64
SIZE = COUNT * BLOCK
ASKED = 16 * BLOCK
RINGS = Feature.VERSION_1 | Feature.RING_PACKED | Feature.RING_RESET


class FakeRam:
    """Keeps what is provided and discarded, in the steps in which it is."""

    def __init__(self) -> None:
        self.provided: list[tuple[int, int]] = []
        self.discarded: list[tuple[int, int]] = []
        self.error: HostError | None = None

    def provide(self, gpa: int, size: int) -> Iterator[None]:
        self.provided.append((gpa, size))
        yield
        if self.error is not None:
            raise self.error
        yield

    def discard(self, gpa: int, size: int) -> None:
        self.discarded.append((gpa, size))


@pytest.fixture
def ram() -> FakeRam:
    return FakeRam()


@pytest.fixture
def blocks() -> MemoryBlocks:
    return MemoryBlocks(BASE, SIZE, BLOCK)


@pytest.fixture
def mem(ram: FakeRam, blocks: MemoryBlocks) -> Mem:
    return Mem("near", ram, blocks, ASKED, node=3)


@pytest.fixture
async def bench(mem: Mem) -> AsyncIterator[Bench]:
    async with driven(mem) as bench:
        await bench.driver.start()
        yield bench


def request(kind: int, first: int = 0, count: int = 0) -> bytes:
    return struct.pack("<H6xQH6x", kind, BASE + first * BLOCK, count)


async def answer(bench: Bench, sent: bytes) -> tuple[int, int]:
    """What a driver that sends one request reads in answer: the outcome and the state."""
    queue = await bench.driver.queue(0, 8)
    queue.add([sent], [10])
    bench.driver.kick(0)
    with trio.fail_after(5):
        while not (used := queue.collect()):
            await trio.lowlevel.checkpoint()
    await bench.driver.reset_queue(0)
    outcome, state = struct.unpack("<H6xH", used[0].data)
    return outcome, state


async def ask(bench: Bench, kind: int, first: int = 0, count: int = 0) -> tuple[int, int]:
    await bench.driver.reset_queue(0)
    return await answer(bench, request(kind, first, count))


def config(bench: Bench) -> tuple[int, ...]:
    return struct.unpack("<QH6xQQQQQ", bench.device.read_config(0, 4096))


@pytest.mark.parametrize(("node", "features"), [(None, 0b10), (0, 0b11), (3, 0b11)])
async def test_features_name_the_node_where_there_are_any(
    ram: FakeRam, blocks: MemoryBlocks, node: int | None, features: int
) -> None:
    async with driven(Mem("near", ram, blocks, 0, node=node)) as bench:
        assert await bench.driver.offered() == RINGS | features
        assert config(bench)[1] == (node or 0)


async def test_config_shows_the_region_and_what_is_asked_for(bench: Bench) -> None:
    assert len(bench.device.read_config(0, 4096)) == 56
    assert config(bench) == (BLOCK, 3, BASE, SIZE, SIZE, 0, ASKED)


async def test_plugged_blocks_count_as_memory(bench: Bench, ram: FakeRam) -> None:
    assert await ask(bench, Kind.PLUG, 2, 3) == (Outcome.ACK, 0)
    assert await ask(bench, Kind.PLUG, 5, 1) == (Outcome.ACK, 0)

    assert bench.device.ram_bytes == config(bench)[5] == 4 * BLOCK
    assert ram.provided == [(BASE + 2 * BLOCK, 3 * BLOCK), (BASE + 5 * BLOCK, BLOCK)]
    assert ram.discarded == []


async def test_unplugged_blocks_are_given_back_in_steps(
    bench: Bench, mem: Mem, ram: FakeRam
) -> None:
    mem.resize(SIZE)
    await ask(bench, Kind.PLUG, 0, COUNT)

    assert await ask(bench, Kind.UNPLUG, 1, 40) == (Outcome.ACK, 0)

    steps = [(BASE + first * BLOCK, 16 * MIB) for first in (1, 9, 17, 25, 33)]
    assert ram.discarded == steps
    assert bench.device.ram_bytes == (COUNT - 40) * BLOCK


async def test_unplug_all_gives_back_what_is_plugged_and_no_more(
    bench: Bench, ram: FakeRam
) -> None:
    await ask(bench, Kind.PLUG, 2, 2)
    await ask(bench, Kind.PLUG, 7, 1)

    assert await ask(bench, Kind.UNPLUG_ALL) == (Outcome.ACK, 0)

    assert ram.discarded == [(BASE + 2 * BLOCK, 2 * BLOCK), (BASE + 7 * BLOCK, BLOCK)]
    assert bench.device.ram_bytes == 0


@pytest.mark.parametrize(
    ("first", "count", "state"),
    [
        (2, 3, State.PLUGGED),
        (5, COUNT - 5, State.UNPLUGGED),
        (0, COUNT, State.MIXED),
        (4, 2, State.MIXED),
    ],
)
async def test_state_is_that_of_all_the_blocks(
    bench: Bench, first: int, count: int, state: State
) -> None:
    await ask(bench, Kind.PLUG, 2, 3)

    assert await ask(bench, Kind.STATE, first, count) == (Outcome.ACK, state)


async def test_plug_beyond_what_is_asked_for_is_refused(bench: Bench, ram: FakeRam) -> None:
    await ask(bench, Kind.PLUG, 0, 10)

    assert await ask(bench, Kind.PLUG, 10, 7) == (Outcome.NACK, 0)
    assert await ask(bench, Kind.PLUG, 10, 6) == (Outcome.ACK, 0)

    assert len(ram.provided) == 2


@pytest.mark.parametrize(
    ("kind", "first", "count"),
    [
        (Kind.PLUG, 4, 1),
        (Kind.PLUG, 1, 2),
        (Kind.UNPLUG, 1, 1),
        (Kind.UNPLUG, 4, 2),
        (Kind.UNPLUG, 0, 5),
    ],
)
async def test_blocks_that_are_not_as_the_request_takes_them_to_be_stay_so(
    bench: Bench, ram: FakeRam, kind: Kind, first: int, count: int
) -> None:
    await ask(bench, Kind.PLUG, 2, 3)

    assert await ask(bench, kind, first, count) == (Outcome.ERROR, 0)

    assert bench.device.ram_bytes == 3 * BLOCK
    assert ram.discarded == []


@pytest.mark.parametrize("kind", [Kind.PLUG, Kind.UNPLUG, Kind.STATE, 4, 0xFFFF])
@pytest.mark.parametrize(
    ("gpa", "count"),
    [
        (BASE, 0),
        (BASE + 4096, 1),
        (BASE - BLOCK, 1),
        (BASE + SIZE, 1),
        (BASE + SIZE - BLOCK, 2),
        (BASE, 0xFFFF),
        (0, 1),
        ((1 << 64) - BLOCK, 1),
        ((1 << 64) - BLOCK, 0xFFFF),
    ],
)
async def test_request_for_what_is_no_block_of_the_region_is_an_error(
    bench: Bench, ram: FakeRam, kind: int, gpa: int, count: int
) -> None:
    await bench.driver.reset_queue(0)

    sent = struct.pack("<H6xQH6x", kind, gpa, count)
    assert await answer(bench, sent) == (Outcome.ERROR, 0)

    assert (bench.device.ram_bytes, ram.provided, ram.discarded) == (0, [], [])


async def test_request_of_an_unknown_type_is_an_error(bench: Bench) -> None:
    assert await ask(bench, 4, 0, 1) == (Outcome.ERROR, 0)


@pytest.mark.parametrize(("sent", "room"), [(23, 10), (0, 10), (24, 9), (24, 0)])
async def test_request_that_is_cut_off_or_leaves_no_room_breaks_the_device(
    mem: Mem, sent: int, room: int
) -> None:
    async with driven(mem) as bench:
        [queue] = await bench.driver.start()
        queue.add([request(Kind.PLUG, 0, 1)[:sent]], [room] if room else [])

        bench.driver.kick(0)
        await bench.interrupt(0)

        assert bench.driver.status & Status.NEEDS_RESET
        assert bench.device.ram_bytes == 0


async def test_memory_that_the_host_has_not_is_not_plugged(
    bench: Bench, ram: FakeRam, caplog: pytest.LogCaptureFixture
) -> None:
    ram.error = HostError("madvise", 12)
    outcomes = [await ask(bench, Kind.PLUG, 0, 2) for _ in range(5)]
    ram.error = None

    assert outcomes == [(Outcome.BUSY, 0)] * 5
    assert ram.discarded == [(BASE, 2 * BLOCK)] * 5
    assert caplog.text.count("near does not grow") == 3
    assert await ask(bench, Kind.PLUG, 0, 2) == (Outcome.ACK, 0)


async def test_resize_tells_the_driver(bench: Bench, mem: Mem) -> None:
    mem.resize(2 * BLOCK)
    await bench.interrupt(0)

    assert config(bench)[6] == 2 * BLOCK


@pytest.mark.parametrize(
    ("size", "message"),
    [
        (ASKED, "already; give another size"),
        (BLOCK + 4096, "in blocks of 2097152 bytes"),
        (SIZE + BLOCK, f"its hotplug_size is {SIZE}"),
    ],
)
def test_resize_to_what_cannot_be_is_refused(mem: Mem, size: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        mem.resize(size)
    assert mem.requested_size == ASKED


async def test_reset_of_the_device_leaves_the_blocks_plugged(bench: Bench) -> None:
    await ask(bench, Kind.PLUG, 2, 3)

    await bench.driver.reset()
    await bench.driver.start()

    assert await ask(bench, Kind.STATE, 2, 3) == (Outcome.ACK, State.PLUGGED)


async def test_cancelled_unplug_is_done_again(mem: Mem, ram: FakeRam) -> None:
    async with driven(mem) as bench:
        mem.resize(SIZE)
        await bench.driver.start()
        await ask(bench, Kind.PLUG, 0, COUNT)
        await bench.driver.reset_queue(0)
        queue = await bench.driver.queue(0, 8)
        queue.add([request(Kind.UNPLUG, 0, COUNT)], [10])
        bench.driver.kick(0)
        with trio.fail_after(5):
            while not ram.discarded:
                await trio.lowlevel.checkpoint()
        await bench.transport.sleep()
        assert (queue.collect(), mem.ram_bytes) == ([], SIZE)

        bench.transport.wake()
        with trio.fail_after(5):
            while not queue.collect():
                await trio.lowlevel.checkpoint()

        assert mem.ram_bytes == 0
        whole = [(BASE + at, 16 * MIB) for at in range(0, SIZE, 16 * MIB)]
        assert ram.discarded[-len(whole) :] == whole
        again = ram.discarded[: -len(whole)]
        assert again == whole[: len(again)]


async def test_load_restores_what_is_plugged_and_asked_for(bench: Bench, ram: FakeRam) -> None:
    await ask(bench, Kind.PLUG, 2, 3)
    await ask(bench, Kind.PLUG, COUNT - 1, 1)
    second = Mem("near", ram, MemoryBlocks(BASE, SIZE, BLOCK), 0, node=3)

    second.load(bench.device.save())

    assert second.read_config(0, 64) == bench.device.read_config(0, 64)
    assert second.save() == bench.device.save()
    assert second.save()["plugged"] == [(2, 3), (COUNT - 1, 1)]
    kept = SavedMem.model_validate(second.save()).model_dump()
    assert kept == second.save() | {"plugged": ((2, 3), (COUNT - 1, 1))}


@pytest.mark.parametrize(
    "change",
    [
        {"gpa": BASE + SIZE},
        {"size": 2 * SIZE},
        {"block_size": MIB},
        {"requested_size": SIZE + BLOCK},
        {"requested_size": 1},
        {"requested_size": None},
        {"plugged": None},
        {"plugged": [[0, 0]]},
        {"plugged": [[-1, 2]]},
        {"plugged": [[COUNT - 1, 2]]},
        {"plugged": [[0]]},
        {"plugged": ["ab"]},
    ],
)
def test_load_of_what_save_never_gave_is_refused(mem: Mem, change: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=r"emory zone '?near"):
        mem.load({**mem.save(), **change})

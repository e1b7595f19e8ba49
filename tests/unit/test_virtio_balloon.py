"""The balloon: pages given by number, free memory reported, and the size that is wanted."""

from __future__ import annotations

import struct
from collections.abc import AsyncIterator, Sequence

import pytest
import trio

from vmm.errors import ConfigError, GuestError
from vmm.testing.memory import FakeMemory
from vmm.testing.virtio_pci import Bench, driven
from vmm.virtio.balloon import MAX_PAGES, Balloon
from vmm.virtio.spec import Feature, Status

MIB = 1 << 20
PAGE = 4096
INFLATE, DEFLATE, REPORTING = range(3)


class FakeRam:
    """Keeps what was discarded; 64 MiB from 0 on, as far as page numbers go."""

    def __init__(self, memory: FakeMemory) -> None:
        self.discarded: list[tuple[int, int]] = []
        self._memory = memory

    def discard(self, gpa: int, size: int) -> None:
        if gpa + size > 64 * MIB:
            raise GuestError(f"Guest address {gpa:#x} is not RAM")
        self.discarded.append((gpa, size))

    def gpa_of(self, view: memoryview) -> int:
        from vmm.kvm_cffi import address_of

        [(gpa, _, hva)] = self._memory.regions
        return gpa + address_of(view) - hva


@pytest.fixture
def memory() -> FakeMemory:
    return FakeMemory((0, 8 * MIB))


@pytest.fixture
def ram(memory: FakeMemory) -> FakeRam:
    return FakeRam(memory)


def balloon(ram: FakeRam, *, deflate_on_oom: bool = True, reporting: bool = True) -> Balloon:
    return Balloon(
        "__balloon",
        ram,
        16 * MIB,
        deflate_on_oom=deflate_on_oom,
        free_page_reporting=reporting,
    )


@pytest.fixture
async def bench(ram: FakeRam, memory: FakeMemory) -> AsyncIterator[Bench]:
    async with driven(balloon(ram), memory) as bench:
        yield bench


def numbers(pages: Sequence[int]) -> bytes:
    return struct.pack(f"<{len(pages)}I", *pages)


async def inflate(bench: Bench, *arrays: bytes) -> None:
    queue, *_ = await bench.driver.start()
    queue.add(arrays)
    bench.driver.kick(INFLATE)
    await trio.testing.wait_all_tasks_blocked()
    assert [used.written for used in queue.collect()] == [0]


@pytest.mark.parametrize("deflate_on_oom", [False, True])
@pytest.mark.parametrize("reporting", [False, True])
async def test_features_and_queues_are_as_configured(
    ram: FakeRam, memory: FakeMemory, deflate_on_oom: bool, reporting: bool
) -> None:
    device = balloon(ram, deflate_on_oom=deflate_on_oom, reporting=reporting)
    async with driven(device, memory) as bench:
        offered = await bench.driver.offered()

    rings = Feature.VERSION_1 | Feature.RING_PACKED | Feature.RING_RESET
    assert offered == rings | deflate_on_oom << 2 | reporting << 5
    assert device.queue_sizes == (128,) * (2 + reporting)


async def test_config_shows_the_first_size_in_pages(bench: Bench) -> None:
    assert bench.device.read_config(0, 4096) == numbers([16 * MIB // PAGE, 0])


async def test_pages_are_discarded_with_neighbours_joined(bench: Bench, ram: FakeRam) -> None:
    await inflate(bench, numbers([7, 5, 6, 100, 5, 0, 200, 201]))

    assert ram.discarded == [
        (0, PAGE),
        (5 * PAGE, 3 * PAGE),
        (100 * PAGE, PAGE),
        (200 * PAGE, 2 * PAGE),
    ]


async def test_array_may_be_long_and_in_pieces(bench: Bench, ram: FakeRam) -> None:
    pages = list(range(0, 2048, 2))
    data = numbers(pages)

    await inflate(bench, data[:1026], data[1026:])

    assert ram.discarded == [(page * PAGE, PAGE) for page in pages]


async def test_empty_array_is_completed(bench: Bench, ram: FakeRam) -> None:
    await inflate(bench, b"")

    assert ram.discarded == []


@pytest.mark.parametrize(
    "array", [numbers([1])[:3], numbers([1, 2])[:7], numbers([64 * MIB // PAGE]), b"\xff" * 4]
)
async def test_array_that_is_none_or_leaves_ram_breaks_the_device(
    bench: Bench, array: bytes
) -> None:
    queue, *_ = await bench.driver.start()
    queue.add([array])

    bench.driver.kick(INFLATE)
    await bench.interrupt(0)

    assert bench.driver.status & Status.NEEDS_RESET


async def test_deflate_is_completed_and_touches_nothing(bench: Bench, ram: FakeRam) -> None:
    _, queue, _ = await bench.driver.start()
    queue.add([numbers([1, 2, 3])])

    bench.driver.kick(DEFLATE)
    await bench.interrupt(1 + DEFLATE)

    assert len(queue.collect()) == 1
    assert ram.discarded == []


async def test_reported_memory_is_discarded_where_it_is(
    bench: Bench, ram: FakeRam, memory: FakeMemory
) -> None:
    *_, queue = await bench.driver.start()
    queue.add(writable=[2 * MIB, 64 * 1024])
    places = {
        struct.unpack_from("<QI", memory.read(queue.state.desc + 16 * slot, 16))
        for slot in range(2)
    }

    bench.driver.kick(REPORTING)
    await bench.interrupt(1 + REPORTING)

    assert set(ram.discarded) == places
    assert [used.written for used in queue.collect()] == [0]


async def test_guest_says_how_many_pages_it_has_given(bench: Bench) -> None:
    await bench.driver.write_config(4, 4, 1000)

    assert bench.driver.read_config(4, 4) == 1000
    assert bench.device.ram_bytes == -1000 * PAGE


@pytest.mark.parametrize(("offset", "size"), [(0, 4), (4, 1), (4, 2), (6, 2), (8, 4), (0, 8)])
async def test_write_of_anything_else_changes_nothing(bench: Bench, offset: int, size: int) -> None:
    before = bench.device.read_config(0, 8)

    await bench.driver.write_config(offset, size, (1 << 8 * size) - 1)

    assert bench.device.read_config(0, 8) == before
    assert bench.device.ram_bytes == 0


async def test_resize_tells_the_driver(bench: Bench) -> None:
    await bench.driver.start()
    device = bench.device
    assert isinstance(device, Balloon)

    device.resize(1 * MIB)
    await bench.interrupt(0)

    assert bench.driver.read_config(0, 4) == MIB // PAGE


@pytest.mark.parametrize("size", [-1, (MAX_PAGES + 1) * PAGE])
def test_resize_beyond_what_the_register_holds_is_refused(ram: FakeRam, size: int) -> None:
    with pytest.raises(ConfigError, match="give at most 17592186040320"):
        balloon(ram).resize(size)


def test_load_restores_both_sizes(ram: FakeRam) -> None:
    first, second = balloon(ram), balloon(ram)
    first.resize(3 * MIB)
    first.write_config(4, (5).to_bytes(4, "little"))

    second.load(first.save())

    assert second.read_config(0, 8) == first.read_config(0, 8)


@pytest.mark.parametrize(
    "state", [{}, {"wanted_pages": -1, "actual_pages": 0}, {"wanted_pages": "1"}]
)
def test_load_of_what_save_never_gave_is_refused(ram: FakeRam, state: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="__balloon"):
        balloon(ram).load(state)

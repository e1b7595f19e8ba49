"""Every page that devices change is recorded: what differs in memory is the oracle."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.unit.block_fixture import GET_ID, IN, OUT, SECTOR, header, running_disk
from vmm.kvm_cffi import GuestMemoryMap, PageSet, Virtqueue, WriteRecord
from vmm.testing.driver import PackedDriver, SplitDriver
from vmm.testing.memory import FakeMemory
from vmm.testing.packets import HEADER, PacketPair

PAGE = 4096
UNKNOWN = 99
"""No request's type."""


def pages_of(sets: list[PageSet]) -> set[int]:
    """The guest addresses of the pages in some sets."""
    found = set()
    for each in sets:
        bits = int.from_bytes(each.bits, "little")
        found |= {each.gpa + PAGE * at for at in range(each.pages) if bits >> at & 1}
    return found


class Watched:
    """Fake memory whose changes are known from its content and from a record."""

    def __init__(self, memory: FakeMemory, record: WriteRecord) -> None:
        self._memory = memory
        self._record = record
        self._before = memory.contents()

    def changed(self) -> set[int]:
        """The pages whose content is another than at first."""
        after, at, found = self._memory.contents(), 0, set()
        for gpa, size, _ in self._memory.regions:
            for start in range(0, size, PAGE):
                piece = slice(at + start, at + start + PAGE)
                if after[piece] != self._before[piece]:
                    found.add(gpa + start)
            at += size
        return found

    def recorded(self) -> set[int]:
        """The pages that were recorded since this was asked last."""
        sets = [PageSet(gpa, size // PAGE) for gpa, size, _ in self._memory.regions]
        for at, each in enumerate(sets):
            self._record.take(at, each)
        return pages_of(sets)


@contextmanager
def watching(memory: FakeMemory, memory_map: GuestMemoryMap) -> Iterator[Watched]:
    with WriteRecord(memory_map, memory.regions) as record:
        yield Watched(memory, record)


@pytest.mark.parametrize("has_event_idx", [False, True])
@pytest.mark.parametrize("make", [SplitDriver, PackedDriver])
def test_ring_and_buffers_that_a_queue_writes_are_recorded(
    make: type[SplitDriver | PackedDriver], has_event_idx: bool
) -> None:
    memory = FakeMemory((0, 1 << 20), (0x20_0000, 1 << 16))
    memory_map = memory.map()
    driver = make(memory, 8, has_event_idx=has_event_idx)
    queue = Virtqueue(memory_map, driver.state)
    driver.add([b"question"], [3 * PAGE, 10])

    with watching(memory, memory_map) as watched:
        queue.suppress()
        chain = queue.pop()
        assert chain is not None
        chain.writable[0][PAGE + 5] = 1
        queue.push(chain, 3)
        queue.enable()

        assert watched.changed()
        assert watched.changed() <= watched.recorded()
        assert watched.recorded() == set()


def test_chain_written_by_copy_is_recorded_where_it_was_written() -> None:
    memory = FakeMemory()
    memory_map = memory.map()
    driver = SplitDriver(memory, 8)
    queue = Virtqueue(memory_map, driver.state)
    driver.add([], [3 * PAGE])
    chain = queue.pop()
    assert chain is not None

    with watching(memory, memory_map) as watched:
        chain.write(b"x")
        assert watched.changed() == watched.recorded()


def test_nothing_is_recorded_after_the_end() -> None:
    memory = FakeMemory()
    memory_map = memory.map()
    with WriteRecord(memory_map, memory.regions) as record:
        pass

    memory_map.wrote(memory.regions[0][2], PAGE)

    pages = PageSet(0, 256)
    record.take(0, pages)
    assert len(pages) == 0


@pytest.mark.parametrize(
    ("start", "size", "pages"),
    [
        (0, 1, {0}),
        (PAGE - 1, 2, {0, PAGE}),
        (PAGE, PAGE, {PAGE}),
        ((1 << 20) - 1, 4096, {(1 << 20) - PAGE}),
        (5, 0, set()),
    ],
)
def test_write_by_address_is_recorded_as_whole_pages(
    start: int, size: int, pages: set[int]
) -> None:
    memory = FakeMemory()
    memory_map = memory.map()
    with watching(memory, memory_map) as watched:
        memory_map.wrote(memory.regions[0][2] + start, size)

        assert watched.recorded() == pages


@pytest.mark.parametrize(
    "options", [{}, {"direct": True}, {"wants_ring": False}, {"is_packed": True}]
)
async def test_what_a_disk_writes_is_recorded(tmp_path: Path, options: dict[str, bool]) -> None:
    path = tmp_path / "disk.raw"
    path.write_bytes(bytes(range(256)) * 4096)
    async with running_disk(path, **options) as disk:  # type: ignore[arg-type]
        driver = disk.driver
        tokens = [
            driver.send([header(IN, 3)], [100 * SECTOR, 1]),
            driver.send([header(IN, 1)], [100, 5000, 60, 1000 - 16, 1]),
            driver.send([header(GET_ID, 0)], [20, 1]),
            driver.send([header(UNKNOWN, 0)], [1]),
            driver.send([header(OUT, 8), bytes(SECTOR)]),
        ]
        with watching(driver.memory, driver.queue._memory) as watched:
            driver.kick()
            for token in tokens:
                await driver.answer(token)

            # The driver says in its own part of the ring that it waits.
            changed = watched.changed() - {driver.ring.state.driver & -PAGE}
            assert len(changed) > 13
            assert changed <= watched.recorded()


@pytest.mark.parametrize("is_packed", [False, True])
def test_packets_received_are_recorded(is_packed: bool) -> None:
    with PacketPair(is_packed=is_packed) as pair:
        pair.post(9000, 100)
        with watching(pair.memory, pair._map) as watched:
            pair.wire.send(HEADER + b"r" * 9000)
            pair.serve()

            assert len(watched.changed()) >= 3
            assert watched.changed() <= watched.recorded()

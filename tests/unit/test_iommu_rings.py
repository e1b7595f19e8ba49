"""Rings of devices behind the IOMMU: translated page by page, and never what is not mapped."""

from __future__ import annotations

import pytest

from tests.unit.virtqueue_kinds import answer_all
from vmm.errors import GuestError
from vmm.kvm_cffi import Access, Fault, IommuDomain, IommuEndpoint, Mapping, Virtqueue
from vmm.testing.driver import DESC, NEXT, WRITE, Driver, PackedDriver, SplitDriver
from vmm.testing.memory import FakeMemory
from vmm.testing.translated import PAGE, TranslatedMemory
from vmm.virtio.queue import QueueState

Kind = type[SplitDriver] | type[PackedDriver]
KINDS = (SplitDriver, PackedDriver)
LOOKUPS = 16384
"""The most mappings that the buffers of one chain may lie in: VK_LOOKUPS_MAX."""


@pytest.fixture
def memory() -> TranslatedMemory:
    return TranslatedMemory()


def queue_of(memory: TranslatedMemory, driver: Driver) -> Virtqueue[QueueState]:
    return Virtqueue(memory.map(), driver.state, endpoint=memory.endpoint)


def unmap(memory: TranslatedMemory, gpa: int) -> None:
    """Take one page away, as the IOMMU does."""
    first = gpa // PAGE * PAGE
    assert memory.domain.unmap(first, first + PAGE - 1) == 1
    memory.endpoint.forget()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("has_event_idx", [False, True])
@pytest.mark.parametrize("size", [8, 256, 2048])
def test_ring_in_scattered_pages_serves_each_of_its_slots(
    memory: TranslatedMemory, kind: Kind, has_event_idx: bool, size: int
) -> None:
    memory.allocate(44)  # so that the ring begins in the middle of a page
    driver = kind(memory, size, has_event_idx=has_event_idx, has_indirect=True)
    queue = queue_of(memory, driver)

    answers = []
    for number in range(size + 3):
        driver.add([b"%d" % number], [8])
        answer_all(queue)
        queue.signal()
        queue.enable()
        [used] = driver.collect()
        answers.append(used.data)

    assert answers == [b"%d" % number for number in range(size + 3)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("is_indirect", [False, True])
def test_buffer_and_table_in_scattered_pages_are_taken_whole(
    memory: TranslatedMemory, kind: Kind, is_indirect: bool
) -> None:
    driver = kind(memory, 256, has_indirect=True)
    queue = queue_of(memory, driver)
    question = bytes(range(256)) * 100

    # Two hundred descriptors: a table of them does not fit in the rest of a page.
    memory.allocate(PAGE - 32)
    driver.add([question, *[b"x"] * 200], [3 * PAGE], is_indirect=is_indirect)
    chain = queue.pop()
    assert chain is not None
    assert chain.read(1 << 20) == question + b"x" * 200
    assert len(chain.writable) >= 3
    queue.push(chain, chain.write(question[: 3 * PAGE]))

    assert driver.collect()[0].data == question[: 3 * PAGE]


def test_pieces_that_are_neighbours_in_ram_are_one() -> None:
    memory, domain, endpoint = FakeMemory(), IommuDomain(), IommuEndpoint()
    for first in (0, PAGE, 2 * PAGE):
        domain.map(Mapping(first, first + PAGE - 1, first, Access.READ | Access.WRITE))
    endpoint.enter(domain)
    memory.write(0, DESC.pack(0x800, 2 * PAGE, 0, 0))
    memory.write(0x100, bytes((0, 0, 1, 0, 0, 0)))
    state = QueueState.fresh(0, 8, 0, 0x100, 0x200)

    chain = Virtqueue(memory.map(), state, endpoint=endpoint).pop()

    assert chain is not None
    assert [len(piece) for piece in chain.readable] == [2 * PAGE]


@pytest.mark.parametrize("kind", KINDS)
def test_buffer_that_is_not_mapped_breaks_the_queue_and_is_a_fault(
    memory: TranslatedMemory, kind: Kind
) -> None:
    driver = kind(memory, 8, has_indirect=False)
    queue = queue_of(memory, driver)
    memory.allocate(1, PAGE)
    at = memory.allocate(PAGE, PAGE)
    unmap(memory, at)
    fields = (0, WRITE | 0x80) if driver.is_packed else (WRITE, 0)
    memory.write(driver.state.desc, DESC.pack(at + 16, 8, *fields))
    if not driver.is_packed:
        memory.write(driver.state.driver, bytes((0, 0, 1, 0, 0, 0)))

    with pytest.raises(GuestError, match=rf"address {at + 16:#x} is not mapped"):
        queue.pop()

    assert memory.endpoint.take_fault() == Fault(at + 16, Access.WRITE, has_domain=True)
    assert memory.endpoint.take_fault() is None


def test_buffer_that_may_only_be_read_is_not_written(memory: TranslatedMemory) -> None:
    driver = SplitDriver(memory, 8, has_indirect=False)
    queue = queue_of(memory, driver)
    memory.allocate(1, PAGE)
    room = memory.allocate(PAGE, PAGE)
    unmap(memory, room)
    memory.domain.map(memory.mapping(room // PAGE, Access.READ))
    memory.write(driver.state.desc, DESC.pack(room, 8, NEXT, 1) + DESC.pack(room, 8, WRITE, 0))
    memory.write(driver.state.driver, bytes((0, 0, 1, 0, 0, 0)))

    with pytest.raises(GuestError, match=rf"address {room:#x} is not mapped"):
        queue.pop()

    assert memory.endpoint.take_fault() == Fault(room, Access.WRITE, has_domain=True)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("part", ["desc", "driver", "device"])
def test_ring_whose_page_is_unmapped_under_way_is_broken(
    memory: TranslatedMemory, kind: Kind, part: str
) -> None:
    driver = kind(memory, 256)
    queue = queue_of(memory, driver)
    driver.add([b"1"], [8])
    answer_all(queue)
    driver.add([b"2"], [8])

    unmap(memory, getattr(driver.state, part))

    with pytest.raises(GuestError, match="is not mapped for the device"):
        queue.pop()
    assert memory.endpoint.take_fault() is not None


def test_ring_that_moves_in_ram_is_followed(memory: TranslatedMemory) -> None:
    driver = SplitDriver(memory, 8)
    queue = queue_of(memory, driver)
    page = driver.state.desc // PAGE
    spare = 200
    before = memory.read(page * PAGE, PAGE)
    queue.poll()

    unmap(memory, driver.state.desc)
    memory.write(spare * PAGE, before)
    memory.domain.map(memory.mapping(page)._replace(gpa=memory.mapping(spare).gpa))
    memory.write(spare * PAGE + driver.state.desc % PAGE, DESC.pack(16 * PAGE, 5, 0, 0))
    memory.write(16 * PAGE, b"moved")
    memory.write(spare * PAGE + driver.state.driver % PAGE, bytes((0, 0, 1, 0, 0, 0)))

    chain = queue.pop()
    assert chain is not None
    assert chain.read(9) == b"moved"


def test_device_in_no_domain_has_nothing_unless_it_bypasses(memory: TranslatedMemory) -> None:
    endpoint = IommuEndpoint()
    state = QueueState.fresh(0, 8, 0x1000, 0x2000, 0x3000)
    queue = Virtqueue(memory.map(), state, endpoint=endpoint)
    assert queue.pop() is None

    endpoint.leave(bypasses=False)

    with pytest.raises(GuestError, match="0x1000 is not mapped"):
        queue.pop()
    assert endpoint.take_fault() == Fault(0x1000, Access.READ, has_domain=False)


def test_ring_that_cannot_be_one_is_broken_from_the_start(memory: TranslatedMemory) -> None:
    state = QueueState.fresh(0, 8, 0x1008, 0x2000, 0x3000)

    with pytest.raises(GuestError, match="not aligned"):
        Virtqueue(memory.map(), state, endpoint=memory.endpoint)


def test_indirect_table_in_pieces_has_its_limit(memory: TranslatedMemory) -> None:
    driver = SplitDriver(memory, 8, has_indirect=True)
    queue = queue_of(memory, driver)
    size = 16 * 1024 + 16
    table = memory.allocate(size, PAGE)
    memory.write(driver.state.desc, DESC.pack(table, size, 4, 0))
    memory.write(driver.state.driver, bytes((0, 0, 1, 0, 0, 0)))

    with pytest.raises(GuestError, match=f"table of {size} bytes .* may have 16384"):
        queue.pop()


@pytest.mark.parametrize("extra", [0, 1])
def test_buffer_in_too_many_mappings_breaks_the_queue_though_it_is_one_piece(extra: int) -> None:
    pages = LOOKUPS + extra
    memory, domain, endpoint = FakeMemory((0, (pages + 1) * PAGE)), IommuDomain(), IommuEndpoint()
    for first in range(0, (pages + 1) * PAGE, PAGE):
        domain.map(Mapping(first, first + PAGE - 1, first, Access.READ | Access.WRITE))
    endpoint.enter(domain)
    memory.write(0, DESC.pack(PAGE, pages * PAGE, 0, 0))
    memory.write(0x100, bytes((0, 0, 1, 0, 0, 0)))
    queue = Virtqueue(memory.map(), QueueState.fresh(0, 8, 0, 0x100, 0x200), endpoint=endpoint)

    if extra:
        with pytest.raises(GuestError, match=f"more than {LOOKUPS} pieces of the IOMMU's mappings"):
            queue.pop()
    else:
        chain = queue.pop()
        assert chain is not None
        assert [len(piece) for piece in chain.readable] == [pages * PAGE]

"""What the queue in C has beside the interface: descriptors, and the table of guest memory."""

from __future__ import annotations

import os

import pytest

from tests.unit.virtqueue_kinds import answer_all
from vmm.errors import InternalError
from vmm.kvm_cffi import GuestMemoryMap, Virtqueue
from vmm.testing.driver import SplitDriver
from vmm.testing.memory import FakeMemory


def test_interrupt_fd_is_written_in_c() -> None:
    memory = FakeMemory()
    driver = SplitDriver(memory, 8)
    fd, other = os.eventfd(0, os.EFD_NONBLOCK), os.eventfd(0, os.EFD_NONBLOCK)
    queue = Virtqueue(memory.map(), driver.state, interrupt_fd=fd)

    for each in (fd, other):
        queue.set_interrupt_fd(each)
        driver.add([b"1"], [])
        answer_all(queue)
        queue.signal()

    assert (os.eventfd_read(fd), os.eventfd_read(other), queue.interrupts) == (1, 1, 2)
    os.close(fd)
    os.close(other)


def test_clear_kick_forgets_the_kicks() -> None:
    memory = FakeMemory()
    fd = os.eventfd(2, os.EFD_NONBLOCK)
    queue = Virtqueue(memory.map(), SplitDriver(memory, 8).state, kick_fd=fd)

    queue.clear_kick()
    queue.clear_kick()

    with pytest.raises(BlockingIOError):
        os.eventfd_read(fd)
    os.close(fd)


def test_range_in_one_region_has_an_address() -> None:
    table = GuestMemoryMap([(0x10_0000, 0x2000, 0x7000_0000), (0x1000, 0x1000, 0x5000_0000)])

    assert table.translate(0x1000, 0x1000) == 0x5000_0000
    assert table.translate(0x10_1FFF, 1) == 0x7000_1FFF


@pytest.mark.parametrize(
    ("gpa", "size"),
    [
        (0x0FFF, 1),
        (0x1FFF, 2),
        (0x2000, 1),
        (0x1000, (1 << 64) - 1),
        (0x1000, 0),
        (0x1000, -1),
        (-1, 1),
        ((1 << 64) - 1, 2),
        (1 << 64, 1),
    ],
)
def test_range_that_is_not_all_ram_has_no_address(gpa: int, size: int) -> None:
    table = GuestMemoryMap([(0x1000, 0x1000, 0x5000_0000), (0x10_0000, 0x2000, 0x7000_0000)])

    assert table.translate(gpa, size) is None


def test_neighbours_in_both_address_spaces_are_one() -> None:
    table = GuestMemoryMap([(0x1000, 0x1000, 0x5000_0000), (0x2000, 0x1000, 0x5000_1000)])

    assert table.translate(0x1800, 0x1000) == 0x5000_0800


def test_neighbours_in_the_guest_only_are_two() -> None:
    table = GuestMemoryMap([(0x1000, 0x1000, 0x5000_0000), (0x2000, 0x1000, 0x6000_0000)])

    assert table.translate(0x1800, 0x1000) is None
    assert table.translate(0x2000, 0x1000) == 0x6000_0000


def test_map_of_nothing_translates_nothing() -> None:
    assert GuestMemoryMap([]).translate(0, 1) is None


@pytest.mark.parametrize(
    "regions",
    [
        [(0x1000, 0, 0x5000_0000)],
        [(0x1000, 0x1000, 0)],
        [(0x1000, 0x1001, 0x5000_0000), (0x2000, 0x1000, 0x6000_0000)],
        [((1 << 64) - 0x1000, 0x1000, 0x5000_0000)],
    ],
)
def test_regions_that_are_none_are_refused(regions: list[tuple[int, int, int]]) -> None:
    with pytest.raises(InternalError, match="give disjoint ones"):
        GuestMemoryMap(regions)

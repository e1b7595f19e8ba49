"""The address allocator: from the top down, aligned, fixed, freed."""

from __future__ import annotations

import pytest

from vmm.errors import ConfigError, InternalError
from vmm.pci.allocator import AddressAllocator

BASE = 0xC000_0000
MIB = 1 << 20


def make_allocator(size: int = MIB) -> AddressAllocator:
    return AddressAllocator("mmio32", BASE, size)


def test_allocate_goes_from_the_high_end_downwards() -> None:
    allocator = make_allocator()

    assert allocator.allocate(0x1000) == BASE + MIB - 0x1000
    assert allocator.allocate(0x2000) == BASE + MIB - 0x3000


def test_allocate_platform_registers_gives_each_its_own_page() -> None:
    top = (1 << 46) - (64 << 10)
    allocator = AddressAllocator("platform", top - MIB, MIB)

    addresses = [allocator.allocate(size, 0x1000) for size in (0x10, 0xC, 0x1)]

    assert addresses == [top - 0x1000, top - 0x2000, top - 0x3000]


def test_allocate_aligns_the_base_downwards() -> None:
    allocator = make_allocator(64 * MIB)

    assert allocator.allocate(0x80000, 8 * MIB) == BASE + 56 * MIB
    assert allocator.allocate(0x80000, 8 * MIB) == BASE + 48 * MIB


def test_allocate_fills_the_highest_gap_that_is_large_enough() -> None:
    allocator = make_allocator(0x10000)
    allocator.claim(BASE + 0xE000, 0x1000)
    allocator.claim(BASE + 0x8000, 0x1000)

    assert allocator.allocate(0x2000) == BASE + 0xC000
    assert allocator.allocate(0x1000) == BASE + 0xF000
    assert allocator.allocate(0x4000) == BASE + 0x4000


def test_allocate_can_take_the_area_to_the_last_byte() -> None:
    allocator = make_allocator()

    assert allocator.allocate(MIB) == BASE
    with pytest.raises(ConfigError, match="no room for 0x4 bytes"):
        allocator.allocate(4)


def test_allocate_that_alignment_leaves_no_room_for_is_refused() -> None:
    allocator = AddressAllocator("mmio64", 0x1000, 0x1000)

    with pytest.raises(ConfigError, match="aligned to 0x10000"):
        allocator.allocate(0x100, 0x10000)


def test_free_gives_the_range_back() -> None:
    allocator = make_allocator()
    first = allocator.allocate(0x1000)
    second = allocator.allocate(0x1000)

    allocator.free(first)

    assert allocator.is_free(first, 0x1000)
    assert not allocator.is_free(second, 0x1000)
    assert allocator.allocate(0x1000) == first


@pytest.mark.parametrize("address", [BASE, BASE + MIB - 0x800])
def test_free_where_no_range_begins_is_refused(address: int) -> None:
    allocator = make_allocator()
    allocator.allocate(0x1000)

    with pytest.raises(InternalError, match="begins at"):
        allocator.free(address)


@pytest.mark.parametrize(
    ("address", "size"),
    [
        (BASE - 1, 1),
        (BASE + MIB, 1),
        (BASE + MIB - 1, 2),
        (BASE + 0x1000, 1),
        (BASE + 0xFFF, 2),
        (BASE + 0x1FFF, 0x1000),
        (BASE, 0x10000),
        (BASE, 0),
    ],
)
def test_claim_of_what_is_not_free_is_refused(address: int, size: int) -> None:
    allocator = make_allocator()
    allocator.claim(BASE + 0x1000, 0x1000)

    assert not allocator.is_free(address, size)
    with pytest.raises(InternalError, match="is not free"):
        allocator.claim(address, size)


def test_claim_next_to_another_is_taken() -> None:
    allocator = make_allocator()
    allocator.claim(BASE + 0x1000, 0x1000)

    allocator.claim(BASE, 0x1000)
    allocator.claim(BASE + 0x2000, MIB - 0x2000)

    assert not allocator.is_free(BASE, 1)

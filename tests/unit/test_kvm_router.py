"""The exit router's tables, and what it refuses."""

from __future__ import annotations

import pytest

from vmm.errors import InternalError
from vmm.kvm_cffi import AllOnes, ExitRouter


@pytest.mark.parametrize(("base", "size"), [(0x3F8, 8), (0x3F7, 2), (0x3FF, 1), (0x3F0, 0x20)])
def test_port_ranges_that_overlap_are_refused(base: int, size: int) -> None:
    router = ExitRouter()
    router.map_pio(0x3F8, 8, AllOnes())

    with pytest.raises(InternalError, match="overlaps"):
        router.map_pio(base, size, AllOnes())


@pytest.mark.parametrize(("base", "size"), [(0x3F0, 8), (0x400, 1), (0, 1), (0xFFFF, 1)])
def test_port_ranges_that_touch_are_accepted(base: int, size: int) -> None:
    router = ExitRouter()
    router.map_pio(0x3F8, 8, AllOnes())

    router.map_pio(base, size, AllOnes())
    router.unmap_pio(base, size)
    router.map_pio(base, size, AllOnes())


@pytest.mark.parametrize(("base", "size"), [(0, 0), (0x1_0000, 1), (0xFFFF, 2), (1, 0xFFFF_FFFF)])
def test_port_ranges_beyond_the_space_are_refused(base: int, size: int) -> None:
    with pytest.raises(InternalError, match="does not fit"):
        ExitRouter().map_pio(base, size, AllOnes())


@pytest.mark.parametrize(
    ("base", "size"), [(0x1000, 0x1000), (0xFFF, 2), (0x1FFF, 1), (0, 0x10000), (0, 1 << 63)]
)
def test_mmio_ranges_that_overlap_are_refused(base: int, size: int) -> None:
    router = ExitRouter()
    router.map_mmio(0x1000, 0x1000, AllOnes())

    with pytest.raises(InternalError, match="overlaps"):
        router.map_mmio(base, size, AllOnes())


def test_mmio_ranges_may_be_mapped_in_any_order_and_up_to_the_top() -> None:
    router = ExitRouter()
    top = (1 << 64) - 0x1000

    for base in (0x5000, 0x1000, 0x3000, top, 0x2000, 0):
        router.map_mmio(base, 0x1000, AllOnes())
    for base in (0x3000, top, 0, 0x5000, 0x2000, 0x1000):
        router.unmap_mmio(base, 0x1000)
    router.map_mmio(0, 1 << 63, AllOnes())


@pytest.mark.parametrize(("base", "size"), [(0, 0), ((1 << 64) - 1, 2)])
def test_mmio_ranges_beyond_the_space_are_refused(base: int, size: int) -> None:
    with pytest.raises(InternalError, match="does not fit"):
        ExitRouter().map_mmio(base, size, AllOnes())


def test_unmapping_what_is_not_mapped_like_that_is_refused() -> None:
    router = ExitRouter()
    router.map_pio(0x3F8, 8, AllOnes())
    router.map_mmio(0x1000, 0x1000, AllOnes())

    for base, size in ((0x3F8, 4), (0x3F9, 7), (0x2F8, 8), (0x10000, 1)):
        with pytest.raises(InternalError, match="is not mapped"):
            router.unmap_pio(base, size)
    for base, size in ((0x1000, 0x800), (0x1800, 0x800), (0x4000, 0x1000)):
        with pytest.raises(InternalError, match="is not mapped"):
            router.unmap_mmio(base, size)

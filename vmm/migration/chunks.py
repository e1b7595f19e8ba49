"""RAM in the pieces in which it is sent."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm.migration.protocol import MOST_CHUNK_BYTES, MOST_RANGES

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from vmm.kvm_cffi import PageSet, RangeTable
    from vmm.machine.memory import Region

PAGE = 4096
CHUNK_PAGES = MOST_CHUNK_BYTES // PAGE


class Window:
    """Some pages of a region, as many as one chunk has."""

    def __init__(self, pages: PageSet, hva: int, start: int) -> None:
        self._pages = pages
        self._hva = hva
        self._start = start
        self.count = min(CHUNK_PAGES, pages.pages - start)

    def table(self) -> RangeTable | None:
        """The pages that hold anything but zeros, None when none does. To be called in a thread."""
        self._pages.drop_zeros(self._hva, self._start, self.count)
        end = self._start + self.count
        table, _ = self._pages.ranges(self._start, self.count, MOST_RANGES, end)
        return table if table.count else None


def windows(regions: Sequence[Region], sets: Sequence[PageSet]) -> Iterator[Window]:
    """All RAM, for the first pass: the other side's is zero, so zeros need not be sent."""
    for region, pages in zip(regions, sets, strict=True):
        for start in range(0, pages.pages, CHUNK_PAGES):
            yield Window(pages, region.hva, start)


def chunks(sets: Sequence[PageSet]) -> Iterator[RangeTable]:
    """What changed, for the passes after the first."""
    for pages in sets:
        at = 0
        while True:
            table, at = pages.ranges(at, CHUNK_PAGES, MOST_RANGES)
            if not table.count:
                break
            yield table

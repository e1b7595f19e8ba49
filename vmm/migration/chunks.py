"""RAM in the pieces in which it is sent."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm.machine.content import has_named_file, held_in
from vmm.migration.protocol import MOST_CHUNK_BYTES, MOST_RANGES
from vmm.page import PAGE

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from vmm.kvm_cffi import PageSet, RangeTable
    from vmm.machine.memory import Region

CHUNK_PAGES = MOST_CHUNK_BYTES // PAGE


class Window:
    """Some pages of a region, as many as one chunk has; ``pagemap_fd`` is /proc/self/pagemap."""

    def __init__(self, region: Region, pages: PageSet, start: int, pagemap_fd: int) -> None:
        self._region = region
        self._pages = pages
        self._start = start
        self._pagemap_fd = pagemap_fd
        self.count = min(CHUNK_PAGES, pages.pages - start)

    def table(self) -> RangeTable | None:
        """The pages that the other side may not have yet, None when it has all. For a thread.

        RAM begins there with zeros, unless a file has a name: then it is what that has there.
        Raises: OSError.
        """
        region, pages, start, count = self._region, self._pages, self._start, self.count
        if has_named_file(region):
            return pages.ranges(start, count, MOST_RANGES, start + count)[0]
        if region.fd is None:
            pages.drop_untouched(region.hva, start, count, self._pagemap_fd)
        elif region.zone.is_file:
            self._drop_holes()
        pages.drop_zeros(region.hva, start, count)
        table, _ = pages.ranges(start, count, MOST_RANGES, start + count)
        return table if table.count else None

    def _drop_holes(self) -> None:
        """Forget what a file has no room for: to look into it would take some."""
        at, end = self._start, self._start + self.count
        held = held_in(self._region, at * PAGE, self.count * PAGE)
        for start, size in (*held, (end * PAGE, 0)):
            first = start // PAGE
            self._pages.drop(at, first - at)
            at = -(-(start + size) // PAGE)


def windows(
    regions: Sequence[Region], sets: Sequence[PageSet], pagemap_fd: int
) -> Iterator[Window]:
    """All RAM, for the first pass."""
    for region, pages in zip(regions, sets, strict=True):
        for start in range(0, pages.pages, CHUNK_PAGES):
            yield Window(region, pages, start, pagemap_fd)


def chunks(sets: Sequence[PageSet]) -> Iterator[RangeTable]:
    """What changed, for the passes after the first."""
    for pages in sets:
        at = 0
        while True:
            table, at = pages.ranges(at, CHUNK_PAGES, MOST_RANGES)
            if not table.count:
                break
            yield table

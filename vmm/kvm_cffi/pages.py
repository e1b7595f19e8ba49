"""Sets of pages of guest RAM: what this process wrote, which hold anything, and as ranges."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from vmm.errors import InternalError
from vmm.kvm_cffi._kvm import ffi, lib
from vmm.kvm_cffi.closing import Closing
from vmm.kvm_cffi.mechanisms import allocated
from vmm.page import PAGE

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from vmm.kvm_cffi._kvm import CData
    from vmm.kvm_cffi.guest_memory import GuestMemoryMap

WORD_BITS = 64
RANGE_BYTES = 16


class PageSet:
    """Some pages of one region of RAM that has ``pages`` of them and begins at ``gpa``."""

    def __init__(self, gpa: int, pages: int) -> None:
        self.gpa = gpa
        self.pages = pages
        self.bits = bytearray(-(-pages // WORD_BITS) * WORD_BITS // 8)
        """Bit 0 of byte 0 is the first page; whole words of 64 bits."""

    def __len__(self) -> int:
        with ffi.from_buffer(self.bits) as bits:
            words = ffi.cast("uint64_t *", bits)
            return int(lib.vk_pages_count(words, len(self.bits) // 8))

    def fill(self) -> None:
        """Have all pages in it."""
        whole, rest = divmod(self.pages, 8)
        self.bits[:whole] = b"\xff" * whole
        if rest:
            self.bits[whole] = (1 << rest) - 1

    def add(self, other: PageSet) -> None:
        """Have the pages of another set of the same region too."""
        joined = int.from_bytes(self.bits, "little") | int.from_bytes(other.bits, "little")
        self.bits[:] = joined.to_bytes(len(self.bits), "little")

    def drop_zeros(self, hva: int, first: int, count: int) -> None:
        """Forget the pages, among ``count`` from ``first`` on, that hold nothing but zeros.

        ``hva`` is where the region is in this process.
        """
        count = min(count, self.pages - first)
        with ffi.from_buffer(self.bits) as bits:
            page_0 = ffi.cast("uint8_t *", hva)
            lib.vk_pages_drop_zeros(ffi.cast("uint64_t *", bits), page_0, first, count)

    def drop_untouched(self, hva: int, first: int, count: int, pagemap_fd: int) -> None:
        """Forget the pages that were never touched; for anonymous private memory alone.

        ``pagemap_fd`` is /proc/self/pagemap. Raises: OSError.
        """
        count = min(count, self.pages - first)
        with ffi.from_buffer(self.bits) as bits:
            words = ffi.cast("uint64_t *", bits)
            _moved(lib.vk_pages_drop_untouched(words, hva, first, count, pagemap_fd))

    def drop(self, first: int, count: int) -> None:
        """Forget ``count`` pages from ``first`` on."""
        at, end = first, min(first + count, self.pages)
        while at < end:
            if at % 8 == 0 and end - at >= 8:
                whole = (end - at) // 8
                self.bits[at // 8 : at // 8 + whole] = bytes(whole)
                at += 8 * whole
            else:
                self.bits[at // 8] &= ~(1 << at % 8)
                at += 1

    def ranges(
        self, start: int, most_pages: int, room: int, end: int | None = None
    ) -> tuple[RangeTable, int]:
        """The pages from ``start`` on, in at most ``room`` ranges, and the page to go on at.

        ``end`` is the page before which it ends at the latest.
        """
        last = self.pages if end is None else end
        table = ffi.new("struct vk_range[]", room)
        at = ffi.new("uint64_t *", start)
        with ffi.from_buffer(self.bits) as bits:
            words = ffi.cast("uint64_t *", bits)
            count = lib.vk_pages_ranges(words, last, self.gpa, at, most_pages, table, room)
        return RangeTable(table, count), int(at[0])


class RangeTable:
    """Ranges of guest memory as they go over the wire: address and length, 8 bytes each."""

    def __init__(self, ranges: CData, count: int) -> None:
        self.handle = ranges
        self.count = count

    @classmethod
    def decode(cls, data: bytes | bytearray) -> RangeTable:
        """Read a table, whole entries of ``RANGE_BYTES``; what they say is not looked at."""
        count = len(data) // RANGE_BYTES
        table = ffi.new("struct vk_range[]", count)
        ffi.buffer(table)[: len(data)] = bytes(data)
        return cls(table, count)

    def encode(self) -> bytes:
        """The table's bytes."""
        return bytes(memoryview(ffi.buffer(self.handle))[: self.count * RANGE_BYTES])

    def bytes_in(self, memory: GuestMemoryMap) -> int | None:
        """The bytes of all ranges, None when one is empty or is not RAM."""
        total = lib.vk_ranges_bytes(memory.handle, self.handle, self.count)
        return None if total < 0 else int(total)

    def views(self, memory: GuestMemoryMap, most: int) -> Iterator[memoryview]:
        """The ranges as views of RAM, each of at most so many bytes.

        Raises: InternalError for what is not RAM, which ``bytes_in`` tells before.
        """
        for each in self.handle[0 : self.count]:
            at, end = int(each.gpa), int(each.gpa + each.length)
            while at < end:
                size = min(most, end - at)
                if (hva := memory.translate(at, size)) is None:
                    # Neighbours in the guest may not be so here, but regions are whole pages.
                    size = min(size, PAGE - at % PAGE)
                    hva = memory.translate(at, size)
                if hva is None:
                    raise InternalError("A range of guest memory that is to be moved is not RAM")
                yield memoryview(ffi.buffer(ffi.cast("uint8_t *", hva), size))
                at += size


class WriteRecord(Closing):
    """Records which pages this process writes to guest RAM, from when it is made until closed.

    ``regions`` are those of the memory, by which ``take`` counts.
    """

    def __init__(self, memory: GuestMemoryMap, regions: Sequence[tuple[int, int, int]]) -> None:
        table = ffi.new("struct vk_memory_region[]", len(regions))
        for at, region in enumerate(regions):
            table[at].gpa, table[at].size, table[at].hva = region
        made = lib.vk_dirty_new(table, len(regions))
        self._handle = ffi.gc(allocated(made), lib.vk_dirty_free)
        self._memory = memory
        lib.vk_memory_record(memory.handle, self._handle)

    def close(self) -> None:
        """Record no more. A second call does nothing."""
        lib.vk_memory_record(self._memory.handle, ffi.NULL)

    def take(self, region: int, pages: PageSet) -> None:
        """Add what was written to a region since this was called last, and forget it."""
        with ffi.from_buffer(pages.bits) as bits:
            lib.vk_dirty_take(self._handle, region, ffi.cast("uint64_t *", bits))


class Transfer:
    """Ranges of guest memory on their way through a socket that does not block.

    ``send`` and ``receive`` give the bytes that went within 50 ms: 0 when the socket would block
    all that time. They are to be called in a thread. Raises: OSError; InternalError for a range
    that is not RAM, which ``RangeTable.bytes_in`` tells before.
    """

    def __init__(self, fd: int, memory: GuestMemoryMap, table: RangeTable) -> None:
        self._fd = fd
        self._memory = memory
        self._table = table
        self._done = ffi.new("struct vk_transfer *")

    @property
    def is_done(self) -> bool:
        """Whether all of it went."""
        return int(self._done.range) == self._table.count

    def send(self, most: int) -> int:
        """Send at most so many bytes."""
        return _moved(lib.vk_send_ranges(*self._arguments, most))

    def receive(self, most: int) -> int:
        """Receive at most so many bytes, into RAM."""
        return _moved(lib.vk_receive_ranges(*self._arguments, most))

    @property
    def _arguments(self) -> tuple[int, CData, CData, int, CData]:
        table = self._table
        return self._fd, self._memory.handle, table.handle, table.count, self._done


def _moved(result: int) -> int:
    if result >= 0:
        return result
    if result == -errno.EFAULT:
        raise InternalError("A range of guest memory that is to be moved is not RAM")
    raise OSError(-result, os.strerror(-result))

"""Guest memory without a guest: for tests of devices and rings, in Python and in C.

memory = FakeMemory()
gpa = memory.allocate(512)
memory.write(gpa, b"request")
"""

from __future__ import annotations

import mmap
from bisect import bisect_right

from vmm.errors import GuestError, InternalError
from vmm.kvm_cffi import GuestMemoryMap, address_of

SMALLEST = 16
"""Bytes; what is allocated is aligned to this at least."""


class FakeMemory:
    """Guest RAM made of (guest address, bytes) regions, 1 MiB at 0 unless told otherwise.

    It is memory that other processes started by ``fork`` share, so a test can change it while a
    device looks. ``regions`` adds each region's host address, as ``GuestMemoryMap`` takes them.
    """

    def __init__(self, *regions: tuple[int, int]) -> None:
        self._regions = sorted(regions or ((0, 1 << 20),))
        self._bases = [gpa for gpa, _ in self._regions]
        self._mappings = [mmap.mmap(-1, size) for _, size in self._regions]
        self._views = [memoryview(mapping) for mapping in self._mappings]
        self.regions = tuple(
            (gpa, size, address_of(view))
            for (gpa, size), view in zip(self._regions, self._views, strict=True)
        )
        self._next, size = self._regions[0]
        self._end = self._next + size
        self._free: dict[int, list[int]] = {}

    def map(self) -> GuestMemoryMap:
        """The same memory for device code in C; this object must outlive it."""
        return GuestMemoryMap(self.regions)

    def leading(self, gpa: int, size: int) -> memoryview | None:
        """View the part of a range that lies in the region where it begins, None if not RAM."""
        at = bisect_right(self._bases, gpa) - 1
        if at < 0 or gpa - self._bases[at] >= len(self._views[at]):
            return None
        start = gpa - self._bases[at]
        return self._views[at][start : start + size]

    def read(self, gpa: int, size: int) -> bytes:
        """Copy bytes out. Raises: GuestError when they are not all RAM."""
        data = b""
        while len(data) < size:
            data += self._must_lead(gpa + len(data), size - len(data))
        return data

    def write(self, gpa: int, data: bytes | bytearray | memoryview) -> None:
        """Copy bytes in. Raises: GuestError when they are not all RAM."""
        done = 0
        while done < len(data):
            view = self._must_lead(gpa + done, len(data) - done)
            view[:] = data[done : done + len(view)]
            done += len(view)

    def _must_lead(self, gpa: int, size: int) -> memoryview:
        view = self.leading(gpa, size)
        if view is None:
            raise GuestError(f"Guest address {gpa:#x} is not RAM")
        return view

    def contents(self) -> bytes:
        """Everything there is, region after region: two memories compare by it."""
        return b"".join(self._views)

    def allocate(self, size: int, alignment: int = SMALLEST) -> int:
        """Take bytes of the first region for a test's own use; return their guest address.

        Raises: InternalError when the region is full.
        """
        rounded = _rounded(size)
        recycled = self._free.get(rounded)
        if recycled and recycled[-1] % alignment == 0:
            return recycled.pop()
        gpa = -(-self._next // alignment) * alignment
        if gpa + rounded > self._end:
            raise InternalError(
                f"{size} bytes do not fit in the {self._end - gpa} left of a fake memory; make its "
                "first region larger"
            )
        self._next = gpa + rounded
        return gpa

    def release(self, gpa: int, size: int) -> None:
        """Give back what ``allocate`` gave for that many bytes."""
        self._free.setdefault(_rounded(size), []).append(gpa)


def _rounded(size: int) -> int:
    return max(SMALLEST, 1 << (size - 1).bit_length() if size else 0)

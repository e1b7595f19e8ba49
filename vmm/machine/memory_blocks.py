"""Which blocks of a region of memory a guest has: those that it plugged by virtio-mem.

The region is there whole, on the host as for the guest, but nothing is behind a block that is not
plugged.
"""

from __future__ import annotations

from collections.abc import Iterable

from vmm.boot.layout import RamRange


class MemoryBlocks:
    """The blocks of the region at ``gpa``, none of them plugged at first.

    Units: ``size`` and ``block_size`` in bytes; the former is a multiple of the latter.
    """

    def __init__(self, gpa: int, size: int, block_size: int) -> None:
        self.gpa = gpa
        self.size = size
        self.block_size = block_size
        self._plugged = bytearray(size // block_size)

    @property
    def plugged_size(self) -> int:
        """The bytes that are plugged."""
        return self._plugged.count(1) * self.block_size

    @property
    def ranges(self) -> list[RamRange]:
        """What is plugged, ascending, neighbours joined."""
        return [
            RamRange(self.gpa + first * self.block_size, count * self.block_size)
            for first, count in self.runs
        ]

    @property
    def runs(self) -> list[tuple[int, int]]:
        """What is plugged by number: the first block of each run, and how many blocks it has."""
        runs = []
        end = 0
        while (first := self._plugged.find(1, end)) >= 0:
            end = self._plugged.find(0, first)
            end = len(self._plugged) if end < 0 else end
            runs.append((first, end - first))
        return runs

    @property
    def gaps(self) -> list[RamRange]:
        """What is not plugged, ascending, neighbours joined."""
        gaps = []
        end = 0
        for first, count in (*self.runs, (len(self._plugged), 0)):
            if first > end:
                at, size = self.gpa + end * self.block_size, (first - end) * self.block_size
                gaps.append(RamRange(at, size))
            end = first + count
        return gaps

    def holds(self, gpa: int, count: int) -> bool:
        """Whether a number of blocks from an address on are blocks of this region."""
        first, offset = divmod(gpa - self.gpa, self.block_size)
        return offset == 0 and count > 0 and 0 <= first <= len(self._plugged) - count

    def plugged_of(self, gpa: int, count: int) -> int:
        """How many of these blocks, which the region holds, are plugged."""
        first = (gpa - self.gpa) // self.block_size
        return self._plugged.count(1, first, first + count)

    def mark(self, gpa: int, count: int, *, plugged: bool) -> None:
        """Have these blocks, which the region holds, count as plugged or not."""
        first = (gpa - self.gpa) // self.block_size
        self._plugged[first : first + count] = bytes((plugged,)) * count

    def replace(self, runs: Iterable[tuple[int, int]]) -> bool:
        """Have the blocks of ``runs`` plugged and no others, unless a run leaves the region."""
        plugged = bytearray(len(self._plugged))
        for first, count in runs:
            if first < 0 or not 0 < count <= len(plugged) - first:
                return False
            plugged[first : first + count] = b"\1" * count
        self._plugged = plugged
        return True

"""Guest physical address space, given out from the high end downwards.

What an area gives depends on nothing but the order of the requests: a VM that asks as another did
has the same addresses.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import NamedTuple

from vmm.errors import ConfigError, InternalError


class Span(NamedTuple):
    """A range of addresses, in bytes."""

    base: int
    size: int

    @property
    def end(self) -> int:
        """The first address after the range."""
        return self.base + self.size


class AddressAllocator:
    """The free and the taken addresses of one area."""

    def __init__(self, name: str, base: int, size: int) -> None:
        self.name = name
        self.area = Span(base, size)
        self._taken: list[Span] = []

    def allocate(self, size: int, alignment: int = 4) -> int:
        """Take the highest free range with an aligned base, and give that.

        Raises: ConfigError when nothing that large is free.
        """
        end = self.area.end
        for below in (*reversed(self._taken), Span(self.area.base, 0)):
            candidate = (end - size) // alignment * alignment
            if candidate >= below.end:
                self.claim(candidate, size)
                return candidate
            end = below.base
        raise ConfigError(
            f"The {self.name} area of {self.area.size:#x} bytes has no room for {size:#x} bytes "
            f"aligned to {alignment:#x}; use fewer devices"
        )

    def is_free(self, address: int, size: int) -> bool:
        """Tell whether a range lies in the area and nothing in it is taken."""
        wanted = Span(address, size)
        if size <= 0 or address < self.area.base or wanted.end > self.area.end:
            return False
        at = bisect_left(self._taken, wanted)
        follows = at == 0 or self._taken[at - 1].end <= address
        precedes = at == len(self._taken) or wanted.end <= self._taken[at].base
        return follows and precedes

    def claim(self, address: int, size: int) -> None:
        """Take a range at a fixed address.

        Raises: InternalError when it is not free; ask ``is_free`` where somebody else chose.
        """
        if not self.is_free(address, size):
            raise InternalError(
                f"The range {address:#x}+{size:#x} of the {self.name} area is not free"
            )
        wanted = Span(address, size)
        self._taken.insert(bisect_left(self._taken, wanted), wanted)

    def free(self, address: int) -> None:
        """Give back the range that begins at an address.

        Raises: InternalError when none does.
        """
        at = bisect_left(self._taken, Span(address, 0))
        if at == len(self._taken) or self._taken[at].base != address:
            raise InternalError(f"No range of the {self.name} area begins at {address:#x}")
        del self._taken[at]

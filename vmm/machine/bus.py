"""Address ranges and who answers on them: the port bus and the memory-mapped bus.

A range that C answers (rungs 0 and 1) is entered in the exit router alone. A range on rung 2 is
entered here as well, and the exit task finds its handler by bisection.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING, NamedTuple, Protocol

from vmm.errors import InternalError

if TYPE_CHECKING:
    import trio

    from vmm.kvm_cffi import ExitRouter, Loop, Mechanism

ALL_ONES = {size: (1 << (8 * size)) - 1 for size in (1, 2, 4, 8)}


class IoHandler(Protocol):
    """A device's registers as the exit task sees them.

    The guest chooses ``offset``, ``size`` (1, 2, 4 or 8 bytes) and ``value``: no choice may raise.
    Values are unsigned and little-endian. Both methods run inside one step of the loop: be short.
    A write whose effect takes longer returns an event, and the vCPU waits until that is set.
    """

    def read(self, offset: int, size: int) -> int: ...

    def write(self, offset: int, size: int, value: int) -> trio.Event | None: ...


class Lifecycle(Protocol):
    """What a device may ask of the owner of its VM; the answer comes later, from outside."""

    def request_reset(self) -> None:
        """Say that the guest asked for a reset."""

    def request_shutdown(self) -> None:
        """Say that the guest powered off."""


class Range(NamedTuple):
    """A claimed piece of one address space, in bytes."""

    base: int
    size: int
    handler: IoHandler

    @property
    def end(self) -> int:
        """The first address after the range."""
        return self.base + self.size


class Bus:
    """One address space of rung-2 ranges: no two overlap, and each has one handler."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._bases: list[int] = []
        self._ranges: list[Range] = []

    def claim(self, base: int, size: int, handler: IoHandler) -> None:
        """Give a range to a handler.

        Raises: InternalError when it overlaps a claimed one.
        """
        at = bisect_right(self._bases, base)
        before = self._ranges[at - 1] if at else None
        after = self._ranges[at] if at < len(self._ranges) else None
        for other in (before, after):
            if other is not None and base < other.end and other.base < base + size:
                raise InternalError(
                    f"{self._name} range {base:#x}+{size:#x} overlaps "
                    f"{other.base:#x}+{other.size:#x}"
                )
        self._bases.insert(at, base)
        self._ranges.insert(at, Range(base, size, handler))

    def release(self, base: int) -> Range:
        """Take the range that begins at ``base`` back, and give it.

        Raises: InternalError when none begins there.
        """
        at = bisect_right(self._bases, base) - 1
        if at < 0 or self._bases[at] != base:
            raise InternalError(f"No {self._name} range begins at {base:#x}")
        del self._bases[at]
        return self._ranges.pop(at)

    def read(self, address: int, size: int) -> int:
        """Answer a guest's read; all ones where nobody does."""
        found = self._find(address)
        if found is None:
            return ALL_ONES[size]
        return found.handler.read(address - found.base, size) & ALL_ONES[size]

    def write(self, address: int, size: int, value: int) -> trio.Event | None:
        """Hand a guest's write over; dropped where nobody listens."""
        found = self._find(address)
        if found is None:
            return None
        return found.handler.write(address - found.base, size, value)

    def _find(self, address: int) -> Range | None:
        at = bisect_right(self._bases, address) - 1
        if at < 0:
            return None
        found = self._ranges[at]
        return found if address < found.end else None


class AddressSpaces:
    """Both buses of a machine, kept in step with the exit router that leads to them.

    ``loop`` is the router's mechanism for rung 2.
    """

    def __init__(self, router: ExitRouter, loop: Loop) -> None:
        self.ports = Bus("port")
        self.mmio = Bus("memory-mapped")
        self._router = router
        self._loop = loop

    def claim_ports(self, base: int, size: int, handler: IoHandler) -> None:
        """Let a handler answer on ports. Raises: InternalError when one is taken."""
        self.ports.claim(base, size, handler)
        self._router.map_pio(base, size, self._loop)

    def claim_mmio(
        self, base: int, size: int, handler: IoHandler, mechanism: Mechanism | None = None
    ) -> None:
        """Let a handler answer at addresses, as far as a mechanism in C leaves it to the loop.

        Raises: InternalError when one is taken.
        """
        self.mmio.claim(base, size, handler)
        self._router.map_mmio(base, size, mechanism or self._loop)

    def release_mmio(self, base: int) -> None:
        """Let nobody answer any more. Raises: InternalError when no range begins there."""
        released = self.mmio.release(base)
        self._router.unmap_mmio(base, released.size)

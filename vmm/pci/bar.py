"""A base address register: the bits a guest may move, and where they point now.

A register answers a size probe by itself: the bits below its size cannot be set, so that a guest
which writes all ones reads the size back out of plain memory.

Spec: PCI Local Bus 3.0, section 6.2.5.1.
"""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

from vmm.errors import InternalError


class BarKind(Enum):
    """The address space of a BAR: its name, and the flags that its register shows."""

    IO = 0x1
    MEMORY32 = 0x0
    MEMORY64 = 0x4


_PREFETCHABLE = 0x8
_PROBE = 0xFFFF_FFFF


class Bar:
    """A BAR of one function, as the guest's last writes left it.

    ``size`` is in bytes, a power of two of at least 16 (memory) or 4 (IO). ``index`` is 0 to 5;
    a 64-bit BAR takes the next register too. ``address`` is where the guest can reach it: None
    while decoding is off, while the guest probes the size, and before the BAR has a function.
    Raises: InternalError when size or index cannot be.
    """

    def __init__(
        self, index: int, kind: BarKind, size: int, *, is_prefetchable: bool = False
    ) -> None:
        self.index = index
        self.size = size
        self.kind = kind
        self.address: int | None = None
        self.is_prefetchable = is_prefetchable
        self.registers = 2 if kind is BarKind.MEMORY64 else 1
        self.offset = 0x10 + 4 * index
        self.length = 4 * self.registers
        self.flags = kind.value | (_PREFETCHABLE if is_prefetchable else 0)
        limit = 1 << 8 * self.length
        self.writable = limit - size
        self.probed = 0
        """A bit a register that was last written with all ones."""
        least = 4 if kind is BarKind.IO else 16
        if not least <= size < limit or size & (size - 1):
            raise InternalError(
                f"BAR {index} of {size:#x} bytes is not a power of two "
                f"from {least} to {limit >> 1:#x}"
            )
        if not 0 <= index <= 6 - self.registers:
            raise InternalError(f"BAR {index} does not fit in registers 0 to 5")

    def encode(self, address: int) -> int:
        """Give the value of the registers for an address.

        Raises: InternalError when the address is not a multiple of the size, or too high.
        """
        if address & ~self.writable:
            raise InternalError(
                f"BAR {self.index} of {self.size:#x} bytes cannot lie at {address:#x}"
            )
        return address | self.flags

    def covers(self, register: int) -> bool:
        """Tell whether the byte ``register`` of configuration space belongs to this BAR."""
        return self.offset <= register < self.offset + self.length

    def note_probe(self, register: int, size: int, value: int) -> None:
        """Remember whether this write to one of the registers is a size probe.

        A probe is a write of all ones; it is no address, since the low bits of an address are not
        all set. Firmware probes with decoding on, so this has to be kept apart from a move.
        """
        bit = 1 << ((register - self.offset) >> 2)
        is_probe = size == 4 and value == _PROBE
        self.probed = self.probed | bit if is_probe else self.probed & ~bit

    def decode(self, raw: int, command_enables: bool) -> bool:
        """Work out ``address`` from the registers' value; tell whether it changed."""
        before = self.address
        is_reachable = command_enables and not self.probed
        self.address = raw & self.writable if is_reachable else None
        return self.address != before


class MemoryBar(NamedTuple):
    """A BAR that has memory of this process behind it, as many bytes as its size."""

    bar: Bar
    memory: memoryview

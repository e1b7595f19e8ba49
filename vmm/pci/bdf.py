"""The address of a PCI function, as people and tables write it."""

from __future__ import annotations

from typing import NamedTuple


class Bdf(NamedTuple):
    """Segment, bus, device and function; its text is ``ssss:bb:dd.f`` in hexadecimal."""

    segment: int
    bus: int
    device: int
    function: int

    def __str__(self) -> str:
        return f"{self.segment:04x}:{self.bus:02x}:{self.device:02x}.{self.function:x}"

    def __int__(self) -> int:
        """Give the 16-bit requester id: bus, device and function without the segment."""
        return self.bus << 8 | self.device << 3 | self.function

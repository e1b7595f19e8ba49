"""What booting needs of guest memory."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Protocol

from vmm.boot.layout import RamRange


class BootRam(Protocol):
    """Guest RAM as the loader sees it; every access outside RAM raises GuestError."""

    @property
    def ram(self) -> Sequence[RamRange]:
        """The ranges of RAM, ascending, contiguous ones merged."""

    def write(self, gpa: int, data: bytes | memoryview) -> None:
        """Copy bytes in."""

    def write_from_file(
        self, gpa: int, size: int, file: io.BufferedIOBase | io.RawIOBase, offset: int
    ) -> None:
        """Read ``size`` bytes of a file, from ``offset``, straight into RAM."""


class SupposedRam:
    """RAM that is not there: it takes everything, to see whether that fits."""

    def __init__(self, ram: Sequence[RamRange]) -> None:
        self.ram = ram

    def write(self, gpa: int, data: bytes | memoryview) -> None:
        """Keep nothing."""

    def write_from_file(
        self, gpa: int, size: int, file: io.BufferedIOBase | io.RawIOBase, offset: int
    ) -> None:
        """Read nothing."""

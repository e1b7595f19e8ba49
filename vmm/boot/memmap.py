"""The memory map a kernel is handed at entry, in the terms of the BIOS call e820.

The PVH start information and the boot parameters of a bzImage carry the same entries.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from vmm.boot import layout
from vmm.boot.layout import RamRange

USABLE = 1
RESERVED = 2


class MapEntry(NamedTuple):
    """One stretch of the map: address and size in bytes, and what it is."""

    address: int
    size: int
    type: int


def memory_map(ram: Sequence[RamRange]) -> list[MapEntry]:
    """Describe RAM that begins at address 0 and reaches beyond 1 MiB.

    Nothing is said of the stretch from 640 KiB to 1 MiB, where the firmware's tables are: kernels
    look for them there all the same, and none takes it for memory.
    """
    entries = [
        MapEntry(0, layout.LOW_RAM_END, USABLE),
        MapEntry(layout.HIGH_RAM, ram[0].end - layout.HIGH_RAM, USABLE),
    ]
    for gpa, size in ram[1:]:
        last = entries[-1]
        if last.address + last.size == gpa:
            entries[-1] = last._replace(size=last.size + size)
        else:
            entries.append(MapEntry(gpa, size, USABLE))
    entries.append(MapEntry(layout.ECAM, layout.ECAM_SIZE, RESERVED))
    return entries

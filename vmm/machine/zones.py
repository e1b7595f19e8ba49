"""Zones of guest RAM: which kinds of memory a machine has, and where the guest sees them.

A machine's RAM is made of zones laid over the RAM ranges of the memory map in order; a zone that
meets the end of a range is split.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from vmm.boot.layout import HOTPLUG_ALIGNMENT, Growth, RamRange
from vmm.config.memory import MEM_BLOCK, HotplugMethod
from vmm.errors import ConfigError
from vmm.page import PAGE

if TYPE_CHECKING:
    from vmm.boot.layout import Area
    from vmm.config.memory import MemoryConfig

HUGE_PAGE = 2 << 20
DEFAULT_ZONE = "mem0"


class Zone(NamedTuple):
    """A stretch of RAM with one kind of backing; ``size`` in bytes.

    It grows by virtio-mem by up to ``room`` bytes, and is asked for ``grown`` of them at boot.
    """

    id: str
    size: int
    file: str | None = None
    shared: bool = False
    hugepages: bool = False
    hugepage_size: int | None = None
    mergeable: bool = False
    prefault: bool = False
    host_numa_node: int | None = None
    reserve: bool = False
    thp: bool = True
    room: int = 0
    grown: int = 0

    @property
    def block_size(self) -> int:
        """The bytes of the blocks in which it grows."""
        return max(MEM_BLOCK, self.page_size)

    @property
    def growth(self) -> Growth:
        """The addresses that it needs to grow."""
        return Growth(self.room, max(HOTPLUG_ALIGNMENT, self.block_size))

    @property
    def page_size(self) -> int:
        """The granularity in bytes at which the zone may be split."""
        return (self.hugepage_size or HUGE_PAGE) if self.hugepages else PAGE

    @property
    def is_file(self) -> bool:
        """Whether what is written to it goes to a file, be it an unnamed one in memory."""
        return self.shared or (self.hugepages and self.file is None)


def default_zone(config: MemoryConfig) -> Zone:
    """The zone for ``size``, and of what kind RAM is that is plugged in later."""
    grows = config.hotplug_method == HotplugMethod.VIRTIO_MEM
    return Zone(
        DEFAULT_ZONE,
        config.size,
        shared=config.shared,
        hugepages=config.hugepages,
        hugepage_size=config.hugepage_size,
        mergeable=config.mergeable,
        prefault=config.prefault,
        reserve=config.reserve,
        thp=config.thp,
        room=(config.hotplug_size or 0) if grows else 0,
        grown=(config.hotplugged_size or 0) if grows else 0,
    )


def zones_of(config: MemoryConfig) -> tuple[Zone, ...]:
    """The zones a memory configuration describes: one for ``size``, then those it lists."""
    zones = [default_zone(config)] if config.size else []
    for zone in config.zones or ():
        zones.append(
            Zone(
                zone.id,
                zone.size,
                file=zone.file,
                shared=zone.shared,
                hugepages=zone.hugepages,
                hugepage_size=zone.hugepage_size,
                mergeable=zone.mergeable,
                prefault=zone.prefault,
                host_numa_node=zone.host_numa_node,
                reserve=zone.reserve,
                thp=config.thp,
                room=zone.hotplug_size or 0,
                grown=zone.hotplugged_size or 0,
            )
        )
    return tuple(zones)


class Room(NamedTuple):
    """Where the guest sees what a zone grows by."""

    zone: Zone
    range: RamRange


def rooms_of(zones: Sequence[Zone], areas: Sequence[Area]) -> list[Room]:
    """The rooms of the zones that grow: one area each, in order."""
    growing = [zone for zone in zones if zone.room]
    return [Room(zone, RamRange(*area)) for zone, area in zip(growing, areas, strict=True)]


class Piece(NamedTuple):
    """A part of a zone: where the guest sees it, and how far into the zone it begins (bytes)."""

    range: RamRange
    zone: Zone
    offset: int


def lay_out(zones: Sequence[Zone], ranges: Sequence[RamRange]) -> list[Piece]:
    """Lay zones over RAM ranges in order, splitting a zone where a range ends.

    Raises: ConfigError (caller) when a zone is not a multiple of its page size, or when the hole
    below 4 GiB would split one of its pages.
    """
    pieces: list[Piece] = []
    left = list(ranges)
    for zone in zones:
        if zone.size == 0 or zone.size % zone.page_size:
            raise ConfigError(
                f"Memory zone {zone.id!r} has {zone.size} bytes (memory.size, memory.zones[].size; "
                f"--memory, --memory-zone), which is not a positive multiple of its page size "
                f"{zone.page_size}; round it up"
            )
        wanted = zone.size
        while wanted:
            current = left.pop(0)
            taken = min(wanted, current.size)
            if taken % zone.page_size:
                raise ConfigError(
                    f"Memory zone {zone.id!r} would be split at {current.gpa + taken:#x}, inside a "
                    f"page of {zone.page_size} bytes; give the zones before it a multiple of it"
                )
            pieces.append(Piece(RamRange(current.gpa, taken), zone, zone.size - wanted))
            if taken < current.size:
                left.insert(0, RamRange(current.gpa + taken, current.size - taken))
            wanted -= taken
    return pieces

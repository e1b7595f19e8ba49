"""``MemoryConfig`` and its zones: how much RAM, and what backs it on the host."""

from enum import StrEnum
from typing import Annotated, ClassVar, Final

from vmm.config.model import ConfigModel
from vmm.config.units import MIB, U32, Array, ByteSize, Choice, HostPath, Text
from vmm.config.values import Cli

DEFAULT_SIZE: Final = 512 * MIB
"""RAM of a VM whose configuration does not speak of memory, in bytes."""

MEM_BLOCK: Final = 2 * MIB
"""Bytes of a block of virtio-mem; a zone of larger pages has blocks of one page."""
MEM_ALIGNMENT: Final = 128 * MIB
"""The room for virtio-mem is a multiple of this: Linux takes memory in such pieces."""


class HotplugMethod(StrEnum):
    """How RAM is added to a running guest."""

    ACPI = "Acpi"
    VIRTIO_MEM = "VirtioMem"


class MemoryZoneConfig(ConfigModel):
    """A part of the RAM with its own backing; sizes in bytes."""

    FLAG: ClassVar[str] = "--memory-zone"

    id: Text
    size: Annotated[ByteSize, Cli(default=DEFAULT_SIZE)]
    file: HostPath | None = None
    mergeable: bool = False
    shared: bool = False
    hugepages: bool = False
    hugepage_size: ByteSize | None = None
    host_numa_node: U32 | None = None
    hotplug_size: ByteSize | None = None
    hotplugged_size: ByteSize | None = None
    prefault: bool = False
    reserve: bool = False


class MemoryConfig(ConfigModel):
    """The guest's RAM; sizes in bytes. ``size`` is 0 where zones hold all of it."""

    FLAG: ClassVar[str] = "--memory"

    size: Annotated[ByteSize, Cli(default=DEFAULT_SIZE)]
    mergeable: bool = False
    hotplug_method: Choice[HotplugMethod] = HotplugMethod.ACPI
    hotplug_size: ByteSize | None = None
    hotplugged_size: ByteSize | None = None
    shared: bool = False
    hugepages: bool = False
    hugepage_size: ByteSize | None = None
    prefault: bool = False
    reserve: bool = False
    thp: bool = True
    zones: Annotated[Array[MemoryZoneConfig] | None, Cli(hidden=True)] = None

    @property
    def total_size(self) -> int:
        """RAM at boot in bytes: ``size`` and the zones, without what hot-plug may add."""
        return self.size + sum(zone.size for zone in self.zones or ())

    @property
    def is_shareable(self) -> bool:
        """Whether another process can map all of the RAM, as vhost-user devices must."""
        if self.size == 0 and self.zones:
            return all(zone.shared or zone.hugepages for zone in self.zones)
        return self.shared or self.hugepages

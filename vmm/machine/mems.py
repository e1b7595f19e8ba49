"""From the memory zones that grow to the virtio-mem devices by which they do."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm.config.pci import PciSlot
from vmm.machine.numa import node_of_zone
from vmm.machine.zones import zones_of
from vmm.virtio.mem import Mem

if TYPE_CHECKING:
    from vmm.config.vm import VmConfig
    from vmm.machine.memory import GuestMemory


class MemSlot(PciSlot):
    """A zone that grows, which is also the name of its device; ``node`` is its NUMA node."""

    id: str
    node: int | None


def entries(config: VmConfig) -> tuple[MemSlot, ...]:
    """One entry a zone that grows, in their order."""
    return tuple(
        MemSlot(id=zone.id, node=node_of_zone(config, zone.id))
        for zone in zones_of(config.memory)
        if zone.room
    )


def open_mem(config: MemSlot, id: str, memory: GuestMemory) -> Mem:
    """The device by which a zone grows. Raises: ConfigError (caller)."""
    zone, blocks = memory.room_of(config.id)
    return Mem(id, memory, blocks, zone.grown, node=config.node)

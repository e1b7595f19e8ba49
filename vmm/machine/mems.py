"""From the memory zones that grow to the virtio-mem devices by which they do."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from vmm.config.pci import PciSlot
from vmm.machine.numa import node_of_zone
from vmm.machine.zones import zones_of

if TYPE_CHECKING:
    from vmm.config.vm import VmConfig
    from vmm.machine.sections import Board
    from vmm.virtio.device import VirtioDevice


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


@asynccontextmanager
async def open_mem(config: MemSlot, id: str, board: Board) -> AsyncIterator[VirtioDevice]:
    """The device by which a zone grows. Raises: ConfigError (caller)."""
    from vmm.virtio.mem import Mem  # Only now: a VM whose memory stays as it is starts sooner.

    zone, blocks = board.memory.room_of(config.id)
    yield Mem(id, board.memory, blocks, zone.grown, node=config.node)

"""What a snapshot keeps of virtio devices: of the transport, and of each type of device.

``OWN`` has a model for each type; what a device gives and takes by ``save`` and ``load`` are the
model's fields.
"""

from collections.abc import Mapping
from typing import Annotated, Final

from pydantic import Strict

from vmm.config.units import U8, U16, U32, U64, Array
from vmm.errors import ConfigError
from vmm.saved import SavedState
from vmm.virtio.spec import DeviceId


class SavedPosition(SavedState):
    """Where in its ring a queue stands; see ``vmm.virtio.queue.QueueState``."""

    next_avail: U16
    next_used: U16
    unsignalled: U32


class SavedQueue(SavedState):
    """What the driver wrote about a queue; ``position`` is that of one which is served."""

    size: U16
    vector: U16
    is_enabled: bool
    desc: U64
    driver: U64
    device: U64
    position: SavedPosition | None = None


class SavedTransport(SavedState):
    """The common configuration, and whether the device serves its queues."""

    device_id: U16
    accepted: U64
    status: U8
    isr: U8
    generation: U8
    device_feature_select: U32
    driver_feature_select: U32
    config_vector: U16
    queue_select: U16
    queues: Array[SavedQueue]
    is_active: bool


class SavedBlock(SavedState):
    """The cache mode that the driver chose."""

    writeback: bool


class SavedNet(SavedState):
    """The address, and what the driver chose."""

    mac: str
    pairs: U16
    guest_offloads: U64 | None
    is_announcing: bool


class SavedConsole(SavedState):
    """Input on its way to the guest, in hex."""

    input: str


class SavedBalloon(SavedState):
    """Pages wanted and given."""

    wanted_pages: U32
    actual_pages: U32


class SavedWatchdog(SavedState):
    """Whether the timer runs."""

    is_armed: bool


class SavedPmem(SavedState):
    """Where the memory is, and its size in bytes."""

    start: U64
    size: U64


# Strict models would refuse a JSON array for a tuple.
SavedMapping = Annotated[tuple[U64, U64, U64, U32], Strict(False)]


class SavedDomain(SavedState):
    """A domain of the IOMMU: its members, and its mappings; without any these are passed through.

    A mapping is its first and last address, where in RAM that is, and what is allowed.
    """

    number: U32
    endpoints: Array[U32]
    mappings: Array[SavedMapping] | None


class SavedIommu(SavedState):
    """The domains, and whether what is in none is passed through."""

    bypass: bool
    domains: Array[SavedDomain]


class SavedMem(SavedState):
    """The region and its blocks, in bytes, and the runs of plugged blocks: the first and how many.

    ``requested_size`` is what the guest is asked to have.
    """

    gpa: U64
    size: U64
    block_size: U64
    requested_size: U64
    plugged: Array[tuple[U64, U64]]


class SavedNothing(SavedState):
    """A device that keeps nothing beyond its transport's state."""


OWN: Final[Mapping[int, type[SavedState]]] = {
    DeviceId.NET: SavedNet,
    DeviceId.BLOCK: SavedBlock,
    DeviceId.CONSOLE: SavedConsole,
    DeviceId.RNG: SavedNothing,
    DeviceId.BALLOON: SavedBalloon,
    DeviceId.CLOCK: SavedNothing,
    DeviceId.VSOCK: SavedNothing,
    DeviceId.IOMMU: SavedIommu,
    DeviceId.MEM: SavedMem,
    DeviceId.PMEM: SavedPmem,
    DeviceId.WATCHDOG: SavedWatchdog,
}
"""Of each type of device, the model of its own state."""


def own_state(device_id: int) -> type[SavedState]:
    """The model of a type's own state. Raises: ConfigError when this program has no such type."""
    if device_id not in OWN:
        raise ConfigError(
            f"The snapshot has a virtio device of type {device_id}, which this program does not "
            "have; restore it with the program that wrote it"
        )
    return OWN[device_id]

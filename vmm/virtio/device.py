"""What every virtio device is to its transport, and the loop that serves a slow device's queue.

A device module says which type it is, what it offers, what its configuration space shows, and how a
queue is served. It opens nothing: files and sockets come through its constructor. Negotiation,
reset and the device's tasks are not its business: see ``vmm.virtio.runner`` and the transport.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, ClassVar, Final, NamedTuple, NoReturn, Protocol

import trio

from vmm.errors import HostError
from vmm.virtio.spec import DeviceId, Feature

if TYPE_CHECKING:
    from vmm.virtio.chain import Chain
    from vmm.virtio.queue import Queue

BATCH = 64
"""Chains that one wake serves before the loop gets its turn."""

OWN_QUEUES: Final = Feature.RING_PACKED | Feature.RING_RESET
"""What a queue that this program serves can do, where the device can go on without it."""


class StuckError(HostError):
    """The host's fault: I/O that was to end before a device stands has not, and may go on."""


class Memory(Protocol):
    """Guest memory by address; both raise GuestError where there is no RAM."""

    def read(self, gpa: int, size: int) -> bytes: ...
    def write(self, gpa: int, data: bytes | memoryview) -> None: ...


class Active(NamedTuple):
    """What a device has while its driver drives it.

    ``features`` are those both sides agreed on. ``queues`` are the enabled ones, by index; their
    state survives when the tasks that serve them are stopped and started again.
    """

    features: int
    queues: tuple[Queue, ...]
    memory: Memory
    config_changed: Callable[[], None]

    def has(self, feature: int) -> bool:
        """Whether a feature bit (a mask, not a number) was agreed on."""
        return bool(self.features & feature)

    def queue(self, index: int) -> Queue | None:
        """The queue of an index, None when the driver did not enable it."""
        return next((queue for queue in self.queues if queue.index == index), None)


class VirtioDevice(ABC):
    """One device; ``id`` is its name in the device tree, in counters and in events."""

    DEVICE_ID: ClassVar[DeviceId]
    PCI_CLASS: ClassVar[tuple[int, int]] = (0xFF, 0xFF)
    """Class and subclass in configuration space."""
    RING_FEATURES: ClassVar[Feature] = Feature(0)
    """What its queues can do beyond VERSION_1: see ``OWN_QUEUES``."""
    IS_TRANSLATED: ClassVar[bool] = True
    """Whether the IOMMU translates its addresses, if it is behind that."""

    def __init__(self, id: str) -> None:
        self.id = id
        self._notify_config: Callable[[], None] | None = None

    @property
    @abstractmethod
    def queue_sizes(self) -> tuple[int, ...]:
        """The most entries of each queue, a power of two."""

    @property
    def features(self) -> int:
        """The feature bits of its type that it offers."""
        return 0

    def read_config(self, offset: int, size: int) -> bytes:
        """Give bytes of its configuration space; fewer, or none, past the end of it.

        The space's size is that of ``read_config(0, 4096)``.
        """
        return b""

    def write_config(self, offset: int, data: bytes) -> None:  # noqa: B027  most have no such field
        """Take a guest's write, of any offset and length; what is read-only stays as it is."""

    async def run_queues(self, active: Active) -> None:
        """Serve the queues until cancelled: a task a queue, unless a device knows better.

        Raises: GuestError when the guest broke the protocol, HostError: the device then stands
        still until it is reset.
        Cancel: I/O in flight has ended, and every chain that was taken is given back. The queues
        go on where they stood when this is called again with them. Raises StuckError where the
        host does not let it end.
        """
        async with trio.open_nursery() as nursery:
            for queue in active.queues:
                nursery.start_soon(self.run_queue, queue, active)

    async def run_queue(self, queue: Queue, active: Active) -> None:
        """Serve one queue until cancelled; see ``run_queues``."""
        await trio.lowlevel.checkpoint()

    def reset(self) -> None:  # noqa: B027  most keep nothing
        """Forget what the driver chose; its queues are being taken from the device."""

    def save(self) -> dict[str, object]:
        """Give what a snapshot keeps of it beyond features, queues and registers."""
        return {}

    def load(self, state: Mapping[str, object]) -> None:  # noqa: B027  most keep nothing
        """Take over what ``save`` gave. Raises: ConfigError when it cannot be (caller)."""

    @property
    def resources(self) -> Sequence[Mapping[str, object]]:
        """What vm.info lists of it, beside its transport's."""
        return ()

    @property
    def settled(self) -> Mapping[str, object]:
        """Fields of its configuration that were left open and chosen when it was made."""
        return {}

    @property
    def counters(self) -> dict[str, int]:
        """What vm.counters shows of it; a device without any is not shown."""
        return {}

    @property
    def ram_bytes(self) -> int:
        """What the device adds to the guest's RAM; what it takes away is negative."""
        return 0

    def config_changed(self) -> None:
        """Tell the driver, if there is one, to read the configuration space again."""
        if self._notify_config is not None:
            self._notify_config()

    def attach(self, notify_config: Callable[[], None]) -> None:
        """Learn from the transport how the driver is told of a change."""
        self._notify_config = notify_config


def offered_features(device: VirtioDevice, *, is_translated: bool = False) -> int:
    """All feature bits of a device, which may be behind the IOMMU."""
    platform = Feature.ACCESS_PLATFORM if is_translated else Feature(0)
    return device.features | device.RING_FEATURES | Feature.VERSION_1 | platform


async def serve_chains(queue: Queue, handle: Callable[[Chain], Awaitable[int]]) -> NoReturn:
    """Serve a queue with a coroutine that takes a chain and returns the bytes it wrote to it.

    One wake serves all there is and interrupts once. For slow devices: the chains are Python's.
    Raises: GuestError when the driver broke the ring, and whatever ``handle`` raises.
    Cancel: a chain that ``handle`` was cancelled over is given back, to be handled once more.
    """
    while True:
        queue.suppress()
        while await _serve_batch(queue, handle) or queue.enable():
            await trio.lowlevel.checkpoint()
            queue.suppress()
        await wait_kick(queue.kick_fd)


async def _serve_batch(queue: Queue, handle: Callable[[Chain], Awaitable[int]]) -> bool:
    """Serve up to a batch of chains; whether the queue may have more."""
    served = 0
    try:
        while served < BATCH and (chain := queue.pop()) is not None:
            try:
                written = await handle(chain)
            except trio.Cancelled:
                queue.unpop(chain)
                raise
            queue.push(chain, written)
            served += 1
    finally:
        if served:
            queue.signal()
    return served == BATCH


async def wait_kick(fd: int) -> None:
    """Wait until the driver has written a queue's doorbell, and clear it."""
    await trio.lowlevel.wait_readable(fd)
    with suppress(BlockingIOError):
        os.eventfd_read(fd)

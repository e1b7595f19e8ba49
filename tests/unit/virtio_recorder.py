"""A virtio device that notes what its transport does to it."""

from __future__ import annotations

import trio

from vmm.testing.virtio_pci import Bench
from vmm.virtio.device import Active, VirtioDevice
from vmm.virtio.queue import Queue
from vmm.virtio.spec import DeviceId, Feature

CONFIG = b"configuration!"


class Recorder(VirtioDevice):
    """Two queues and a configuration; notes which queues it was given, and serves nothing.

    ``queues`` are those it has now.
    """

    DEVICE_ID = DeviceId.CONSOLE
    PCI_CLASS = (0x07, 0x80)
    RING_FEATURES = Feature.RING_EVENT_IDX | Feature.RING_INDIRECT_DESC

    def __init__(self, more: int = 0, config: bytes = CONFIG) -> None:
        super().__init__("recorder")
        self.RING_FEATURES |= Feature(more)  # type: ignore[misc]  # a device type each would be longer
        self.config = bytearray(config)
        self.given: list[tuple[int, ...]] = []
        self.queues: dict[int, Queue] = {}
        self.may_stop = trio.Event()
        self.may_stop.set()

    @property
    def queue_sizes(self) -> tuple[int, ...]:
        return (64, 128)

    @property
    def features(self) -> int:
        return 0b1001

    def read_config(self, offset: int, size: int) -> bytes:
        return bytes(self.config[offset : offset + size])

    def write_config(self, offset: int, data: bytes) -> None:
        if offset == 0:
            self.config[: len(data)] = data

    async def run_queues(self, active: Active) -> None:
        self.given.append(tuple(queue.index for queue in active.queues))
        self.queues = {queue.index: queue for queue in active.queues}
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await self.may_stop.wait()
            self.queues = {}


def recorder(bench: Bench) -> Recorder:
    assert isinstance(bench.device, Recorder)
    return bench.device


async def settle() -> None:
    await trio.testing.wait_all_tasks_blocked()

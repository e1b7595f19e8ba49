"""The entropy device: fills the driver's buffers from a file of the host.

Queues: 0, requests, each a buffer for the device to write.
Features: none of its own. Configuration space: none.
Snapshot: nothing.
Spec: Virtio 1.2, section 5.4.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, ClassVar

import trio

from vmm.errors import GuestError, HostError
from vmm.virtio.device import OWN_QUEUES, Active, VirtioDevice, serve_chains
from vmm.virtio.spec import DeviceId, Feature

if TYPE_CHECKING:
    from vmm.virtio.chain import Chain
    from vmm.virtio.queue import Queue

QUEUE_SIZE = 256
MAX_REQUEST_BYTES = 64 << 10
"""A driver may get less than it asked for. One chain can name the same page many times over, so the
sum of its buffers is no measure of what it needs."""


class Rng(VirtioDevice):
    """An entropy device over ``fd``, which does not block; the caller closes it.

    ``source`` is its name in an error.
    """

    DEVICE_ID: ClassVar[DeviceId] = DeviceId.RNG
    RING_FEATURES: ClassVar[Feature] = OWN_QUEUES

    def __init__(self, id: str, fd: int, source: str) -> None:
        super().__init__(id)
        self._fd = fd
        self._source = source

    @property
    def queue_sizes(self) -> tuple[int, ...]:
        """One queue."""
        return (QUEUE_SIZE,)

    async def run_queue(self, queue: Queue, active: Active) -> None:
        """Fill what the driver posts. Raises: GuestError, HostError when the source has ended."""
        await serve_chains(queue, self._fill)

    async def _fill(self, chain: Chain) -> int:
        if not chain.writable_bytes:
            raise GuestError("A request for entropy has no buffer to write to")
        return chain.write(await self._draw(min(chain.writable_bytes, MAX_REQUEST_BYTES)))

    async def _draw(self, limit: int) -> bytes:
        """Wait for between 1 and ``limit`` bytes."""
        while True:
            try:
                data = os.read(self._fd, limit)
            except BlockingIOError:
                await trio.lowlevel.wait_readable(self._fd)
                continue
            except OSError as error:
                raise HostError.from_os_error(
                    "read of entropy", error, path=self._source
                ) from error
            if not data:
                hint = "give rng.src (--rng src=…) a source without end, such as /dev/urandom"
                raise HostError("read of entropy", errno.ENODATA, path=self._source, hint=hint)
            return data

"""The watchdog: resets the VM when the guest has stopped telling that it lives.

Queues: 0, pings, each a buffer of one byte; the device writes 1 to it. The first ping starts the
timer.
Features: none. Configuration space: none.
Snapshot: whether the timer runs; it begins anew.
Spec: none of the virtio specification; the device type is Cloud Hypervisor's own.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Protocol

import trio

from vmm.errors import GuestError
from vmm.virtio.device import OWN_QUEUES, Active, VirtioDevice, serve_chains
from vmm.virtio.spec import DeviceId, Feature

if TYPE_CHECKING:
    from vmm.virtio.chain import Chain
    from vmm.virtio.queue import Queue

logger = logging.getLogger(__name__)

QUEUE_SIZE = 8
TIMEOUT_S = 20.0
ALIVE = b"\x01"


class Lifecycle(Protocol):
    """Who resets the VM."""

    def request_reset(self) -> None: ...


class Watchdog(VirtioDevice):
    """A watchdog with a fixed time, which begins anew when the VM was paused."""

    DEVICE_ID: ClassVar[DeviceId] = DeviceId.WATCHDOG
    RING_FEATURES: ClassVar[Feature] = OWN_QUEUES

    def __init__(self, id: str, lifecycle: Lifecycle) -> None:
        super().__init__(id)
        self._lifecycle = lifecycle
        self._queue: Queue | None = None
        self._timer = trio.CancelScope()
        self._is_armed = False
        self._will_be_armed = False

    @property
    def queue_sizes(self) -> tuple[int, ...]:
        """One queue."""
        return (QUEUE_SIZE,)

    async def run_queues(self, active: Active) -> None:
        """Take pings, and watch that they come."""
        queue = active.queue(0)
        if queue is not self._queue:
            # Another driver's, after a reset; only its own ping starts the timer.
            self._queue, self._is_armed, self._will_be_armed = queue, self._will_be_armed, False
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch)
            nursery.start_soon(super().run_queues, active)

    async def run_queue(self, queue: Queue, active: Active) -> None:
        """Take pings. Raises: GuestError."""
        await serve_chains(queue, self._take_ping)

    def save(self) -> dict[str, object]:
        """Whether the timer runs."""
        return {"is_armed": self._is_armed}

    def load(self, state: Mapping[str, object]) -> None:
        """Take over what ``save`` gave; the timer starts with the queues."""
        self._will_be_armed = bool(state.get("is_armed"))

    async def _take_ping(self, chain: Chain) -> int:
        if not chain.write(ALIVE):
            raise GuestError("A ping of the watchdog has no room for the answer")
        self._is_armed = True
        self._set_timer()
        return len(ALIVE)

    def _set_timer(self) -> None:
        later = TIMEOUT_S if self._is_armed else math.inf
        self._timer.deadline = trio.current_time() + later

    async def _watch(self) -> None:
        with trio.CancelScope() as self._timer:
            self._set_timer()
            await trio.sleep_forever()
        # Here only when the time is over: any other cancelling goes on outwards.
        logger.warning("The guest has not pinged its watchdog for %g s; it is reset", TIMEOUT_S)
        self._is_armed = False
        self._lifecycle.request_reset()

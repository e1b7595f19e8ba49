"""The life of a device's tasks: started with its queues, stopped, started again.

Activation, reset, sleep and the reset of one queue are all made of ``start`` and ``stop``. Both are
called from a register write and return at once; ``run`` does what they ask, one after the other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn, Protocol

import trio

from vmm.errors import GuestError, HostError, PeerError, VmmError, first_error
from vmm.virtio.device import StuckError

if TYPE_CHECKING:
    from vmm.virtio.device import Active, VirtioDevice


class Observer(Protocol):
    """Who hears how it went."""

    def broken(self, error: VmmError) -> None:
        """The device's tasks have ended by an error that is not this program's."""

    def stopped(self) -> None:
        """What ``stop`` asked for is done."""


class DeviceRunner:
    """Runs the queues of one device in a scope of their own."""

    def __init__(self, device: VirtioDevice, observer: Observer) -> None:
        self._device = device
        self._observer = observer
        self._next: Active | None = None
        self._wanted = trio.Event()
        self._scope: trio.CancelScope | None = None
        self._stopped = trio.Event()
        self._stopped.set()

    def start(self, active: Active) -> None:
        """Have the queues served, as soon as what ran before has ended."""
        self._next = active
        self._wanted.set()

    def stop(self) -> trio.Event:
        """Have the queues left alone; the event is set once no task is about them any more."""
        self._next = None
        if self._scope is not None:
            self._scope.cancel()
        return self._stopped

    async def run(
        self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> NoReturn:
        """Do what ``start`` and ``stop`` ask, for ever.

        Cancel: the device's tasks have ended.
        """
        task_status.started()
        while True:
            await self._wanted.wait()
            self._wanted = trio.Event()
            active, self._next = self._next, None
            if active is not None:
                await self._serve(active)

    async def _serve(self, active: Active) -> None:
        self._stopped = trio.Event()
        try:
            with trio.CancelScope() as self._scope:
                await self._run_queues(active, self._scope)
                # A device that has nothing left to do, or is broken, stays so until it is stopped.
                await trio.sleep_forever()
        finally:
            self._scope = None
            self._stopped.set()
            self._observer.stopped()

    async def _run_queues(self, active: Active, scope: trio.CancelScope) -> None:
        try:
            await self._device.run_queues(active)
        except* (GuestError, HostError, PeerError) as group:
            # Of what fails while it is stopped only that matters that it has not stopped.
            told = group.subgroup(StuckError) if scope.cancel_called else group
            if told is not None:
                error = first_error(told)
                assert isinstance(error, VmmError)
                self._observer.broken(error)

"""Persistent memory: a stretch of guest memory that a file of the host is behind.

The guest reads and writes it without this device; what it asks for here is that its writes be made
to last.
Queues: 0, requests, each a type of 32 bits and room for an answer of as many.
Features: none. Refused: SHMEM_REGION, the memory is no part of a BAR.
Configuration space: where the memory is and how large, 64 bits each.
Snapshot: both, to be compared.
Spec: Virtio 1.2, section 5.19.
"""

from __future__ import annotations

import errno
import logging
import struct
from collections.abc import Callable, Mapping
from enum import IntEnum
from typing import TYPE_CHECKING, ClassVar, NoReturn

import trio

from vmm.errors import ConfigError, GuestError
from vmm.virtio.device import BATCH, OWN_QUEUES, Active, StuckError, VirtioDevice, wait_kick
from vmm.virtio.spec import DeviceId, Feature

if TYPE_CHECKING:
    from vmm.virtio.chain import Chain
    from vmm.virtio.queue import Queue

logger = logging.getLogger(__name__)

QUEUE_SIZE = 256

CONFIG = struct.Struct("<QQ")
WORD = struct.Struct("<I")
FLUSH = 0
"""The type of request, section 5.19.6."""

DRAIN_SECONDS = 30
"""How long a flush may take to end when the device is stopped."""


class Outcome(IntEnum):
    """The answers, section 5.19.6."""

    OK = 0
    EIO = 1


class Pmem(VirtioDevice):
    """Persistent memory of ``size`` bytes at guest address ``start``.

    ``flush`` makes what was written last; it blocks, and raises OSError. Without one nothing lasts,
    and there is nothing to wait for.
    """

    DEVICE_ID: ClassVar[DeviceId] = DeviceId.PMEM
    RING_FEATURES: ClassVar[Feature] = OWN_QUEUES

    def __init__(self, id: str, start: int, size: int, flush: Callable[[], None] | None) -> None:
        super().__init__(id)
        self._start = start
        self._size = size
        self._flush = flush
        self._flushes = 0
        self._errors = 0

    @property
    def queue_sizes(self) -> tuple[int, ...]:
        """One queue."""
        return (QUEUE_SIZE,)

    @property
    def resources(self) -> tuple[dict[str, object], ...]:
        """Its memory."""
        return ({"MmioAddressRange": {"base": self._start, "size": self._size}},)

    @property
    def counters(self) -> dict[str, int]:
        """Requests to flush that were answered, and how often the host failed to."""
        return {"flushes": self._flushes, "flush_errors": self._errors}

    def read_config(self, offset: int, size: int) -> bytes:
        """Where the memory is, and its size."""
        return CONFIG.pack(self._start, self._size)[offset : offset + size]

    async def run_queue(self, queue: Queue, active: Active) -> NoReturn:
        """Serve requests; those that wait together share one flush.

        Raises: GuestError, StuckError when a flush does not end.
        """
        while True:
            queue.suppress()
            while chains := _take(queue):
                await self._serve(queue, chains)
            if not queue.enable():
                await wait_kick(queue.kick_fd)

    async def _serve(self, queue: Queue, chains: list[Chain]) -> None:
        flushes = [_is_flush(chain) for chain in chains]
        outcome: Outcome | None = None
        try:
            outcome = await self._flushed() if any(flushes) else Outcome.EIO
        finally:
            if outcome is None:
                for chain in reversed(chains):
                    queue.unpop(chain)
        for chain, is_flush in zip(chains, flushes, strict=True):
            chain.write(WORD.pack(outcome if is_flush else Outcome.EIO))
            queue.push(chain, WORD.size)
        self._flushes += sum(flushes)
        queue.signal()
        await trio.lowlevel.checkpoint()

    async def _flushed(self) -> Outcome:
        """Have everything written so far made to last."""
        if self._flush is None:
            return Outcome.OK
        error = await _in_thread(self._flush)
        if error is None:
            return Outcome.OK
        self._errors += 1
        if self._errors & (self._errors - 1) == 0:  # Ever fewer: the guest can cause them.
            logger.warning(
                "Pmem %s: a flush has failed (error %d): %s", self.id, self._errors, error.strerror
            )
        return Outcome.EIO

    def save(self) -> dict[str, object]:
        """Where it is, and its size."""
        return {"start": self._start, "size": self._size}

    def load(self, state: Mapping[str, object]) -> None:
        """Check that it is what it was. Raises: ConfigError (caller)."""
        for name, now in self.save().items():
            if state.get(name) != now:
                raise ConfigError(
                    f"The state of pmem {self.id} has {name} {state.get(name)}, and it is {now} "
                    "here; give it the file and the place among the devices that it had"
                )


def _take(queue: Queue) -> list[Chain]:
    """The requests that wait, up to a batch."""
    chains: list[Chain] = []
    while len(chains) < BATCH and (chain := queue.pop()) is not None:
        if chain.writable_bytes < WORD.size:
            raise GuestError(
                f"A request to flush has room for {chain.writable_bytes} bytes; its answer has "
                f"{WORD.size}"
            )
        chains.append(chain)
    return chains


def _is_flush(chain: Chain) -> bool:
    return chain.read(WORD.size) == WORD.pack(FLUSH)


async def _in_thread(work: Callable[[], None]) -> OSError | None:
    """Have a thread do what blocks; the error if there is one.

    Cancel: it has ended. Raises: StuckError when it has not, long after.
    """
    scope = trio.CancelScope(shield=True)
    ended = trio.Event()
    failure: OSError | None = None

    async def attempt() -> None:
        nonlocal failure
        with scope:
            try:
                await trio.to_thread.run_sync(work, abandon_on_cancel=True)
            except OSError as error:
                failure = error
        ended.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(attempt)
        try:
            await ended.wait()
        finally:
            scope.deadline = trio.current_time() + DRAIN_SECONDS
    if scope.cancelled_caught:
        raise StuckError(
            "flush of a pmem device",
            errno.ETIMEDOUT,
            hint=f"its file has not answered for {DRAIN_SECONDS} s; look at the host's storage",
        )
    return failure

"""Output on its way to somebody who may be absent, stall, leave, and come again."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import NoReturn

import trio

KEPT_BYTES = 1 << 20
CHUNK_BYTES = 65536
STALL_SECONDS = 1.0


class Outbox:
    """A queue of bytes between one writer and one receiver at a time.

    While a receiver takes what it is given nothing is dropped: the writer waits for it. While there
    is none, or it has taken nothing for a second, the writer goes on, as the guest behind it must,
    and the newest ``limit`` bytes are kept.
    """

    def __init__(self, limit: int = KEPT_BYTES) -> None:
        self._limit = limit
        self._kept = bytearray()
        # How many bytes ever left the queue: where the kept ones stand in all that was put.
        self._position = 0
        self._has_receiver = False
        self._is_stalled = False
        self._changed = trio.Event()

    @property
    def is_empty(self) -> bool:
        """Whether nothing waits."""
        return not self._kept

    async def put(self, data: bytes) -> None:
        """Add data, and wait until all there is was taken, or the receiver stalls or leaves.

        Cancel: the data stays in the queue.
        """
        if data:
            self._kept += data
            self._trim()
            self._announce()
        while self._kept and self._is_awaited:
            with trio.move_on_after(STALL_SECONDS) as patience:
                await self._changed.wait()
            if patience.cancelled_caught:
                self._is_stalled = True
                self._trim()
        await trio.lowlevel.checkpoint()

    async def deliver(
        self,
        send: Callable[[bytes], Awaitable[int]],
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> NoReturn:
        """Be the receiver: pass what is kept and what comes to ``send``, until that raises.

        ``send`` returns how many bytes it took; what it did not take waits for the next receiver.
        """
        self._has_receiver = True
        self._is_stalled = False
        task_status.started()
        try:
            while True:
                while not self._kept:
                    await self._changed.wait()
                begin = self._position
                end = begin + await send(bytes(self._kept[:CHUNK_BYTES]))
                # Some of it may have been dropped while a stalled receiver had it in hand.
                self._forget(max(0, end - self._position))
                self._is_stalled = False
                self._announce()
        finally:
            self._has_receiver = False
            self._trim()
            self._announce()

    @property
    def _is_awaited(self) -> bool:
        return self._has_receiver and not self._is_stalled

    def _trim(self) -> None:
        if not self._is_awaited:
            self._forget(max(0, len(self._kept) - self._limit))

    def _forget(self, count: int) -> None:
        del self._kept[:count]
        self._position += count

    def _announce(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

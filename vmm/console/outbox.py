"""Output on its way to somebody who may be absent, stall, leave, and come again."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import NoReturn

import trio

KEPT_BYTES = 1 << 20
CHUNK_BYTES = 65536


class Outbox:
    """A queue of bytes between one writer and one receiver at a time.

    While no receiver is there the newest ``limit`` bytes are kept for the next one. While one is
    there nothing is dropped: the writer waits.
    """

    def __init__(self, limit: int = KEPT_BYTES) -> None:
        self._limit = limit
        self._kept = bytearray()
        self._has_receiver = False
        self._changed = trio.Event()

    async def put(self, data: bytes) -> None:
        """Add data, and wait until the receiver has taken all there is or has gone.

        Cancel: the data stays in the queue.
        """
        self._kept += data
        self._trim()
        self._announce()
        while self._kept and self._has_receiver:
            await self._changed.wait()
        await trio.lowlevel.checkpoint()

    async def deliver(self, send: Callable[[bytes], Awaitable[int]]) -> NoReturn:
        """Be the receiver: pass what is kept and what comes to ``send``, until that raises.

        ``send`` returns how many bytes it took; what it did not take waits for the next receiver.
        """
        self._has_receiver = True
        try:
            while True:
                while not self._kept:
                    await self._changed.wait()
                taken = await send(bytes(self._kept[:CHUNK_BYTES]))
                del self._kept[:taken]
                if not self._kept:
                    self._announce()
        finally:
            self._has_receiver = False
            self._trim()
            self._announce()

    def _trim(self) -> None:
        if not self._has_receiver:
            del self._kept[: max(0, len(self._kept) - self._limit)]

    def _announce(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

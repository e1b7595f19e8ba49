"""Output to a descriptor that the host's side opened: a terminal, a pipe, a regular file.

A regular file cannot be waited on and is written directly: that is a copy into the page cache.
Everything else is expected to be non-blocking. What a slow reader leaves waits in an outbox, and a
task of its own writes it when there is room.
"""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import NoReturn

import trio

from vmm.console.outbox import Outbox

logger = logging.getLogger(__name__)


class DescriptorOutput:
    """Writes to a descriptor and survives its failures. ``name`` is the console's, for the log."""

    def __init__(self, fd: int, name: str) -> None:
        self._fd = fd
        self._name = name
        self._outbox = Outbox()
        self._is_open = True
        self._dropped_bytes = 0

    async def write(self, data: bytes) -> None:
        """Write all of it, or drop it where the descriptor refuses it; the next call tries anew."""
        while data and self._is_open and self._outbox.is_empty:
            written = self._write_now(data)
            if not written:
                break
            data = data[written:]
        await self._outbox.put(data)

    async def run(
        self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> NoReturn:
        """Write what waits, for ever."""
        await self._outbox.deliver(self._send, task_status=task_status)

    def close(self) -> None:
        """Stop writing; what comes after is ignored. The descriptor is its opener's to close."""
        self._is_open = False
        if self._dropped_bytes:
            logger.warning("The %s lost %d bytes of output", self._name, self._dropped_bytes)

    async def _send(self, data: bytes) -> int:
        while not (written := self._write_now(data)):
            await trio.lowlevel.wait_writable(self._fd)
        return written

    def _write_now(self, data: bytes) -> int:
        """Write what there is room for, and give its size; what is refused counts as written."""
        try:
            return os.write(self._fd, data)
        except BlockingIOError:
            return 0
        except OSError as error:
            if not self._dropped_bytes:
                logger.warning(
                    "The %s cannot be written: %s; its output is dropped until it can be",
                    self._name,
                    error.strerror,
                )
            self._dropped_bytes += len(data)
            return len(data)


@asynccontextmanager
async def serve_output(fd: int, name: str) -> AsyncIterator[DescriptorOutput]:
    """Write to a descriptor until left. It stays open, and is the caller's to close."""
    output = DescriptorOutput(fd, name)
    try:
        async with trio.open_nursery() as nursery:
            await nursery.start(output.run)
            yield output
            nursery.cancel_scope.cancel()
    finally:
        output.close()
        trio.lowlevel.notify_closing(fd)

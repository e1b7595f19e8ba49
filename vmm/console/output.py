"""Output to a descriptor that the host's side opened: a terminal, a pipe, a regular file.

A regular file cannot be waited on and is written directly: that is a copy into the page cache.
Everything else is expected to be non-blocking and is waited for.
"""

from __future__ import annotations

import logging
import os

import trio

logger = logging.getLogger(__name__)

CHUNK_BYTES = 65536


class DescriptorOutput:
    """Writes to a descriptor and survives its failures. ``name`` is the console's, for the log."""

    def __init__(self, fd: int, name: str) -> None:
        self._fd = fd
        self._name = name
        self._kept = bytearray()
        self._is_open = True
        self._dropped_bytes = 0

    async def write(self, data: bytes) -> None:
        """Write all of it, or drop it where the descriptor refuses it; the next call tries anew.

        Cancel: what was not yet written is kept, and goes first with the next write.
        """
        self._kept += data
        while self._kept and self._is_open:
            try:
                written = os.write(self._fd, self._kept[:CHUNK_BYTES])
            except BlockingIOError:
                try:
                    await trio.lowlevel.wait_writable(self._fd)
                except trio.ClosedResourceError:
                    return
            except OSError as error:
                self._drop(error)
            else:
                del self._kept[:written]
        await trio.lowlevel.checkpoint()

    def close(self) -> None:
        """Stop writing; what comes after is ignored. The descriptor is its opener's to close."""
        self._is_open = False
        trio.lowlevel.notify_closing(self._fd)
        if self._dropped_bytes:
            logger.warning("The %s lost %d bytes of output", self._name, self._dropped_bytes)

    def _drop(self, error: OSError) -> None:
        if not self._dropped_bytes:
            logger.warning(
                "The %s cannot be written: %s; its output is dropped until it can be",
                self._name,
                error.strerror,
            )
        self._dropped_bytes += len(self._kept)
        self._kept.clear()

"""The connections that carry guest memory away: each takes the next chunk when it has time."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from vmm.errors import HostError
from vmm.kvm_cffi import RangeTable
from vmm.migration.protocol import Command, Request
from vmm.page import PAGE

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Sequence

    from vmm.kvm_cffi import GuestMemoryMap
    from vmm.migration.chunks import Window
    from vmm.migration.link import Link
    from vmm.migration.progress import Progress


class Streams:
    """Links that are all alike to a chunk of memory."""

    def __init__(
        self,
        links: Sequence[Link],
        memory: GuestMemoryMap,
        progress: Progress,
        close: Callable[[], Awaitable[None]],
    ) -> None:
        self._links = links
        self._memory = memory
        self._progress = progress
        self.close = close
        """To be awaited once all memory is over; the links need not be alive any longer then."""

    async def send(self, chunks: Iterator[RangeTable | Window]) -> None:
        """Send memory until the other side has all of it. Raises: PeerError."""
        self._progress.start_moving()
        try:
            async with trio.open_nursery() as nursery:
                for link in self._links:
                    nursery.start_soon(self._carry, link, chunks)
        finally:
            self._progress.stop_moving()

    async def _carry(self, link: Link, chunks: Iterator[RangeTable | Window]) -> None:
        for chunk in chunks:
            table = chunk if isinstance(chunk, RangeTable) else await self._look(chunk)
            if table is not None:
                await self._send(link, table)

    async def _look(self, window: Window) -> RangeTable | None:
        try:
            table = await trio.to_thread.run_sync(window.table)
        except OSError as error:
            raise HostError.from_os_error("search of RAM for its content", error) from error
        held = 0 if table is None else table.bytes_in(self._memory) or 0
        self._progress.skipped(window.count * PAGE - held)
        return table

    async def _send(self, link: Link, table: RangeTable) -> None:
        entries = table.encode()
        request = Request(Command.MEMORY, len(entries))
        await link.send(request.encode() + entries)
        await link.send_memory(self._memory, table, self._progress.moved)
        await link.expect_ok(request)

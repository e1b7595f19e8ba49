"""How the small devices are opened: console, balloon, watchdog, clock, IOMMU, pvpanic.

Each module is imported when its first device is: a VM without it starts sooner.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import trio

from vmm.errors import InternalError

if TYPE_CHECKING:
    from vmm.config.balloon import BalloonConfig
    from vmm.config.pci import PciSlot
    from vmm.machine.sections import Board, RegisterFunction
    from vmm.virtio.device import VirtioDevice

LAST_WORDS_SECONDS = 1.0


@asynccontextmanager
async def open_console(config: PciSlot, id: str, board: Board) -> AsyncIterator[VirtioDevice]:
    """The virtio console on its back end."""
    from vmm.virtio.console import Console

    backend = board.consoles.console
    console = Console(id, backend)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(console.run_emergency)
        try:
            yield console
        finally:
            nursery.cancel_scope.cancel()
            # What the guest printed last waits in the back end; a stalled one delays no end.
            with trio.move_on_after(LAST_WORDS_SECONDS, shield=True):
                await backend.write(console.last_words())


@asynccontextmanager
async def open_balloon(config: BalloonConfig, id: str, board: Board) -> AsyncIterator[VirtioDevice]:
    """The balloon in the machine's memory. Raises: ConfigError (caller) when it is too large."""
    from vmm.virtio.balloon import Balloon

    yield Balloon(
        id,
        board.memory,
        config.size,
        deflate_on_oom=config.deflate_on_oom,
        free_page_reporting=config.free_page_reporting,
    )


@asynccontextmanager
async def open_watchdog(config: PciSlot, id: str, board: Board) -> AsyncIterator[VirtioDevice]:
    """The watchdog, which may reset the machine."""
    from vmm.virtio.watchdog import Watchdog

    yield Watchdog(id, board.lifecycle)


@asynccontextmanager
async def open_rtc(config: PciSlot, id: str, board: Board) -> AsyncIterator[VirtioDevice]:
    """The clock, which shows the host's."""
    from vmm.virtio.rtc import Rtc

    yield Rtc(id, time.time_ns)


@asynccontextmanager
async def open_iommu(config: PciSlot, id: str, board: Board) -> AsyncIterator[VirtioDevice]:
    """The IOMMU, which devices before it have joined already."""
    if board.iommu is None:
        raise InternalError("A machine whose configuration has an IOMMU was built without one")
    yield board.iommu


@asynccontextmanager
async def open_pvpanic(config: PciSlot, id: str, board: Board) -> AsyncIterator[RegisterFunction]:
    """The panic register, which is heard as an event."""
    from vmm.legacy.pvpanic import Pvpanic

    yield Pvpanic(id, board.events)

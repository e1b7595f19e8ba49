"""A guest that moves: from one VMM to another, which waits for it, on a network they share."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from tests.guest.conftest import BOOT_S
from tests.guest.debian import tool
from vmm.config.info import MigrationPhase, VmState
from vmm.config.requests import ReceiveMigrationData, SendMigrationData
from vmm.testing.process import VmmProcess

MOVE_S = 180.0
"""How long a move may take."""

READY = "vm:migration-receive-ready"


async def migrate(source: VmmProcess, target: VmmProcess, request: SendMigrationData) -> None:
    """Move the VM, which runs then, and see the VMM end that had it."""
    url = request.destination_url
    with trio.fail_after(MOVE_S):
        async with trio.open_nursery() as nursery:
            receive = target.client.receive_migration
            nursery.start_soon(receive, ReceiveMigrationData(receiver_url=url))
            await target.wait_for_event(READY, MOVE_S)
            await source.client.send_migration(request)
    assert (await target.client.migration()).phase is MigrationPhase.COMPLETED
    assert (await target.client.info()).state is VmState.RUNNING
    assert await source.wait(BOOT_S) == 0, source.transcript()


@asynccontextmanager
async def bridged(name: str, address: str) -> AsyncIterator[None]:
    """A bridge with an address of the host's: what stands for the network between hosts."""
    await tool("ip", "link", "add", name, "type", "bridge")
    try:
        await tool("ip", "address", "add", f"{address}/24", "dev", name)
        await tool("ip", "link", "set", name, "up")
        yield
    finally:
        await tool("ip", "link", "delete", name)

"""A guest that moves: from one VMM to another, which waits for it."""

from __future__ import annotations

import trio

from tests.guest.conftest import BOOT_S
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

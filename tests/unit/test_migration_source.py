"""The side that a VM leaves, while the VM stands: how long that may be."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import pytest
import trio

from tests.unit.owner_fixture import RecordedEvents
from tests.unit.test_migration_link import PAGE, pair
from vmm.config.requests import SendMigrationData
from vmm.errors import StateError
from vmm.kvm_cffi import PageSet
from vmm.migration.address import UnixAddress
from vmm.migration.link import Link
from vmm.migration.progress import Progress
from vmm.migration.source import Departure
from vmm.migration.streams import Streams
from vmm.testing.memory import FakeMemory

SIZE = 8 << 20
PATIENCE_S = 0.3


class Machine:
    """One that says what is done to it."""

    def __init__(self) -> None:
        self.deeds: list[str] = []

    async def pause(self) -> None:
        self.deeds.append("pause")

    async def resume(self) -> None:
        self.deeds.append("resume")

    def release_locks(self) -> None:
        self.deeds.append("release")

    def take_locks(self) -> None:
        self.deeds.append("take")

    def save(self) -> SimpleNamespace:
        return SimpleNamespace(to_json=lambda: " " * SIZE)


async def trickle(link: Link) -> None:
    """Read so slowly that it never ends, and never so slowly that nothing moves."""
    while True:
        await link.receive_some(4 * PAGE)
        await trio.sleep(PATIENCE_S / 10)


@pytest.mark.parametrize("what", ["memory", "state"])
async def test_vm_does_not_stand_for_a_destination_that_hardly_reads(what: str) -> None:
    machine: Any = Machine()
    memory = FakeMemory((0, SIZE))
    memory.write(0, random.Random(1).randbytes(SIZE))
    left = PageSet(0, SIZE // PAGE)
    left.fill()
    log: Any = SimpleNamespace(collect=lambda: [PageSet(0, SIZE // PAGE)])
    progress = Progress(is_incoming=False)
    description: Any = None
    departure = Departure(
        machine,
        description,
        SendMigrationData(destination_url="unix:/m", downtime_ms=1),
        UnixAddress("/m"),
        progress,
        RecordedEvents(),
        guest=None,
        is_running=True,
        patience_s=PATIENCE_S,
    )

    async def stand() -> None:
        async with departure._standing():
            if what == "memory":
                await departure._send_rest(log, streams, [left])
            await departure._finish(near)

    with pair() as (near, far):
        streams = Streams([near], memory.map(), progress, trio.lowlevel.checkpoint)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trickle, far)
            with trio.fail_after(20 * PATIENCE_S):
                with pytest.raises(StateError, match="in which it stood"):
                    await stand()
            nursery.cancel_scope.cancel()

    assert list(dict.fromkeys(machine.deeds)) == ["pause", "release", "take", "resume"]

"""A guest that checks its memory all the time moves again and again, and never finds it wrong."""

from __future__ import annotations

from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path

import pytest
import trio

from tests.kvm.guests.meddling import free_port
from tests.kvm.guests.moving import host, move, two_hosts
from tests.kvm.guests.processes import SECONDS, short_folder
from vmm.config.info import VmState

pytestmark = [pytest.mark.kvm, pytest.mark.usefixtures("kvm")]

place = short_folder

MOVES = 50
LONGEST_GAP_MS = 2000
"""Far more than one takes, which is some tens of milliseconds, on a host busy with other things."""

WAYS = [("Precopy", 1), ("Precopy", 4), ("Postcopy", 1)]
"""What goes first, and by how many connections memory does."""


async def test_guest_handed_to_and_fro_finds_its_memory_right_each_time(
    place: Path,
) -> None:
    gaps = []
    async with two_hosts(place) as (here, there):
        await here.boot(place, memory={"size": 64 << 20, "shared": True})
        for number in range(MOVES):
            await here.rounds(1)

            url = f"unix:{place}/{number}"
            await move(here, there, url, local=True, preserve_source=True)

            gaps.append((await here.client.migration()).downtime_ms or 0)
            await here.client.delete()
            here, there = there, here

        await here.rounds(3)
        assert (await here.client.info()).state is VmState.RUNNING
        assert there.machine_resources() == []
    assert len(gaps) == MOVES
    assert max(gaps) < LONGEST_GAP_MS


async def test_guest_sent_on_and_on_in_every_way_finds_its_memory_right_each_time(
    place: Path,
) -> None:
    async with AsyncExitStack() as stack:
        source = await stack.enter_async_context(host(place, "first"))
        await source.boot(place)
        for number, (mode, connections) in enumerate(3 * WAYS):
            await source.rounds(2)
            destination = await stack.enter_async_context(host(place, str(number)))
            url = f"tcp:127.0.0.1:{free_port()}"
            with trio.fail_after(SECONDS):
                async with trio.open_nursery() as nursery:
                    await nursery.start(partial(destination.receive, url, memory_mode=mode))
                    await source.send(url, memory_mode=mode, connections=connections)
            source = destination

        await source.rounds(3)

"""A guest that checks its memory all the time moves between VMM processes, in every way."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import trio

from tests.kvm.guests import programs
from tests.kvm.guests.meddling import Deed, Meddler, free_port
from tests.kvm.guests.moving import checks_memory, host, move, two_hosts
from tests.kvm.guests.processes import SECONDS, short_folder
from vmm.client import ApiError
from vmm.config.balloon import BalloonConfig
from vmm.config.info import MigrationPhase, VmState
from vmm.migration.protocol import Command

pytestmark = [pytest.mark.kvm, pytest.mark.usefixtures("kvm")]

place = short_folder

BUSY_PAGES = 8192
"""A slow line takes a tenth of a second and more for them, in which the guest writes all anew."""
BUSY_DOWNTIME_MS = 20
CLEARED = 0x80_0000
CLEARED_PAGES = 64
CLEARS_MEMORY = f"""
        mov ${CLEARED}, %edi
        mov ${CLEARED_PAGES}, %ecx
    1:  movl $0, (%edi)
        add $4096, %edi
        loop 1b
    2:  mov ${CLEARED}, %edi
        mov ${CLEARED_PAGES}, %ecx
    3:  cmpl $0, (%edi)
        jne 8f
        add $4096, %edi
        loop 3b
        mov $'.', %al
        out %al, ${programs.DEBUG_PORT}
        jmp 2b
    8:  mov $'!', %al
        out %al, ${programs.DEBUG_PORT}
        jmp 8b
"""
PASSES_S = 3
"""Time for more passes than three, also on a host that others keep busy."""


@pytest.mark.parametrize("connections", [1, 4, 16])
async def test_guest_moves_by_tcp_with_all_its_memory(place: Path, connections: int) -> None:
    async with two_hosts(place) as (one, other):
        await one.boot(place)
        await one.rounds(3)

        await move(one, other, f"tcp:127.0.0.1:{free_port()}", connections=connections)

        await other.rounds(5)
        assert (await other.client.info()).state is VmState.RUNNING
        shown = await other.client.migration()
        assert (shown.phase, shown.is_incoming) == (MigrationPhase.COMPLETED, True)
        with trio.fail_after(SECONDS):
            assert await one.vmm.process.wait() == 0
        assert "vm:migration-finished" in one.vmm.events()
        assert "vm:migration-receive-finished" in other.vmm.events()


async def test_paused_guest_moves_and_stays_paused(place: Path) -> None:
    async with two_hosts(place) as (one, other):
        await one.boot(place)
        await one.rounds(3)
        await one.client.pause()

        await move(one, other, f"unix:{place}/m")

        assert (await other.client.info()).state is VmState.PAUSED
        await other.check_stands()
        await other.client.resume()
        await other.rounds(3)


@pytest.mark.parametrize("is_paused", [False, True])
async def test_local_move_hands_the_memory_over(place: Path, is_paused: bool) -> None:
    async with two_hosts(place) as (one, other):
        await one.boot(place, memory={"size": 64 << 20, "shared": True})
        await one.rounds(3)
        if is_paused:
            await one.client.pause()

        await move(one, other, f"unix:{place}/m", local=True)

        assert (await other.client.migration()).transferred_bytes == 0
        if is_paused:
            await other.client.resume()
        await other.rounds(3)


async def test_local_move_of_memory_that_cannot_be_handed_over_is_refused(place: Path) -> None:
    zones = [{"id": "far", "size": 32 << 20, "shared": True}]
    async with host(place, "a") as one:
        await one.boot(place, memory={"size": 32 << 20, "zones": zones})
        await one.rounds(2)

        assert "not all of this VM's RAM" in await one.refused_send(f"unix:{place}/m", local=True)

        await one.rounds(2)


async def test_local_move_takes_nodes_and_a_balloon_along(place: Path) -> None:
    zones = [{"id": name, "size": 32 << 20, "shared": True} for name in ("near", "far")]
    nodes = [
        {"guest_numa_id": 0, "memory_zones": ["near"], "cpus": [0]},
        {"guest_numa_id": 1, "memory_zones": ["far"]},
    ]
    async with two_hosts(place) as (one, other):
        memory = {"size": 0, "zones": zones}
        await one.boot(place, memory=memory, numa=nodes, balloon={"size": 0})
        await one.rounds(3)
        before = await one.client.info()

        await move(one, other, f"unix:{place}/m", local=True)

        assert await other.client.info() == before
        assert (await other.client.migration()).transferred_bytes == 0
        await other.rounds(3)
        await other.client.resize(desired_balloon=1 << 20)
        assert (await other.client.info()).config.balloon == BalloonConfig(size=1 << 20)


async def test_what_a_guest_has_cleared_of_a_file_is_clear_where_it_goes(place: Path) -> None:
    (place / "ram").write_bytes(bytes(CLEARED) + (b"\xff" * 4 + bytes(4092)) * CLEARED_PAGES)
    zone = {"id": "copy", "size": 64 << 20, "file": str(place / "ram")}
    async with two_hosts(place) as (one, other):
        await one.boot(place, CLEARS_MEMORY, memory={"size": 0, "zones": [zone]})
        await one.rounds(3)

        await move(one, other, f"unix:{place}/m")

        await other.rounds(3)


async def test_requests_are_answered_while_a_vmm_waits_for_a_vm(place: Path) -> None:
    async with host(place, "a") as waiting, trio.open_nursery() as nursery:
        with pytest.raises(ApiError) as caught:
            await waiting.client.migration()
        assert caught.value.status == 404
        await nursery.start(waiting.refused_receive, f"unix:{place}/m")

        await waiting.client.ping()
        shown = await waiting.client.migration()
        assert (shown.phase, shown.is_incoming) == (MigrationPhase.CONNECTING, True)
        for request in (waiting.client.boot, waiting.client.delete):
            with pytest.raises(ApiError, match="currently migrating") as caught:
                await request()
            assert caught.value.status == 405
        await waiting.client.migration_cancel()

        assert (await waiting.client.migration()).phase is MigrationPhase.CANCELLED
        assert not (place / "m").exists()


@pytest.mark.parametrize("strategy", ["Cancel", "Ignore"])
async def test_guest_that_never_rests_is_cancelled_or_stopped_as_asked(
    place: Path, strategy: str
) -> None:
    target = free_port()
    async with two_hosts(place) as (one, other), trio.open_nursery() as nursery:
        await one.boot(place)
        await one.rounds(3)
        slow = Meddler(target, Command.MEMORY, Deed.SLOW)
        await nursery.start(slow.run)
        url = f"tcp:127.0.0.1:{slow.port}"
        how = {"downtime_ms": 1, "timeout_s": PASSES_S, "timeout_strategy": strategy}
        if strategy == "Cancel":
            await nursery.start(other.refused_receive, f"tcp:127.0.0.1:{target}")
            assert f"within timeout_s={PASSES_S}" in await one.refused_send(url, **how)
            await one.rounds(3)
            assert (await one.client.migration()).iteration > 3
        else:
            await nursery.start(other.receive, f"tcp:127.0.0.1:{target}")
            await one.send(url, **how)
            await other.rounds(3)


async def test_guest_that_writes_faster_than_it_moves_is_slowed_until_it_can(place: Path) -> None:
    target = free_port()
    async with two_hosts(place) as (one, other), trio.open_nursery() as nursery:
        await one.boot(place, checks_memory(BUSY_PAGES))
        await one.rounds(3)
        slow = Meddler(target, Command.MEMORY, Deed.SLOW)
        await nursery.start(slow.run)
        nursery.start_soon(one.until_slowed)

        with trio.fail_after(2 * SECONDS):
            await nursery.start(other.receive, f"tcp:127.0.0.1:{target}")
            await one.send(f"tcp:127.0.0.1:{slow.port}", downtime_ms=BUSY_DOWNTIME_MS)

        await other.rounds(5)


async def test_guest_is_slowed_no_longer_when_its_migration_is_cancelled(place: Path) -> None:
    target = free_port()
    async with two_hosts(place) as (one, other), trio.open_nursery() as nursery:
        await one.boot(place)
        await one.rounds(3)
        slow = Meddler(target, Command.MEMORY, Deed.SLOW)
        await nursery.start(slow.run)
        await nursery.start(other.refused_receive, f"tcp:127.0.0.1:{target}")
        url = f"tcp:127.0.0.1:{slow.port}"
        nursery.start_soon(partial(one.refused_send, url, downtime_ms=1))
        await one.until_slowed()

        with trio.fail_after(SECONDS):
            await one.client.migration_cancel()

        await one.rounds(20)
        assert (await one.client.migration()).phase is MigrationPhase.CANCELLED


async def test_guest_moves_before_its_memory_which_follows(place: Path) -> None:
    async with two_hosts(place) as (one, other):
        await one.boot(place)
        await one.rounds(3)

        url = f"tcp:127.0.0.1:{free_port()}"
        with trio.fail_after(SECONDS):
            async with trio.open_nursery() as nursery:
                await nursery.start(partial(other.receive, url, memory_mode="Postcopy"))
                await one.send(url, memory_mode="Postcopy")

        await other.rounds(5)
        with trio.fail_after(SECONDS):
            assert await one.vmm.process.wait() == 0
        assert "vm:postcopy-migration-completed" in one.vmm.events()


async def test_sides_that_differ_in_what_goes_first_move_nothing(place: Path) -> None:
    async with two_hosts(place) as (one, other):
        await one.boot(place)
        await one.rounds(3)

        url = f"tcp:127.0.0.1:{free_port()}"
        with trio.fail_after(SECONDS):
            async with trio.open_nursery() as nursery:
                await nursery.start(other.refused_receive, url)
                await one.refused_send(url, memory_mode="Postcopy")

        await one.rounds(3)
        await move(one, other, url)
        await other.rounds(3)


async def test_source_that_is_preserved_stands_with_its_memory_beside_the_other(
    place: Path,
) -> None:
    async with two_hosts(place) as (one, other):
        await one.boot(place, memory={"size": 64 << 20, "shared": True})
        await one.rounds(3)

        await move(one, other, f"unix:{place}/m", local=True, preserve_source=True)

        assert (await one.client.info()).state is VmState.PAUSED
        assert (await one.client.migration()).phase is MigrationPhase.COMPLETED
        await other.rounds(3)
        await one.client.delete()
        await other.rounds(3)


async def test_destination_without_room_for_the_vm_leaves_it_at_its_source(place: Path) -> None:
    async with two_hosts(place) as (one, other):
        image = place / "disk.raw"
        image.write_bytes(bytes(1 << 20))
        disk = {"path": str(image), "image_type": "Raw"}
        await one.boot(place, disks=[disk])
        await one.rounds(3)
        image.rename(place / "elsewhere")

        with trio.fail_after(SECONDS):
            async with trio.open_nursery() as nursery:
                received = nursery.start(other.refused_receive, f"unix:{place}/m")
                await received
                sent = await one.refused_send(f"unix:{place}/m")

        assert "refused STATE" in sent or "refused CONFIG" in sent
        await one.rounds(3)
        (place / "elsewhere").rename(image)
        await move(one, other, f"unix:{place}/m")
        await other.rounds(3)

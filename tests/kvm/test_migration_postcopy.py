"""A VM that came before its memory, and whose memory does not all follow."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import pytest
import trio

from tests.kvm.guests.meddling import Deed, FaultDeed, FaultMeddler, Meddler, free_port
from tests.kvm.guests.moving import Host, checks_memory, host, move, two_hosts
from tests.kvm.guests.processes import SECONDS, short_folder
from vmm.client import ApiError
from vmm.config.info import MigrationPhase, VmState
from vmm.config.requests import SendMigrationData
from vmm.migration.protocol import Command

pytestmark = [pytest.mark.kvm, pytest.mark.usefixtures("kvm")]

place = short_folder
SOME = 1 << 20
"""So much of the memory follows."""
CONTENT = 32 << 20
"""More than sockets hold."""


async def send(one: Host, meddler: FaultMeddler, said: list[str]) -> None:
    """Have the VM go; what is said of it, if anything."""
    try:
        await one.send(f"tcp:127.0.0.1:{meddler.port}", memory_mode="Postcopy")
    except ApiError as error:
        said.append(str(error))


async def refused_cancel(one: Host) -> None:
    """Ask for the VM back when it is too late."""
    with pytest.raises(ApiError, match="too late"):
        await one.client.migration_cancel()


async def check_nothing_is_there(host: Host) -> None:
    """The VMM has no VM and nothing of one, and may have another."""
    await host.vmm.wait_for_event("vm:deleted", SECONDS)
    with pytest.raises(ApiError) as caught:
        await host.client.info()
    assert caught.value.status == 404
    assert host.machine_resources() == []


@pytest.mark.parametrize("deed", [FaultDeed.CUT, FaultDeed.MISLEAD])
async def test_vm_whose_memory_does_not_all_follow_is_lost_and_both_sides_say_so(
    place: Path, deed: FaultDeed
) -> None:
    target = free_port()
    sent: list[str] = []
    received: list[str] = []
    async with two_hosts(place) as (one, other):
        await one.boot(place)
        await one.rounds(2)
        meddler = FaultMeddler(target, deed, SOME)

        async def receive(*, task_status: trio.TaskStatus[None]) -> None:
            url = f"tcp:127.0.0.1:{target}"
            received.append(
                await other.refused_receive(url, memory_mode="Postcopy", task_status=task_status)
            )

        with trio.fail_after(SECONDS):
            async with trio.open_nursery() as nursery:
                await nursery.start(receive)
                await nursery.start(meddler.run)
                nursery.start_soon(send, one, meddler, sent)
                await other.vmm.wait_for_event("vm:resumed", SECONDS)
                await meddler.reached.wait()
                meddler.may_spoil.set()
            assert await one.vmm.process.wait() == 0

        assert "not all of that has followed; it is lost" in received[0]
        shown = await other.client.migration()
        assert shown.phase is MigrationPhase.FAILED
        assert shown.error is not None
        assert "read of RAM on demand failed" in shown.error
        assert "vm:migration-receive-failed" in other.vmm.events()
        await check_nothing_is_there(other)
        # Whoever closes the connection is taken to want no more; the destination knows better.
        misled = deed is FaultDeed.MISLEAD
        assert ("not all of that could follow" in "".join(sent)) is misled
        assert ("vm:migration-failed" in one.vmm.events()) is misled
        other.log.unlink()
        await other.boot(place)
        await other.rounds(2)


async def test_vm_whose_memory_fails_to_follow_before_it_is_given_away_stays(place: Path) -> None:
    target = free_port()
    sent: list[str] = []
    async with two_hosts(place) as (one, other):
        await one.boot(place)
        await one.rounds(2)
        meddler = FaultMeddler(target, FaultDeed.CUT_BEFORE_GIVING, SOME)
        with trio.fail_after(SECONDS):
            async with trio.open_nursery() as nursery:
                receive = partial(other.refused_receive, f"tcp:127.0.0.1:{target}")
                await nursery.start(partial(receive, memory_mode="Postcopy"))
                await nursery.start(meddler.run)
                await send(one, meddler, sent)

        assert meddler.may_spoil.is_set()
        assert "refused COMPLETE" in sent[0]
        assert (await one.client.info()).state is VmState.RUNNING
        await one.rounds(2)
        shown = await other.client.migration()
        assert shown.phase is MigrationPhase.FAILED
        assert "read of RAM on demand failed" in (shown.error or "")
        with pytest.raises(ApiError) as caught:
            await other.client.info()
        assert caught.value.status == 404
        await move(one, other, f"tcp:127.0.0.1:{target}")
        await other.rounds(2)


async def test_next_move_of_a_vm_whose_memory_has_followed_is_shown_as_it_is(place: Path) -> None:
    target = free_port()
    async with two_hosts(place) as (one, other), host(place, "c") as third:
        await one.boot(place, checks_memory(CONTENT >> 12))
        await one.rounds(2)
        url = f"tcp:127.0.0.1:{target}"
        with trio.fail_after(SECONDS):
            async with trio.open_nursery() as nursery:
                await nursery.start(partial(other.receive, url, memory_mode="Postcopy"))
                await one.send(url, memory_mode="Postcopy")
        meddler = Meddler(target, Command.MEMORY, Deed.STALL)
        with trio.fail_after(SECONDS):
            async with trio.open_nursery() as nursery:
                await nursery.start(third.refused_receive, url)
                await nursery.start(meddler.run)
                nursery.start_soon(other.refused_send, f"tcp:127.0.0.1:{meddler.port}")
                await meddler.reached.wait()

                shown = await other.client.migration()
                assert not shown.is_incoming
                assert shown.transferred_bytes < CONTENT
                assert shown.dirty_bytes >= CONTENT - shown.transferred_bytes
                await other.client.migration_cancel()

        await other.rounds(2)


async def test_vm_can_be_deleted_while_its_memory_follows_but_not_sent_back(place: Path) -> None:
    target = free_port()
    async with two_hosts(place) as (one, other):
        await one.boot(place)
        await one.rounds(2)
        meddler = FaultMeddler(target, FaultDeed.CUT, SOME)
        with trio.fail_after(SECONDS):
            async with trio.open_nursery() as nursery:
                receive = partial(other.receive, f"tcp:127.0.0.1:{target}")
                await nursery.start(partial(receive, memory_mode="Postcopy"))
                await nursery.start(meddler.run)
                nursery.start_soon(send, one, meddler, [])
                await meddler.reached.wait()
                await other.vmm.wait_for_event("vm:resumed", SECONDS)

                shown = await other.client.migration()
                assert shown.phase is MigrationPhase.MEMORY
                assert 0 < shown.dirty_bytes < shown.memory_bytes
                assert shown.dirty_bytes + shown.transferred_bytes == shown.memory_bytes
                assert (await other.client.info()).state is VmState.RUNNING
                with pytest.raises(ApiError, match="too late: the VM is here already"):
                    await other.client.migration_cancel()
                with pytest.raises(ApiError, match="Not all of the VM's RAM is here yet"):
                    await other.client.send_migration(
                        SendMigrationData(destination_url=f"unix:{place}/m")
                    )
                await other.client.delete()

        assert (await other.client.migration()).phase is MigrationPhase.COMPLETED
        await check_nothing_is_there(other)
        with trio.fail_after(SECONDS):
            assert await one.vmm.process.wait() == 0


async def test_cancel_while_the_vm_is_given_away_keeps_no_memory_from_it(place: Path) -> None:
    target = free_port()
    async with two_hosts(place) as (one, other):
        await one.boot(place, checks_memory(CONTENT >> 12))
        await one.rounds(2)
        meddler = FaultMeddler(target, FaultDeed.KEEP_TAKING, sys.maxsize)
        with trio.fail_after(SECONDS):
            async with trio.open_nursery() as nursery:
                url = f"tcp:127.0.0.1:{target}"
                await nursery.start(partial(other.receive, url, memory_mode="Postcopy"))
                await nursery.start(meddler.run)
                async with trio.open_nursery() as asking:
                    asking.start_soon(send, one, meddler, [])
                    await meddler.reached.wait()
                    asking.start_soon(refused_cancel, one)
                    await trio.sleep(0.2)  # Nobody tells that the request is there.
                    meddler.may_spoil.set()
                assert await one.vmm.process.wait() == 0

        assert (await other.client.migration()).phase is MigrationPhase.COMPLETED
        await other.rounds(2)

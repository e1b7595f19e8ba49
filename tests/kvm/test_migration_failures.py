"""Whatever happens to a migration, its VM runs at one side: never at two, and never at none unless
nobody can know."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from tests.kvm.guests.meddling import Deed, Meddler, free_port
from tests.kvm.guests.moving import CHECKS_MEMORY, Host, move, two_hosts
from tests.kvm.guests.processes import SECONDS, short_folder
from vmm.client import ApiError
from vmm.config.info import MigrationPhase, VmState
from vmm.migration.protocol import Command

pytestmark = [pytest.mark.kvm, pytest.mark.usefixtures("kvm")]

place = short_folder

BEFORE_GIVING = [
    (Command.START, 0),
    (Command.CONFIG, 0),
    (Command.MEMORY, 0),
    (Command.MEMORY, 1),
    (Command.STATE, 0),
]
"""Each message that comes before the VM is given away."""
WIDE = {"size": 128 << 20}
FAR = f"movl $1, {96 << 20};"
"""A page so far from the others that the first pass over RAM takes two messages."""
ENDING = [deed for deed in Deed if deed not in (Deed.STALL, Deed.SLOW)]


async def meddled(one: Host, other: Host, meddler: Meddler, target: int) -> tuple[str, str]:
    """Try to move a VM through somebody's hands; what each side was answered."""
    answers: dict[str, str] = {}

    async def receive(*, task_status: trio.TaskStatus[None]) -> None:
        answers["receive"] = await other.refused_receive(
            f"tcp:127.0.0.1:{target}", task_status=task_status
        )

    async with trio.open_nursery() as nursery:
        await nursery.start(receive)
        await nursery.start(meddler.run)
        answers["send"] = await one.refused_send(
            f"tcp:127.0.0.1:{meddler.port}", downtime_ms=1, timeout_s=60
        )
    return answers["send"], answers["receive"]


async def check_nothing_moved(one: Host, other: Host) -> None:
    """The VM runs where it was, and the other side has nothing."""
    assert (await one.client.info()).state is VmState.RUNNING
    await one.rounds(2)
    assert (await one.client.migration()).phase is not MigrationPhase.COMPLETED
    with pytest.raises(ApiError) as caught:
        await other.client.info()
    assert caught.value.status == 404
    assert other.machine_resources() == []


async def test_spoiled_migration_leaves_the_vm_where_it_is(place: Path) -> None:
    target = free_port()
    async with two_hosts(place) as (one, other):
        await one.boot(place, FAR + CHECKS_MEMORY, memory=WIDE)
        await one.rounds(2)
        for command, number in BEFORE_GIVING:
            for deed in ENDING:
                meddler = Meddler(target, command, deed, number)

                with trio.fail_after(SECONDS):
                    await meddled(one, other, meddler, target)

                assert meddler.reached.is_set(), (command, deed)
                await check_nothing_moved(one, other)

        await move(one, other, f"tcp:127.0.0.1:{target}")
        await other.rounds(3)


@pytest.mark.parametrize("canceller", ["source", "destination"])
async def test_cancel_works_at_every_step(place: Path, canceller: str) -> None:
    target = free_port()
    async with two_hosts(place) as (one, other):
        await one.boot(place, FAR + CHECKS_MEMORY, memory=WIDE)
        await one.rounds(2)
        for command, number in BEFORE_GIVING:
            meddler = Meddler(target, command, Deed.STALL, number)
            with trio.fail_after(SECONDS):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(meddled, one, other, meddler, target)
                    await meddler.reached.wait()
                    await one.client.ping()
                    await one.client.info()
                    await one.client.counters()
                    with pytest.raises(ApiError, match="currently migrating"):
                        await one.client.resume()
                    stopped = one if canceller == "source" else other
                    await stopped.client.migration_cancel()

            await check_nothing_moved(one, other)

        await move(one, other, f"tcp:127.0.0.1:{target}")
        await other.rounds(3)


@pytest.mark.parametrize("deed", [Deed.CUT_BEFORE, Deed.CUT_WITHIN])
async def test_vm_whose_giving_is_lost_stands_until_somebody_decides(
    place: Path, deed: Deed
) -> None:
    target = free_port()
    async with two_hosts(place) as (one, other):
        await one.boot(place)
        await one.rounds(2)
        with trio.fail_after(SECONDS):
            said, _ = await meddled(one, other, Meddler(target, Command.COMPLETE, deed), target)

        assert "resume it only when it does not run there" in said
        assert (await one.client.info()).state is VmState.PAUSED
        with pytest.raises(ApiError) as caught:
            await other.client.info()
        assert caught.value.status == 404
        await one.check_stands()
        await one.client.resume()
        await one.rounds(2)


@pytest.mark.parametrize("deed", [Deed.CUT_BEFORE_ANSWER, Deed.CORRUPT_ANSWER])
async def test_vm_whose_arrival_is_not_heard_of_runs_there_alone(place: Path, deed: Deed) -> None:
    target = free_port()
    async with two_hosts(place) as (one, other):
        await one.boot(place)
        await one.rounds(2)
        meddler = Meddler(target, Command.COMPLETE, deed)
        async with trio.open_nursery() as nursery:
            await nursery.start(other.receive, f"tcp:127.0.0.1:{target}")
            await nursery.start(meddler.run)
            await one.refused_send(f"tcp:127.0.0.1:{meddler.port}")

        await other.rounds(3)
        assert (await one.client.info()).state is VmState.PAUSED
        assert (await other.client.info()).state is VmState.RUNNING


@pytest.mark.parametrize("words", [b"", b"G", b"GET / HTTP/1.1\r\n\r\n"])
async def test_stranger_who_connects_beside_the_source_changes_nothing(
    place: Path, words: bytes
) -> None:
    target = free_port()
    async with two_hosts(place) as (one, other), trio.open_nursery() as nursery:
        await one.boot(place, FAR + CHECKS_MEMORY, memory=WIDE)
        await one.rounds(2)
        slow = Meddler(target, Command.MEMORY, Deed.SLOW)
        await nursery.start(other.receive, f"tcp:127.0.0.1:{target}")
        await nursery.start(slow.run)
        nursery.start_soon(one.send, f"tcp:127.0.0.1:{slow.port}")
        with trio.fail_after(SECONDS):
            await other.until_memory_comes()
            stranger = await trio.open_tcp_stream("127.0.0.1", target)
            async with stranger:
                await stranger.send_all(words)

        await other.rounds(3)

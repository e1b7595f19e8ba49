"""How a migration ends, for whoever asked and for whoever looks on."""

from __future__ import annotations

import pytest
import trio

from tests.unit.owner_fixture import RecordedEvents
from vmm.config.info import MigrationPhase
from vmm.errors import HostError, PeerError, StateError
from vmm.migration.moving import SILENCE_S, Moving
from vmm.migration.postcopy import MemoryLostError
from vmm.migration.progress import Fate, Progress


def moving() -> tuple[Moving, RecordedEvents]:
    events = RecordedEvents()
    return Moving(events, is_incoming=False), events


async def test_end_is_told_by_event_and_shown() -> None:
    move, events = moving()

    async def operation(progress: Progress) -> None:
        progress.moved(4096)
        await trio.lowlevel.checkpoint()

    await move.run(operation)

    assert events.names == ["migration-finished"]
    assert (move.info().phase, move.info().transferred_bytes) == (MigrationPhase.COMPLETED, 4096)
    assert move.is_over


async def test_failure_is_raised_alone_and_shown_with_its_cause() -> None:
    move, events = moving()

    async def fail() -> None:
        raise PeerError("The other VMM is gone") from HostError("recv", 104)

    async def operation(_: Progress) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fail)

    with pytest.raises(PeerError, match="is gone"):
        await move.run(operation)

    assert events.names == ["migration-failed"]
    shown = move.info()
    assert shown.phase is MigrationPhase.FAILED
    assert shown.error is not None
    assert shown.error.startswith("The other VMM is gone: recv failed")


async def test_cancelled_migration_has_ended_when_cancel_returns() -> None:
    move, _ = moving()
    undone = trio.Event()

    async def operation(_: Progress) -> None:
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await trio.lowlevel.checkpoint()
            undone.set()

    async def run() -> None:
        with pytest.raises(StateError, match="cancelled"):
            await move.run(operation)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        await trio.testing.wait_all_tasks_blocked()
        await move.cancel()
        assert undone.is_set()
        assert move.info().phase is MigrationPhase.CANCELLED


async def test_vm_that_has_gone_is_waited_for_and_not_called_back() -> None:
    move, events = moving()
    served = trio.Event()

    async def operation(progress: Progress) -> None:
        progress.fate = Fate.GONE
        await served.wait()
        raise PeerError("The last words were not heard")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(move.run, operation)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(move.cancel)
        await trio.testing.wait_all_tasks_blocked()
        assert not move.is_over
        served.set()

    assert events.names == ["migration-finished"]
    assert move.info().phase is MigrationPhase.COMPLETED


@pytest.mark.parametrize("is_incoming", [False, True])
async def test_vm_that_has_changed_sides_and_lost_its_memory_is_not_called_moved(
    is_incoming: bool,
) -> None:
    events = RecordedEvents()
    move = Moving(events, is_incoming=is_incoming)

    async def operation(progress: Progress) -> None:
        progress.has_arrived = is_incoming
        progress.fate = Fate.HERE if is_incoming else Fate.GONE
        raise MemoryLostError("Not all of it could follow") from HostError("recv", 104)

    with pytest.raises(MemoryLostError):
        await move.run(operation)

    assert events.names == [f"migration{'-receive' if is_incoming else ''}-failed"]
    shown = move.info()
    assert shown.phase is MigrationPhase.FAILED
    assert shown.error is not None
    assert shown.error.startswith("Not all of it could follow: recv failed")


async def test_cancel_that_comes_once_the_vm_is_here_finds_it_moved() -> None:
    events = RecordedEvents()
    move = Moving(events, is_incoming=True)
    told = trio.Event()

    async def operation(progress: Progress) -> None:
        with trio.CancelScope(shield=True):
            await told.wait()
            progress.has_arrived = True
        await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(move.run, operation)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(move.cancel)
        await trio.testing.wait_all_tasks_blocked()
        assert move.keeps_vm
        told.set()

    assert events.names == ["migration-receive-finished"]
    assert move.info().phase is MigrationPhase.COMPLETED
    assert not move.keeps_vm


async def test_vmm_that_is_to_end_waits_for_memory_that_follows_as_long_as_it_does(
    autojump_clock: trio.testing.MockClock,
) -> None:
    move, events = moving()

    async def operation(progress: Progress) -> None:
        progress.fate = Fate.GONE
        for _ in range(10):
            await trio.sleep(SILENCE_S * 0.9)
            progress.moved(4096)
        await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(move.run, operation)
        await trio.testing.wait_all_tasks_blocked()
        with trio.fail_after(SILENCE_S * 20):
            await move.stop()

    assert move.info().transferred_bytes == 10 * 4096
    assert events.names == ["migration-finished"]


async def test_cancel_while_the_vm_is_given_away_waits_for_that_and_for_no_memory() -> None:
    move, _ = moving()
    taken = trio.Event()

    async def operation(progress: Progress) -> None:
        progress.fate = Fate.UNKNOWN
        await taken.wait()
        progress.fate = Fate.GONE
        await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(move.run, operation)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(move.cancel)
        await trio.testing.wait_all_tasks_blocked()
        assert not move.progress.settled.is_set()
        taken.set()
        with trio.fail_after(10):
            await move.cancel()
        assert not move.is_over
        nursery.cancel_scope.cancel()

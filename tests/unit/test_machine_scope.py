"""Scopes entered in tasks of their own: entering, leaving, failing."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio

from vmm.errors import HostError, StateError
from vmm.machine.scope import enter


class Resource:
    """A context that records its life and can be told to fail."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.fail = trio.Event()

    @asynccontextmanager
    async def open(self) -> AsyncIterator[str]:
        self.events.append("entered")
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._fail_when_told)
                yield "value"
                nursery.cancel_scope.cancel()
        finally:
            self.events.append("left")

    async def _fail_when_told(self) -> None:
        await self.fail.wait()
        raise HostError("ioctl", 5)


def unexpected(error: Exception) -> None:
    raise AssertionError("no failure was expected") from error


async def test_leave_waits_until_the_context_is_left() -> None:
    resource = Resource()
    async with trio.open_nursery() as nursery:
        scope = await enter(nursery, resource.open(), unexpected)
        assert scope.value == "value"

        await scope.leave()

        assert resource.events == ["entered", "left"]
        await scope.leave()


async def test_enter_failure_is_raised_to_the_caller_alone() -> None:
    @asynccontextmanager
    async def broken() -> AsyncIterator[None]:
        async with trio.open_nursery():
            raise HostError("open", 2)
        yield

    async with trio.open_nursery() as nursery:
        with pytest.raises(HostError, match="open failed"):
            await enter(nursery, broken(), unexpected)


async def test_failure_after_entering_is_reported_once_all_has_ended() -> None:
    resource = Resource()
    failures: list[Exception] = []
    reported = trio.Event()

    def report(error: Exception) -> None:
        failures.append(error)
        reported.set()

    async with trio.open_nursery() as nursery:
        await enter(nursery, resource.open(), report)

        resource.fail.set()
        await reported.wait()

        assert resource.events == ["entered", "left"]
    assert [type(error) for error in failures] == [HostError]


async def test_operation_on_a_context_that_fails_meanwhile_is_given_up() -> None:
    resource = Resource()
    failures: list[Exception] = []
    async with trio.open_nursery() as nursery:
        scope = await enter(nursery, resource.open(), failures.append)
        resource.fail.set()

        with pytest.raises(StateError, match="not running"):
            await scope.during(trio.sleep_forever)

    assert len(failures) == 1


@pytest.mark.parametrize("leaves", [False, True])
async def test_context_is_there_until_an_operation_on_it_has_ended(leaves: bool) -> None:
    resource = Resource()
    failures: list[Exception] = []

    async def operation() -> None:
        try:
            await trio.sleep_forever()
        finally:
            # A thread at work on guest memory is waited for as well.
            with trio.CancelScope(shield=True):
                await trio.testing.wait_all_tasks_blocked()
            resource.events.append("ended")

    async def carry_out() -> None:
        with pytest.raises(StateError, match="not running") as caught:
            await scope.during(operation)
        assert caught.value.__cause__ is (failures[0] if failures else None)

    async with trio.open_nursery() as nursery:
        scope = await enter(nursery, resource.open(), failures.append)
        nursery.start_soon(carry_out)
        await trio.testing.wait_all_tasks_blocked()
        if leaves:
            await scope.leave()
        else:
            resource.fail.set()

    assert resource.events == ["entered", "ended", "left"]
    assert len(failures) == (0 if leaves else 1)


async def test_operation_on_a_living_context_is_carried_out() -> None:
    resource = Resource()
    done = trio.Event()

    async def operation() -> None:
        done.set()

    async with trio.open_nursery() as nursery:
        scope = await enter(nursery, resource.open(), unexpected)
        await scope.during(operation)
        await scope.leave()

    assert done.is_set()


async def test_operation_that_fails_raises_its_own_error_and_the_context_lives() -> None:
    resource = Resource()

    async def operation() -> None:
        raise HostError("KVM_GET_CLOCK", 5)

    async with trio.open_nursery() as nursery:
        scope = await enter(nursery, resource.open(), unexpected)
        with pytest.raises(HostError, match="KVM_GET_CLOCK"):
            await scope.during(operation)

        assert resource.events == ["entered"]
        await scope.leave()


async def test_operation_that_a_failure_ends_says_what_has_failed() -> None:
    resource = Resource()
    async with trio.open_nursery() as nursery:
        scope = await enter(nursery, resource.open(), lambda _: None)
        resource.fail.set()

        with pytest.raises(StateError, match="not running") as caught:
            await scope.during(trio.sleep_forever)

        assert isinstance(caught.value.__cause__, HostError)

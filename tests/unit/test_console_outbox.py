"""Output to a receiver who may be absent."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from vmm.console.outbox import STALL_SECONDS, Outbox


class Gone(Exception):
    """What a receiver's end looks like."""


class Receiver:
    """Takes ``budget`` bytes, at most three at a time, and is gone then."""

    def __init__(self, budget: int) -> None:
        self.taken = b""
        self._budget = budget

    async def send(self, data: bytes) -> int:
        await trio.lowlevel.checkpoint()
        if len(self.taken) >= self._budget:
            raise Gone
        taken = data[: min(3, self._budget - len(self.taken))]
        self.taken += taken
        return len(taken)


async def test_outbox_without_receiver_keeps_the_newest_bytes() -> None:
    outbox = Outbox(limit=4)
    receiver = Receiver(budget=4)

    await outbox.put(b"abc")
    await outbox.put(b"def")
    with trio.move_on_after(0.02):
        await outbox.deliver(receiver.send)

    assert receiver.taken == b"cdef"


async def test_outbox_receiver_that_leaves_loses_nothing_to_the_next() -> None:
    outbox = Outbox()
    first, second = Receiver(budget=4), Receiver(budget=100)
    await outbox.put(b"0123456789")

    with pytest.raises(Gone):
        await outbox.deliver(first.send)
    with trio.move_on_after(0.02):
        await outbox.deliver(second.send)

    assert (first.taken, second.taken) == (b"0123", b"456789")


async def test_outbox_writer_waits_for_a_slow_receiver_beyond_the_limit() -> None:
    outbox = Outbox(limit=4)
    receiver = Receiver(budget=100)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(outbox.deliver, receiver.send)
        await trio.testing.wait_all_tasks_blocked()
        await outbox.put(b"more than the limit")
        taken_when_put_returned = receiver.taken
        nursery.cancel_scope.cancel()

    assert taken_when_put_returned == b"more than the limit"


async def test_outbox_writer_is_released_when_the_receiver_leaves() -> None:
    outbox = Outbox()

    async def leave_after_four() -> None:
        with pytest.raises(Gone):
            await outbox.deliver(Receiver(budget=4).send)

    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(leave_after_four)
            await trio.testing.wait_all_tasks_blocked()
            await outbox.put(b"0123456789")


async def test_outbox_cancelled_put_keeps_the_data() -> None:
    outbox = Outbox()
    receiver = Receiver(budget=100)

    with trio.CancelScope() as scope:
        scope.cancel()
        await outbox.put(b"kept")
    with trio.move_on_after(0.02):
        await outbox.deliver(receiver.send)

    assert receiver.taken == b"kept"


async def test_outbox_stalled_receiver_does_not_hold_the_writer(
    autojump_clock: trio.testing.MockClock,
) -> None:
    outbox = Outbox(limit=4)

    async def stall(data: bytes) -> int:
        await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(outbox.deliver, stall)
        await trio.testing.wait_all_tasks_blocked()
        await outbox.put(b"first")
        waited = trio.current_time()
        await outbox.put(b"second")
        waited_again = trio.current_time()
        nursery.cancel_scope.cancel()

    assert (waited, waited_again) == (STALL_SECONDS, STALL_SECONDS)


async def test_outbox_receiver_that_stalled_goes_on_with_the_newest_bytes(
    autojump_clock: trio.testing.MockClock,
) -> None:
    outbox = Outbox(limit=4)
    taken = b""
    may_take = trio.Event()

    async def stall_once(data: bytes) -> int:
        nonlocal taken
        await may_take.wait()
        taken += data
        return len(data)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(outbox.deliver, stall_once)
        await trio.testing.wait_all_tasks_blocked()
        await outbox.put(b"012")
        await outbox.put(b"3456789")
        may_take.set()
        await outbox.put(b"")
        await trio.testing.wait_all_tasks_blocked()
        before = trio.current_time()
        await outbox.put(b"abcdef")
        nursery.cancel_scope.cancel()

    assert taken == b"012" + b"6789" + b"abcdef"
    assert trio.current_time() == before

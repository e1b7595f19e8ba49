"""The watchdog: what starts its timer, what stops it, and what happens at its end."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import trio
from trio.testing import MockClock

from vmm.testing.driver import Driver
from vmm.testing.virtio_pci import Bench, driven
from vmm.virtio.spec import Feature, Status
from vmm.virtio.watchdog import TIMEOUT_S, Watchdog

SOON = TIMEOUT_S - 0.5
OVER = TIMEOUT_S + 0.5


class Resets:
    """Counts the resets that were asked for."""

    def __init__(self) -> None:
        self.count = 0

    def request_reset(self) -> None:
        self.count += 1


@pytest.fixture
def resets() -> Resets:
    return Resets()


@pytest.fixture
async def bench(resets: Resets) -> AsyncIterator[Bench]:
    async with driven(Watchdog("__watchdog", resets)) as bench:
        yield bench


async def ping(bench: Bench, queue: Driver) -> bytes:
    queue.add(writable=[1])
    bench.driver.kick(0)
    await trio.testing.wait_all_tasks_blocked()
    [used] = queue.collect()
    return used.data


async def pass_time(clock: MockClock, seconds: float) -> None:
    await trio.testing.wait_all_tasks_blocked()
    clock.jump(seconds)
    await trio.testing.wait_all_tasks_blocked()


async def test_watchdog_is_of_the_private_type_with_one_queue(bench: Bench) -> None:
    assert bench.transport.configuration.read(2, 2) == 0x1040 + 35
    assert bench.device.queue_sizes == (8,)
    rings = Feature.VERSION_1 | Feature.RING_PACKED | Feature.RING_RESET
    assert await bench.driver.offered() == rings


async def test_ping_is_answered_with_one(bench: Bench) -> None:
    [queue] = await bench.driver.start()

    assert await ping(bench, queue) == b"\x01"


async def test_guest_that_never_pings_is_never_reset(
    bench: Bench, resets: Resets, mock_clock: MockClock
) -> None:
    await bench.driver.start()

    await pass_time(mock_clock, 10 * OVER)

    assert resets.count == 0


async def test_guest_that_stops_pinging_is_reset_once(
    bench: Bench, resets: Resets, mock_clock: MockClock
) -> None:
    [queue] = await bench.driver.start()
    await ping(bench, queue)

    await pass_time(mock_clock, SOON)
    assert resets.count == 0
    await pass_time(mock_clock, OVER - SOON)
    assert resets.count == 1
    await pass_time(mock_clock, 10 * OVER)
    assert resets.count == 1


async def test_guest_that_goes_on_pinging_is_not_reset(
    bench: Bench, resets: Resets, mock_clock: MockClock
) -> None:
    [queue] = await bench.driver.start()
    for _ in range(5):
        await ping(bench, queue)
        await pass_time(mock_clock, SOON)

    assert resets.count == 0


async def test_pause_stops_the_timer_and_resume_gives_the_whole_time(
    bench: Bench, resets: Resets, mock_clock: MockClock
) -> None:
    [queue] = await bench.driver.start()
    await ping(bench, queue)
    await pass_time(mock_clock, SOON)

    await bench.transport.sleep()
    await pass_time(mock_clock, 10 * OVER)
    bench.transport.wake()
    await pass_time(mock_clock, SOON)
    assert resets.count == 0
    await pass_time(mock_clock, OVER - SOON)
    assert resets.count == 1


async def test_reset_by_the_driver_stops_the_timer_until_its_next_ping(
    bench: Bench, resets: Resets, mock_clock: MockClock
) -> None:
    [queue] = await bench.driver.start()
    await ping(bench, queue)

    await bench.driver.reset()
    await pass_time(mock_clock, OVER)
    [queue] = await bench.driver.start()
    await pass_time(mock_clock, OVER)
    assert resets.count == 0

    await ping(bench, queue)
    await pass_time(mock_clock, OVER)
    assert resets.count == 1


@pytest.mark.parametrize("is_armed", [True, False])
async def test_load_arms_the_timer_if_it_was_armed(
    resets: Resets, mock_clock: MockClock, is_armed: bool
) -> None:
    first = Watchdog("__watchdog", Resets())
    async with driven(first) as bench:
        [queue] = await bench.driver.start()
        if is_armed:
            await ping(bench, queue)
        state = first.save()
    second = Watchdog("__watchdog", resets)
    second.load(state)

    async with driven(second) as bench:
        await bench.driver.start()
        await pass_time(mock_clock, OVER)

    assert resets.count == is_armed


async def test_ping_without_room_breaks_the_device(bench: Bench) -> None:
    [queue] = await bench.driver.start()
    queue.add([b"\0"])

    bench.driver.kick(0)
    await bench.interrupt(0)

    assert bench.driver.status & Status.NEEDS_RESET

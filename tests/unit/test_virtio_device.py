"""The loop that serves a slow device's queue, and the life of a device's tasks."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import trio

from vmm.errors import GuestError, HostError, InternalError, VmmError
from vmm.testing.driver import Driver
from vmm.testing.memory import FakeMemory
from vmm.testing.virtio_pci import Bench, driven
from vmm.virtio.chain import Chain
from vmm.virtio.device import BATCH, Active, StuckError, VirtioDevice, serve_chains
from vmm.virtio.queue import Queue
from vmm.virtio.runner import DeviceRunner
from vmm.virtio.spec import DeviceId, Status


class Echo(VirtioDevice):
    """Answers each request with its own bytes; a request may hold it up, or be an error."""

    DEVICE_ID = DeviceId.RNG

    def __init__(self) -> None:
        super().__init__("echo")
        self.seen: list[bytes] = []
        self.cancelled = 0
        self.gate = trio.Event()
        self.gate.set()

    @property
    def queue_sizes(self) -> tuple[int, ...]:
        return (256,)

    async def run_queue(self, queue: Queue, active: Active) -> None:
        await serve_chains(queue, self._answer)

    async def _answer(self, chain: Chain) -> int:
        question = chain.read(64)
        try:
            await self.gate.wait()
        except trio.Cancelled:
            self.cancelled += 1
            raise
        self.seen.append(question)
        if question == b"guest":
            raise GuestError("That is no question")
        if question == b"host":
            raise HostError("read", 5)
        if question == b"bug":
            raise InternalError("A bug")
        return chain.write(question)


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    async with driven(Echo()) as bench:
        yield bench


async def answers(bench: Bench, queue: Driver) -> list[bytes]:
    await bench.interrupt(1)
    return [used.data for used in queue.collect()]


async def test_serve_chains_answers_all_of_a_wake_with_one_interrupt(bench: Bench) -> None:
    [queue] = await bench.driver.start()
    for number in range(10):
        queue.add([b"question %d" % number], [64])

    bench.driver.kick(0)

    assert await answers(bench, queue) == [b"question %d" % number for number in range(10)]
    await trio.testing.wait_all_tasks_blocked()
    assert not bench.sources.is_pending(1)


async def test_serve_chains_serves_more_than_a_batch(bench: Bench) -> None:
    [queue] = await bench.driver.start()
    device = bench.device
    assert isinstance(device, Echo)
    for _ in range(BATCH + 20):
        queue.add([b"x"], [1])

    bench.driver.kick(0)
    await trio.testing.wait_all_tasks_blocked()

    assert len(queue.collect()) == BATCH + 20
    assert len(device.seen) == BATCH + 20


async def test_request_made_before_the_driver_was_ready_is_served_without_a_kick(
    bench: Bench,
) -> None:
    driver = bench.driver
    await driver.add_status(Status.ACKNOWLEDGE)
    await driver.add_status(Status.DRIVER)
    assert await driver.accept(await driver.offered())
    queue = await driver.queue(0)
    queue.add([b"early"], [8])

    await driver.add_status(Status.DRIVER_OK)
    await trio.testing.wait_all_tasks_blocked()

    assert [used.data for used in queue.collect()] == [b"early"]


async def test_reset_gives_the_chain_in_hand_back_and_waits_for_that(bench: Bench) -> None:
    [queue] = await bench.driver.start()
    device = bench.device
    assert isinstance(device, Echo)
    device.gate = trio.Event()
    queue.add([b"slow"], [8])
    bench.driver.kick(0)
    await trio.testing.wait_all_tasks_blocked()

    await bench.driver.reset()

    assert device.cancelled == 1
    assert bench.driver.status == 0
    assert queue.collect() == []


@pytest.mark.parametrize("question", [b"guest", b"host"])
async def test_error_of_guest_or_host_parks_the_device_until_reset(
    bench: Bench, question: bytes
) -> None:
    [queue] = await bench.driver.start()
    queue.add([question], [8])
    generation = bench.driver.transport.read(21, 1)

    bench.driver.kick(0)
    await bench.interrupt(0)

    assert bench.driver.status & Status.NEEDS_RESET
    assert bench.driver.transport.read(21, 1) == generation + 1
    assert bench.events.names == ["activated", "needs-reset"]
    queue.add([b"unheard"], [8])
    bench.driver.kick(0)
    await trio.testing.wait_all_tasks_blocked()
    assert queue.collect() == []

    [queue] = await bench.driver.start()
    queue.add([b"again"], [8])
    bench.driver.kick(0)
    assert await answers(bench, queue) == [b"again"]
    assert bench.events.names == ["activated", "needs-reset", "reset", "activated"]


async def test_broken_ring_parks_the_device(bench: Bench) -> None:
    [queue] = await bench.driver.start(size=8)
    bench.memory.write(queue.state.driver + 2, (100).to_bytes(2, "little"))

    bench.driver.kick(0)
    await bench.interrupt(0)

    assert bench.driver.status & Status.NEEDS_RESET
    assert "index" in bench.events.seen[-1][2]["reason"]


async def test_error_of_this_program_ends_the_machine() -> None:
    with pytest.RaisesGroup(InternalError, flatten_subgroups=True):
        async with driven(Echo()) as bench:
            [queue] = await bench.driver.start()
            queue.add([b"bug"], [8])
            bench.driver.kick(0)
            await trio.sleep_forever()


class Steps(VirtioDevice):
    """Notes when its queues are served, and takes its time to stop."""

    DEVICE_ID = DeviceId.RNG

    def __init__(self) -> None:
        super().__init__("steps")
        self.notes: list[str] = []
        self.may_stop = trio.Event()

    @property
    def queue_sizes(self) -> tuple[int, ...]:
        return ()

    async def run_queues(self, active: Active) -> None:
        self.notes.append(f"begin {active.features}")
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await self.may_stop.wait()
            self.notes.append(f"end {active.features}")


class Silent:
    """An observer that counts."""

    def __init__(self) -> None:
        self.stops = 0

    def broken(self, error: VmmError) -> None:
        raise AssertionError(error)

    def stopped(self) -> None:
        self.stops += 1


def active(features: int) -> Active:
    return Active(features, (), FakeMemory(), lambda: None)


async def test_runner_starts_anew_only_when_what_ran_before_has_ended(
    nursery: trio.Nursery,
) -> None:
    device, observer = Steps(), Silent()
    runner = DeviceRunner(device, observer)
    await nursery.start(runner.run)
    runner.start(active(1))
    await trio.testing.wait_all_tasks_blocked()

    done = runner.stop()
    runner.start(active(2))
    await trio.testing.wait_all_tasks_blocked()
    assert device.notes == ["begin 1"]
    assert not done.is_set()

    device.may_stop.set()
    await done.wait()
    await trio.testing.wait_all_tasks_blocked()
    assert device.notes == ["begin 1", "end 1", "begin 2"]
    assert observer.stops == 1


async def test_runner_that_is_stopped_before_it_began_does_nothing(
    nursery: trio.Nursery,
) -> None:
    device = Steps()
    runner = DeviceRunner(device, Silent())
    await nursery.start(runner.run)

    runner.start(active(1))
    assert runner.stop().is_set()
    await trio.testing.wait_all_tasks_blocked()

    assert device.notes == []


async def test_sleep_gives_the_request_in_hand_back_and_wake_serves_it(bench: Bench) -> None:
    [queue] = await bench.driver.start()
    device = bench.device
    assert isinstance(device, Echo)
    queue.add([b"before"], [8])
    bench.driver.kick(0)
    assert await answers(bench, queue) == [b"before"]
    device.gate = trio.Event()
    queue.add([b"in hand"], [8])
    bench.driver.kick(0)
    await trio.testing.wait_all_tasks_blocked()

    await bench.transport.sleep()
    device.gate.set()
    await trio.testing.wait_all_tasks_blocked()
    assert queue.collect() == []

    bench.transport.wake()
    assert await answers(bench, queue) == [b"in hand"]
    assert bench.events.names == ["activated"]


class Stuck(VirtioDevice):
    """Has requests in hand that the host never answers."""

    DEVICE_ID = DeviceId.BLOCK

    @property
    def queue_sizes(self) -> tuple[int, ...]:
        return (256,)

    async def run_queues(self, active: Active) -> None:
        try:
            await trio.sleep_forever()
        finally:
            raise StuckError("stopping of a disk", 110)


async def test_device_that_cannot_stop_whole_needs_a_reset_after_the_sleep() -> None:
    async with driven(Stuck("disk")) as bench:
        await bench.driver.start()
        await trio.testing.wait_all_tasks_blocked()

        await bench.transport.sleep()
        bench.transport.wake()

        assert bench.driver.status & Status.NEEDS_RESET
        assert bench.events.names == ["activated", "needs-reset"]
        assert not bench.transport.save()[0].is_active


async def test_reset_of_a_device_that_cannot_stop_whole_does_not_read_as_done() -> None:
    async with driven(Stuck("disk")) as bench:
        await bench.driver.start()
        await trio.testing.wait_all_tasks_blocked()

        await bench.driver.reset()

        first = bench.driver.status
        assert bench.events.names == ["activated", "reset", "needs-reset"]
        await bench.driver.reset()
        assert (first, bench.driver.status) == (Status.NEEDS_RESET, 0)


async def test_wake_leaves_a_broken_device_alone(bench: Bench) -> None:
    [queue] = await bench.driver.start()
    device = bench.device
    assert isinstance(device, Echo)
    queue.add([b"guest"], [8])
    bench.driver.kick(0)
    await bench.interrupt(0)

    await bench.transport.sleep()
    bench.transport.wake()
    await trio.testing.wait_all_tasks_blocked()

    assert device.seen == [b"guest"]

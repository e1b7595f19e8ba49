"""The registers of a queue: what a driver may write to them, and the reset of one queue."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import trio

from tests.unit.virtio_recorder import Recorder, recorder, settle
from vmm.testing.virtio_pci import Bench, driven
from vmm.virtio.spec import NO_VECTOR, Common, Feature, PciCapability, Status


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    async with driven(Recorder()) as bench:
        yield bench


@pytest.fixture
async def resettable() -> AsyncIterator[Bench]:
    async with driven(Recorder(Feature.RING_RESET)) as bench:
        yield bench


async def test_queue_fields_read_back_and_no_queue_reads_zero(bench: Bench) -> None:
    driver = bench.driver
    await driver.set(Common.QUEUE_SELECT, 1)
    assert driver.get(Common.QUEUE_SIZE) == 128
    assert driver.get(Common.QUEUE_VECTOR) == NO_VECTOR
    assert driver.get(Common.QUEUE_NOTIFY_OFF) == 1
    for field, value in {
        Common.QUEUE_SIZE: 32,
        Common.QUEUE_VECTOR: 2,
        Common.QUEUE_DESC: 0x1_2345_6780,
        Common.QUEUE_DRIVER: 0x2_0000_0002,
        Common.QUEUE_DEVICE: 0x3_0000_0004,
    }.items():
        await driver.set(field, value)
        assert driver.get(field) == value

    await driver.set(Common.QUEUE_SELECT, 2)
    for field in (Common.QUEUE_SIZE, Common.QUEUE_ENABLE, Common.QUEUE_DESC, Common.QUEUE_VECTOR):
        await driver.set(field, 1)
        assert driver.get(field) == 0


async def test_queue_address_written_whole_is_taken(bench: Bench) -> None:
    await bench.driver.write(Common.QUEUE_DRIVER, 8, 0x1122_3344_5566_7788)

    assert bench.driver.get(Common.QUEUE_DRIVER) == 0x1122_3344_5566_7788


@pytest.mark.parametrize("size", [0, 3, 65, 256])
async def test_queue_size_that_cannot_be_is_dropped(bench: Bench, size: int) -> None:
    await bench.driver.set(Common.QUEUE_SIZE, size)

    assert bench.driver.get(Common.QUEUE_SIZE) == 64


async def test_queue_that_is_enabled_cannot_be_changed(bench: Bench) -> None:
    await bench.driver.start()
    await bench.driver.set(Common.QUEUE_SELECT, 0)
    before = bench.driver.get(Common.QUEUE_DESC)

    await bench.driver.set(Common.QUEUE_DESC, 0)
    await bench.driver.set(Common.QUEUE_SIZE, 8)
    await bench.driver.set(Common.QUEUE_ENABLE, 0)

    assert bench.driver.get(Common.QUEUE_DESC) == before
    assert bench.driver.get(Common.QUEUE_SIZE) == 64
    assert bench.driver.get(Common.QUEUE_ENABLE) == 1


async def test_vector_that_does_not_exist_reads_back_as_none(bench: Bench) -> None:
    for field in (Common.CONFIG_VECTOR, Common.QUEUE_VECTOR):
        await bench.driver.set(field, 3)
        assert bench.driver.get(field) == NO_VECTOR
        await bench.driver.set(field, 2)
        assert bench.driver.get(field) == 2


async def test_queue_reset_takes_one_queue_and_leaves_the_others(resettable: Bench) -> None:
    driver, device = resettable.driver, recorder(resettable)
    await driver.start()
    await settle()
    other = device.queues[1]
    await driver.set(Common.QUEUE_SELECT, 0)

    await driver.set(Common.QUEUE_RESET, 1)
    await settle()

    assert driver.get(Common.QUEUE_RESET) == driver.get(Common.QUEUE_ENABLE) == 0
    assert device.given == [(0, 1), (1,)]
    assert device.queues[1] is other
    await driver.queue(0, 8)
    await settle()
    assert device.given == [(0, 1), (1,), (0, 1)]
    assert device.queues[0].size == 8
    assert device.queues[1] is other
    assert resettable.events.names == ["activated"]


async def test_queue_reset_reads_one_until_it_is_done(
    resettable: Bench, nursery: trio.Nursery
) -> None:
    driver, device = resettable.driver, recorder(resettable)
    await driver.start()
    await settle()
    device.may_stop = trio.Event()
    await driver.set(Common.QUEUE_SELECT, 1)

    nursery.start_soon(driver.set, Common.QUEUE_RESET, 1)
    await settle()
    assert driver.get(Common.QUEUE_RESET) == 1

    device.may_stop.set()
    await settle()
    assert driver.get(Common.QUEUE_RESET) == 0


async def test_queue_reset_is_there_only_where_it_was_agreed_on(
    bench: Bench, resettable: Bench
) -> None:
    common = bench.driver.capability(PciCapability.COMMON)
    longer = resettable.driver.capability(PciCapability.COMMON)
    assert common is not None
    assert longer is not None
    assert (common.length, longer.length) == (56, 60)

    for each in (bench, resettable):
        await each.driver.start(features=Feature.VERSION_1)
        await each.driver.set(Common.QUEUE_SELECT, 0)
        await each.driver.set(Common.QUEUE_RESET, 1)
        await settle()
        assert each.driver.get(Common.QUEUE_ENABLE) == 1
        assert recorder(each).given == [(0, 1)]


async def test_queue_that_cannot_be_enabled_again_parks_the_whole_device(
    resettable: Bench,
) -> None:
    driver, device = resettable.driver, recorder(resettable)
    queues = await driver.start()
    await settle()
    await driver.set(Common.QUEUE_SELECT, 0)
    await driver.set(Common.QUEUE_RESET, 1)
    await settle()

    await driver.set_up_queue(queues[0].state._replace(driver=1 << 40))
    await driver.set(Common.QUEUE_SELECT, 1)
    await driver.set(Common.QUEUE_RESET, 1)
    await settle()

    assert driver.status & Status.NEEDS_RESET
    assert device.given == [(0, 1), (1,)]
    assert device.queues == {}

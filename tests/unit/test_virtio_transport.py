"""The virtio-pci transport, set up by a driver as Linux does it."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator

import pytest
import trio

from tests.unit.virtio_recorder import CONFIG, Recorder, recorder, settle
from vmm.pci.configuration import COMMAND
from vmm.testing.virtio_pci import BAR_ADDRESS, Bench, driven
from vmm.virtio.spec import NO_VECTOR, Common, Feature, PciCapability, Status


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    async with driven(Recorder()) as bench:
        yield bench


async def test_function_is_a_modern_virtio_device(bench: Bench) -> None:
    space = bench.transport.configuration

    assert space.read(0, 4) == 0x1043_1AF4
    assert space.read(8, 4) == 0x0780_0001
    assert space.read(0x2C, 4) == 0x1043_1AF4
    assert space.read(0x10, 4) == BAR_ADDRESS & 0xFFFF_FFFF | 4
    assert space.read(0x14, 4) == BAR_ADDRESS >> 32
    assert space.read(0x3D, 1) == 0


async def test_capabilities_are_in_order_and_say_where_everything_is(bench: Bench) -> None:
    found = [bench.transport.configuration.read(at + 3, 1) for _, at in bench.driver.capabilities()]
    places = {
        kind: tuple(bench.driver.capability(kind) or ())[2:]
        for kind in PciCapability
        if kind is not PciCapability.SHARED_MEMORY
    }

    assert [id for id, _ in bench.driver.capabilities()] == [9, 9, 9, 9, 9, 0x11]
    assert found[:5] == [1, 3, 4, 2, 5]
    assert places == {
        PciCapability.COMMON: (0, 0, 56),
        PciCapability.ISR: (0, 0x2000, 1),
        PciCapability.DEVICE: (0, 0x4000, len(CONFIG)),
        PciCapability.NOTIFY: (0, 0x6000, 0x1000),
        PciCapability.PCI: (0, 0, 0),
    }


async def test_device_without_configuration_has_no_capability_for_it() -> None:
    async with driven(Recorder(config=b"")) as bench:
        assert bench.driver.capability(PciCapability.DEVICE) is None


async def test_start_hands_the_enabled_queues_over(bench: Bench) -> None:
    queues = await bench.driver.start()
    await settle()

    ready = Status.ACKNOWLEDGE | Status.DRIVER | Status.FEATURES_OK | Status.DRIVER_OK
    assert bench.driver.status == ready
    assert recorder(bench).given == [(0, 1)]
    assert [queue.size for queue in queues] == [64, 128]
    assert bench.events.seen == [("virtio-device", "activated", {"id": "recorder"})]
    assert [message.data for message in bench.routes.messages.values()] == [0x40, 0x41, 0x42]


async def test_start_leaves_queues_out_that_were_not_enabled(bench: Bench) -> None:
    driver = bench.driver
    await driver.add_status(Status.ACKNOWLEDGE)
    await driver.add_status(Status.DRIVER)
    assert await driver.accept(Feature.VERSION_1)
    await driver.queue(1, 16)
    await driver.add_status(Status.DRIVER_OK)
    await settle()

    assert recorder(bench).given == [(1,)]
    state = recorder(bench).queues[1].save()
    assert (state.size, state.has_event_idx, state.has_indirect) == (16, False, False)


async def test_features_offered_are_the_device_s_and_the_transport_s(bench: Bench) -> None:
    ring = Feature.RING_EVENT_IDX | Feature.RING_INDIRECT_DESC

    assert await bench.driver.offered() == 0b1001 | ring | Feature.VERSION_1


@pytest.mark.parametrize("address", [0x8000_0000, (1 << 64) - 16, 0x1001])
async def test_queue_outside_ram_or_unaligned_needs_a_reset(bench: Bench, address: int) -> None:
    driver = bench.driver
    await driver.add_status(Status.ACKNOWLEDGE)
    await driver.add_status(Status.DRIVER)
    assert await driver.accept(Feature.VERSION_1)
    queue = await driver.queue(0)
    await driver.set_up_queue(queue.state._replace(index=1, desc=address))

    assert await driver.add_status(Status.DRIVER_OK) & Status.NEEDS_RESET
    await settle()

    assert recorder(bench).given == []
    assert bench.events.names == ["needs-reset"]
    await driver.start()
    await settle()
    assert recorder(bench).given == [(0, 1)]


async def test_reset_stops_the_device_and_forgets_the_driver(bench: Bench) -> None:
    await bench.driver.start()
    await settle()

    await bench.driver.reset()

    assert bench.driver.status == 0
    assert bench.events.names == ["activated", "reset"]
    for queue in (0, 1):
        await bench.driver.set(Common.QUEUE_SELECT, queue)
        assert bench.driver.get(Common.QUEUE_ENABLE) == bench.driver.get(Common.QUEUE_DESC) == 0
        assert bench.driver.get(Common.QUEUE_VECTOR) == NO_VECTOR
    assert bench.routes.attached == {}


async def test_reset_before_the_driver_was_ready_is_no_event(bench: Bench) -> None:
    await bench.driver.add_status(Status.ACKNOWLEDGE)

    await bench.driver.reset()

    assert bench.driver.status == 0
    assert bench.events.names == []


async def test_reset_shows_the_old_status_until_the_device_has_stopped(
    bench: Bench, nursery: trio.Nursery
) -> None:
    await bench.driver.start()
    await settle()
    recorder(bench).may_stop = trio.Event()
    before = bench.driver.status

    nursery.start_soon(bench.driver.reset)
    await settle()
    assert bench.driver.status == before

    recorder(bench).may_stop.set()
    await settle()
    assert bench.driver.status == 0


async def test_reset_that_is_asked_for_twice_shows_the_old_status_as_long(
    bench: Bench, nursery: trio.Nursery
) -> None:
    await bench.driver.start()
    await settle()
    recorder(bench).may_stop = trio.Event()
    before = bench.driver.status

    nursery.start_soon(bench.driver.reset)
    nursery.start_soon(bench.driver.reset)
    await settle()
    meanwhile = bench.driver.status
    recorder(bench).may_stop.set()
    await settle()

    assert (meanwhile, bench.driver.status) == (before, 0)


async def test_driver_that_does_not_wait_for_the_reset_is_served_after_it(
    bench: Bench, nursery: trio.Nursery
) -> None:
    await bench.driver.start()
    await settle()
    recorder(bench).may_stop = trio.Event()
    bench.transport.write(Common.DEVICE_STATUS, 1, 0)

    driver = bench.driver
    bench.transport.write(Common.DEVICE_STATUS, 1, Status.ACKNOWLEDGE | Status.DRIVER)
    assert await driver.accept(Feature.VERSION_1)
    await driver.queue(0)
    await driver.add_status(Status.DRIVER_OK)
    await settle()
    assert recorder(bench).given == [(0, 1)]

    recorder(bench).may_stop.set()
    await settle()
    assert recorder(bench).given == [(0, 1), (0,)]


async def test_configuration_is_read_in_any_width_and_is_zero_past_its_end(bench: Bench) -> None:
    driver = bench.driver

    assert driver.read_config(0, 4) == int.from_bytes(CONFIG[:4], "little")
    assert driver.read_config(12, 8) == int.from_bytes(CONFIG[12:], "little")
    assert driver.read_config(0xFFC, 4) == driver.read_config(0x1000, 4) == 0
    await driver.write_config(0, 2, 0x4142)
    assert recorder(bench).config[:2] == b"BA"


async def test_change_of_the_configuration_is_announced_once_the_driver_is_ready(
    bench: Bench,
) -> None:
    device, driver = recorder(bench), bench.driver
    device.config_changed()
    assert driver.get(Common.CONFIG_GENERATION) == 1
    await driver.start()

    device.config_changed()
    await bench.interrupt(0)

    assert driver.get(Common.CONFIG_GENERATION) == 2
    assert driver.read(0x2000, 1) == 2
    assert driver.read(0x2000, 1) == 0


async def test_interrupts_that_were_on_their_way_are_raised_again_after_a_restore(
    bench: Bench,
) -> None:
    await bench.driver.start()
    await settle()
    recorder(bench).config_changed()
    await bench.transport.sleep()
    state, vectors = bench.transport.save()

    async with driven(Recorder()) as other:
        other.transport.load(state, vectors, bench.transport.configuration.save())
        other.transport.wake()

        for vector in (0, 1, 2):
            await other.interrupt(vector)


async def test_doorbell_that_gets_this_far_kicks_its_queue(bench: Bench) -> None:
    bench.driver.kick(1)
    bench.driver.kick(2)
    bench.driver.kick(1023)

    assert os.eventfd_read(bench.kicks[1]) == 1
    with pytest.raises(BlockingIOError):
        os.eventfd_read(bench.kicks[0])


async def test_masked_vector_shows_its_event_as_pending_and_delivers_it_later(
    bench: Bench,
) -> None:
    driver = bench.driver
    await driver.start()
    await driver.write(0x8000 + 16 * 1 + 12, 4, 1)
    assert driver.read(0x48000, 8) == 0

    bench.sources.signal(0)
    assert driver.read(0x48000, 8) == 1 << 1
    assert bench.sources.fds[0] not in bench.routes.attached

    await driver.write(0x8000 + 16 * 1 + 12, 4, 0)
    assert bench.sources.fds[0] in bench.routes.attached
    assert driver.read(0x48000, 8) == 0


async def test_registers_are_reached_through_configuration_space(bench: Bench) -> None:
    space, write = bench.transport.configuration, bench.transport.write_configuration
    found = bench.driver.capability(PciCapability.PCI)
    assert found is not None
    at = found.position

    def select(offset: int, length: int) -> None:
        write(at + 4, 1, 0)
        write(at + 12, 4, length)
        write(at + 8, 4, offset)

    select(Common.NUM_QUEUES, 2)
    assert space.read(at + 16, 2) == 2
    select(Common.QUEUE_SELECT, 2)
    write(at + 16, 2, 1)
    assert bench.driver.get(Common.QUEUE_SELECT) == 1
    select(0x4000, 4)
    assert space.read(at + 16, 4) == int.from_bytes(CONFIG[:4], "little")
    select(0x6000 + 4, 2)
    write(at + 16, 2, 1)
    assert os.eventfd_read(bench.kicks[1]) == 1


@pytest.mark.parametrize(
    ("bar", "offset", "length"), [(1, 0, 4), (0, 1, 2), (0, 0x80000, 4), (0, 0, 3), (0, 0, 8)]
)
async def test_impossible_access_through_configuration_space_does_nothing(
    bench: Bench, bar: int, offset: int, length: int
) -> None:
    found = bench.driver.capability(PciCapability.PCI)
    assert found is not None
    at, write = found.position, bench.transport.write_configuration

    write(at + 4, 1, bar)
    write(at + 8, 4, offset)
    write(at + 12, 4, length)
    write(at + 16, 4, 0xFFFF_FFFF)

    assert bench.driver.get(Common.DEVICE_FEATURE_SELECT) == 0
    assert bench.transport.configuration.read(at + 16, 4) == 0xFFFF_FFFF


async def test_bar_moves_and_decoding_move_the_window(bench: Bench) -> None:
    write = bench.transport.write_configuration
    write(COMMAND, 2, 0)
    write(0x10, 4, 0x1000_0000)
    write(0x14, 4, 0xFE)
    write(COMMAND, 2, 2)

    assert bench.window.moves == [None, 0xFE_1000_0000]

"""A device behind the IOMMU, both with their drivers; what may come and go; what the tables say."""

from __future__ import annotations

import os
import struct
from collections.abc import AsyncIterator

import pytest
import trio

from tests.unit.test_config_validation import config_of
from vmm.acpi.machine import EndpointRange
from vmm.config.pci import PciDevice
from vmm.errors import ConfigError
from vmm.kvm_cffi import IommuEndpoint
from vmm.machine.iommu import BehindIommu, check_may_come, check_may_go, open_iommu, ranges_behind
from vmm.pci.bdf import Bdf
from vmm.testing.driver import SplitDriver
from vmm.testing.memory import FakeMemory
from vmm.testing.virtio_pci import Bench, driven
from vmm.virtio.balloon import Balloon
from vmm.virtio.iommu import Iommu
from vmm.virtio.rng import Rng
from vmm.virtio.rtc import Rtc
from vmm.virtio.spec import Feature, Status

PAGE = 4096
PLACE = Bdf(1, 0, 3, 0)
NUMBER = 0x1_0018


class Pair:
    """The IOMMU and a device behind it, and the memory of both."""

    def __init__(self, iommu: Bench, rng: Bench, memory: FakeMemory) -> None:
        self.iommu, self.rng, self.memory = iommu, rng, memory
        assert isinstance(iommu.device, Iommu)
        self.iommu_device = iommu.device

    async def start_iommu(self) -> None:
        self.requests, self.events = await self.iommu.driver.start()

    async def ask(self, request: bytes) -> int:
        """Make a request to the IOMMU; its status."""
        self.requests.add([request], [4])
        self.iommu.driver.kick(0)
        await trio.testing.wait_all_tasks_blocked()
        return self.requests.collect()[0].data[0]

    async def map_all(self) -> None:
        """Attach the device and map all of memory, so that its addresses are the guest's own."""
        assert await self.ask(struct.pack("<B3xIII4x", 1, 5, NUMBER, 0)) == 0
        assert await self.ask(struct.pack("<B3xIQQQI", 3, 5, 0, (8 << 20) - 1, 0, 3)) == 0


@pytest.fixture
async def pair() -> AsyncIterator[Pair]:
    memory = FakeMemory((0, 8 << 20))
    iommu = Iommu("__iommu")
    behind = BehindIommu(iommu)
    source = os.open("/dev/zero", os.O_RDONLY)
    try:
        with behind.joined(PLACE):
            async with (
                driven(iommu, memory) as first,
                driven(Rng("__rng", source, "/dev/zero"), memory, behind) as second,
            ):
                pair = Pair(first, second, memory)
                await pair.start_iommu()
                yield pair
    finally:
        os.close(source)


async def test_device_works_by_what_is_mapped_for_it(pair: Pair) -> None:
    await pair.map_all()
    [queue] = await pair.rng.driver.start()
    queue.add([], [16])
    pair.rng.driver.kick(0)
    await pair.rng.interrupt(1)

    assert [used.written for used in queue.collect()] == [16]


async def test_clock_answers_from_behind_the_iommu(pair: Pair) -> None:
    behind = BehindIommu(pair.iommu_device)
    with behind.joined(Bdf(1, 0, 4, 0)):
        assert await pair.ask(struct.pack("<B3xIII4x", 1, 6, NUMBER + 8, 0)) == 0
        assert await pair.ask(struct.pack("<B3xIQQQI", 3, 6, 0, (8 << 20) - 1, 0, 3)) == 0
        async with driven(Rtc("__rtc", lambda: 123), pair.memory, behind) as clock:
            assert await clock.driver.offered() & Feature.ACCESS_PLATFORM
            [queue] = await clock.driver.start()
            queue.add([struct.pack("<H6xH6x", 1, 0)], [16])
            clock.driver.kick(0)
            await clock.interrupt(1)

    assert queue.collect()[0].data == bytes(8) + struct.pack("<Q", 123)


async def test_access_that_is_not_mapped_breaks_the_device_and_is_told(pair: Pair) -> None:
    await pair.map_all()
    [queue] = await pair.rng.driver.start()
    assert isinstance(queue, SplitDriver)
    pair.events.add([], [24])
    assert await pair.ask(struct.pack("<B3xIQQ4x", 4, 5, 0, (1 << 64) - 1)) == 0

    queue.add([], [16])
    pair.rng.driver.kick(0)
    await pair.iommu.interrupt(2)

    [event] = pair.events.collect()
    reason, flags, endpoint, address = struct.unpack("<B3xII4xQ", event.data)
    assert (reason, flags, endpoint) == (2, 1 << 8 | 1, NUMBER)
    assert address == queue.state.desc
    assert pair.rng.driver.status & Status.NEEDS_RESET
    assert not pair.iommu.driver.status & Status.NEEDS_RESET


async def test_driver_must_agree_to_be_translated(pair: Pair) -> None:
    driver = pair.rng.driver
    offered = await driver.offered()
    assert offered & Feature.ACCESS_PLATFORM
    await driver.add_status(Status.ACKNOWLEDGE | Status.DRIVER)

    assert not await driver.accept(offered & ~Feature.ACCESS_PLATFORM)
    assert await driver.accept(offered)


async def test_device_in_front_of_the_iommu_does_not_offer_it() -> None:
    async with driven(Iommu("__iommu")) as bench:
        assert not await bench.driver.offered() & Feature.ACCESS_PLATFORM


def test_balloon_is_never_translated() -> None:
    assert not Balloon.IS_TRANSLATED


def test_device_comes_behind_the_iommu_on_its_segments_alone() -> None:
    check_may_come(PciDevice(), [1])
    check_may_come(PciDevice(iommu=True, pci_segment=1), [1])

    with pytest.raises(ConfigError, match=r"segment 2: .* alone \(1, 3\); put it on one"):
        check_may_come(PciDevice(iommu=True, pci_segment=2), [1, 3])
    with pytest.raises(ConfigError, match=r"alone \(none\)"):
        check_may_come(PciDevice(iommu=True), [])


def test_device_behind_the_iommu_goes_from_its_segments_alone() -> None:
    check_may_go("_disk0", PLACE, [1])

    with pytest.raises(ConfigError, match="Device _disk0 is behind the IOMMU on PCI segment 1"):
        check_may_go("_disk0", PLACE, [2])


def test_tables_name_whole_segments_and_single_devices() -> None:
    config = config_of(platform={"num_pci_segments": 4, "iommu_segments": [3, 1, 3]})
    iommu = Iommu("__iommu")

    with iommu.joined(NUMBER, IommuEndpoint()), iommu.joined(0x20, IommuEndpoint()):
        assert ranges_behind(config, iommu) == (
            EndpointRange(1, 0, 0xFF),
            EndpointRange(3, 0, 0xFF),
            EndpointRange(0, 0x20, 0x20),
        )


def test_iommu_is_as_wide_as_configured() -> None:
    config = config_of(platform={"iommu_address_width_bits": 40}, iommu=True)
    iommu = open_iommu(config)

    assert iommu is not None
    assert iommu.read_config(16, 8) == struct.pack("<Q", (1 << 40) - 1)
    assert open_iommu(config_of()) is None

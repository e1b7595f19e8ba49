"""The IOMMU: every request, what it does to devices, the limits, and what is refused."""

from __future__ import annotations

import struct
from collections.abc import AsyncIterator

import pytest
import trio

from vmm.errors import ConfigError
from vmm.kvm_cffi import Access, Fault, IommuEndpoint
from vmm.testing.virtio_pci import Bench, driven
from vmm.virtio import iommu_domains
from vmm.virtio.iommu import Iommu
from vmm.virtio.saved import SavedIommu
from vmm.virtio.spec import Feature, Status

OK, UNSUPP, INVAL, RANGE, NOENT, NOMEM = 0, 2, 4, 5, 6, 8
READ, WRITE = 1, 2
FIRST, SECOND, UNKNOWN = 0x10, 0x1_0008, 0x18
"""Endpoints: two devices, the second on segment 1, and none."""
PAGE = 4096
LAST = (1 << 64) - 1


class Driven:
    """The IOMMU's driver, with two devices behind the IOMMU."""

    def __init__(self, bench: Bench) -> None:
        assert isinstance(bench.device, Iommu)
        self.bench = bench
        self.iommu = bench.device
        self.first, self.second = IommuEndpoint(), IommuEndpoint()

    async def start(self) -> None:
        self.requests, self.events = await self.bench.driver.start()

    async def ask(self, request: bytes, room: int = 4) -> bytes:
        self.requests.add([request], [room])
        self.bench.driver.kick(0)
        await trio.testing.wait_all_tasks_blocked()
        [used] = self.requests.collect()
        return used.data

    async def status_of(self, request: bytes) -> int:
        answer = await self.ask(request)
        assert answer[1:] == bytes(3)
        return answer[0]

    async def attach(self, domain: int, endpoint: int, flags: int = 0) -> int:
        return await self.status_of(struct.pack("<B3xIII4x", 1, domain, endpoint, flags))

    async def detach(self, domain: int, endpoint: int) -> int:
        return await self.status_of(struct.pack("<B3xII8x", 2, domain, endpoint))

    async def map(
        self, domain: int, first: int, last: int, gpa: int, flags: int = READ | WRITE
    ) -> int:
        return await self.status_of(struct.pack("<B3xIQQQI", 3, domain, first, last, gpa, flags))

    async def unmap(self, domain: int, first: int, last: int) -> int:
        return await self.status_of(struct.pack("<B3xIQQ4x", 4, domain, first, last))


@pytest.fixture(params=[64])
async def driver(request: pytest.FixtureRequest) -> AsyncIterator[Driven]:
    async with driven(Iommu("__iommu", request.param)) as bench:
        driver = Driven(bench)
        iommu = driver.iommu
        with iommu.joined(FIRST, driver.first), iommu.joined(SECOND, driver.second):
            await driver.start()
            yield driver


def led(endpoint: IommuEndpoint, address: int, access: Access = Access.READ) -> int | None:
    """Where an address of a device leads."""
    found = endpoint.translate(address, 1, access)
    return None if found is None else found[0]


async def test_iommu_offers_what_cloud_hypervisor_does(driver: Driven) -> None:
    assert driver.bench.transport.configuration.read(2, 2) == 0x1040 + 23
    rings = Feature.VERSION_1 | Feature.RING_PACKED | Feature.RING_RESET
    assert await driver.bench.driver.offered() == rings | 1 << 2 | 1 << 4 | 1 << 6
    assert driver.iommu.queue_sizes == (256, 256)
    assert driver.iommu.read_config(0, 4096) == struct.pack(
        "<QQQIIIB3x", 0x201000, 0, LAST, 0, 0xFFFF_FFFF, 24, 1
    )


@pytest.mark.parametrize("driver", [48], indirect=True)
async def test_fewer_bits_of_address_are_an_input_range(driver: Driven) -> None:
    assert await driver.bench.driver.offered() & 1
    assert driver.bench.driver.read_config(16, 8) == (1 << 48) - 1
    await driver.attach(1, FIRST)

    top = 1 << 48
    assert await driver.map(1, top - PAGE, top - 1, 0) == OK
    assert await driver.map(1, top, top + PAGE - 1, 0) == RANGE


async def test_device_in_no_domain_has_all_of_memory_until_told_otherwise(driver: Driven) -> None:
    assert led(driver.first, 0x1234) == 0x1234

    await driver.bench.driver.write_config(36, 1, 0)

    assert led(driver.first, 0x1234) is None
    assert driver.bench.driver.read_config(36, 1) == 0


@pytest.mark.parametrize(
    ("offset", "size", "value"), [(36, 1, 2), (32, 4, 0), (36, 4, 0), (0, 1, 0)]
)
async def test_rest_of_the_configuration_cannot_be_written(
    driver: Driven, offset: int, size: int, value: int
) -> None:
    before = driver.iommu.read_config(0, 40)

    await driver.bench.driver.write_config(offset, size, value)

    assert driver.iommu.read_config(0, 40) == before


async def test_attached_device_has_what_is_mapped_and_no_more(driver: Driven) -> None:
    assert await driver.attach(7, FIRST) == OK
    assert await driver.map(7, 0x8000, 0x9FFF, 0x10_0000, READ) == OK
    assert await driver.map(7, LAST - PAGE + 1, LAST, 0x20_0000, WRITE) == OK

    assert led(driver.first, 0x9ABC) == 0x10_1ABC
    assert led(driver.first, 0x9ABC, Access.WRITE) is None
    assert led(driver.first, LAST, Access.WRITE) == 0x20_0FFF
    assert led(driver.first, 0xA000) is None
    assert led(driver.second, 0xA000) == 0xA000


async def test_unmap_takes_whole_mappings_or_none(driver: Driven) -> None:
    await driver.attach(1, FIRST)
    for page in range(4):
        await driver.map(1, page * PAGE, (page + 1) * PAGE - 1, 0)
    await driver.map(1, 0x1_0000, 0x1_FFFF, 0)

    assert await driver.unmap(1, 0, 0x1_7FFF) == RANGE
    assert driver.iommu.counters["mappings"] == 5
    assert await driver.unmap(1, PAGE, 3 * PAGE - 1) == OK
    assert await driver.unmap(1, PAGE, 3 * PAGE - 1) == OK

    assert [led(driver.first, page * PAGE) for page in range(4)] == [0, None, None, 0]
    assert await driver.unmap(1, 0, LAST) == OK
    assert driver.iommu.counters["mappings"] == 0


async def test_unmap_of_many_goes_in_steps(driver: Driven) -> None:
    await driver.attach(1, FIRST)
    for page in range(600):
        assert driver.iommu._domains.map(1, page * PAGE, (page + 1) * PAGE - 1, 0, 1) == OK

    assert await driver.unmap(1, 0, LAST) == OK

    assert driver.iommu.counters["mappings"] == 0
    assert led(driver.first, 0) is None


async def test_devices_of_a_domain_share_it_and_the_last_takes_it_away(driver: Driven) -> None:
    await driver.attach(1, FIRST)
    await driver.attach(1, SECOND)
    await driver.map(1, 0, PAGE - 1, 0x5000)
    assert led(driver.second, 5) == 0x5005

    assert await driver.detach(1, FIRST) == OK
    assert led(driver.first, 5) == 5
    assert led(driver.second, 5) == 0x5005
    assert await driver.detach(1, SECOND) == OK
    assert await driver.map(1, 0, PAGE - 1, 0x5000) == NOENT
    assert driver.iommu.counters == {"domains": 0, "mappings": 0, "faults": 0}


async def test_attach_to_another_domain_leaves_the_first(driver: Driven) -> None:
    await driver.attach(1, FIRST)
    await driver.map(1, 0, PAGE - 1, 0x5000)

    assert await driver.attach(2, FIRST) == OK

    assert led(driver.first, 0) is None
    assert driver.iommu.counters["domains"] == 1
    assert driver.iommu.counters["mappings"] == 0


async def test_bypass_domain_has_all_of_memory_and_no_mappings(driver: Driven) -> None:
    await driver.bench.driver.write_config(36, 1, 0)

    assert await driver.attach(3, FIRST, flags=1) == OK

    assert led(driver.first, 0x77) == 0x77
    assert await driver.map(3, 0, PAGE - 1, 0) == INVAL
    assert await driver.unmap(3, 0, PAGE - 1) == INVAL
    assert await driver.attach(3, SECOND) == INVAL
    assert await driver.detach(3, FIRST) == OK
    assert led(driver.first, 0x77) is None


async def test_attach_refuses_what_is_not_there_or_unknown(driver: Driven) -> None:
    assert await driver.attach(1, UNKNOWN) == NOENT
    assert await driver.attach(1, FIRST, flags=2) == INVAL
    reserved = struct.pack("<B3xIIII", 1, 1, FIRST, 0, 1)
    assert await driver.status_of(reserved) == INVAL
    assert await driver.detach(1, FIRST) == INVAL
    assert await driver.detach(1, UNKNOWN) == NOENT


@pytest.mark.parametrize(
    ("first", "last", "gpa", "flags", "status"),
    [
        (0x1000, 0x0FFF, 0, READ, INVAL),
        (0x1000, 0x1FFF, 0, 4, INVAL),
        (0x1000, 0x1FFF, 0, 1 << 31, INVAL),
        (0x1001, 0x1FFF, 0, READ, RANGE),
        (0x1000, 0x1FFE, 0, READ, RANGE),
        (0x1000, 0x1FFF, 0x10, READ, RANGE),
        (0x1000, 0x2FFF, LAST - 0xFFF, READ, RANGE),
        (0, LAST, 0x1000, READ, RANGE),
        (0, LAST, 0, READ, INVAL),
        (0x8000, 0x8FFF, 0, READ, INVAL),
        (0x7000, 0x8FFF, 0, READ, INVAL),
    ],
)
async def test_map_refuses_what_cannot_be(
    driver: Driven, first: int, last: int, gpa: int, flags: int, status: int
) -> None:
    await driver.attach(1, FIRST)
    await driver.map(1, 0x8000, 0x9FFF, 0)

    assert await driver.map(1, first, last, gpa, flags) == status
    assert driver.iommu.counters["mappings"] == 1


async def test_mapping_of_everything_is_one_mapping(driver: Driven) -> None:
    await driver.attach(1, FIRST)

    assert await driver.map(1, 0, LAST, 0) == OK

    assert driver.first.translate(LAST - 5, 99, Access.WRITE) == (LAST - 5, 6)
    assert await driver.unmap(1, 0, LAST) == OK


async def test_mappings_of_all_domains_together_have_a_limit(
    driver: Driven, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(iommu_domains, "MAPPINGS_MOST", 2)
    await driver.attach(1, FIRST)
    await driver.attach(2, SECOND)

    assert await driver.map(1, 0, PAGE - 1, 0) == OK
    assert await driver.map(2, 0, PAGE - 1, 0) == OK
    assert await driver.map(2, PAGE, 2 * PAGE - 1, 0) == NOMEM
    await driver.detach(1, FIRST)
    assert await driver.map(2, PAGE, 2 * PAGE - 1, 0) == OK


async def test_probe_tells_where_interrupts_are(driver: Driven) -> None:
    answer = await driver.ask(struct.pack("<B3xI64x", 5, SECOND), 28)

    assert answer == struct.pack("<HHB3xQQ", 1, 20, 1, 0xFEE0_0000, 0xFEEF_FFFF) + bytes(4)


async def test_probe_of_nobody_is_no_entry_after_room_for_properties(driver: Driven) -> None:
    answer = await driver.ask(struct.pack("<B3xI64x", 5, UNKNOWN), 28)

    assert answer == bytes(24) + bytes((NOENT, 0, 0, 0))


async def test_probe_without_room_for_properties_is_invalid(driver: Driven) -> None:
    answer = await driver.ask(struct.pack("<B3xI64x", 5, FIRST), 20)

    assert answer == bytes(16) + bytes((INVAL, 0, 0, 0))


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"\x09" + bytes(60), UNSUPP),
        (b"\0", UNSUPP),
        (b"\x01" + bytes(18), INVAL),
        (b"\x03", INVAL),
    ],
)
async def test_unknown_and_short_requests_are_refused(
    driver: Driven, request_: bytes, status: int
) -> None:
    assert await driver.status_of(request_) == status


async def test_request_without_room_for_a_status_breaks_the_device(driver: Driven) -> None:
    driver.requests.add([bytes(20)], [3])
    driver.bench.driver.kick(0)
    await trio.testing.wait_all_tasks_blocked()

    assert driver.bench.driver.status & Status.NEEDS_RESET


async def test_faults_wait_for_buffers_and_are_told_in_order(driver: Driven) -> None:
    await driver.attach(1, FIRST)
    for fault in (
        Fault(0x1234, Access.WRITE, has_domain=True),
        Fault(0x5678, Access.READ, has_domain=False),
    ):
        driver.iommu.report(FIRST, fault)
    await trio.testing.wait_all_tasks_blocked()

    for _ in range(2):
        driver.events.add([], [24])
        driver.bench.driver.kick(1)
        await driver.bench.interrupt(2)

    assert [used.data for used in driver.events.collect()] == [
        struct.pack("<B3xII4xQ", 2, 1 << 8 | WRITE, FIRST, 0x1234),
        struct.pack("<B3xII4xQ", 1, 1 << 8 | READ, FIRST, 0x5678),
    ]
    assert driver.iommu.counters["faults"] == 2


async def test_faults_nobody_takes_are_bounded(driver: Driven) -> None:
    for address in range(1000):
        driver.iommu.report(FIRST, Fault(address, Access.READ, has_domain=True))
    for _ in range(100):
        driver.events.add([], [24])
    driver.bench.driver.kick(1)
    await trio.testing.wait_all_tasks_blocked()

    assert len(driver.events.collect()) == 64
    assert driver.iommu.counters["faults"] == 1000


async def test_reset_frees_devices_and_keeps_the_bypass_byte(driver: Driven) -> None:
    await driver.bench.driver.write_config(36, 1, 0)
    await driver.attach(1, FIRST)
    await driver.map(1, 0, PAGE - 1, 0)

    await driver.bench.driver.reset()

    assert led(driver.first, 0) is None
    assert driver.iommu.counters == {"domains": 0, "mappings": 0, "faults": 0}
    await driver.bench.driver.write_config(36, 1, 1)
    assert led(driver.first, 0) == 0


async def test_unplugged_device_is_in_no_domain(driver: Driven) -> None:
    with driver.iommu.joined(UNKNOWN, IommuEndpoint()):
        assert await driver.attach(9, UNKNOWN) == OK
        assert await driver.map(9, 0, PAGE - 1, 0) == OK

    assert driver.iommu.counters == {"domains": 0, "mappings": 0, "faults": 0}
    assert await driver.attach(9, UNKNOWN) == NOENT


async def test_saved_iommu_goes_on_elsewhere_before_its_devices_are_there(driver: Driven) -> None:
    await driver.bench.driver.write_config(36, 1, 0)
    await driver.attach(1, FIRST)
    await driver.map(1, 0x8000, 0x9FFF, 0x5000, WRITE)
    await driver.attach(2, SECOND, flags=1)
    state = driver.iommu.save()
    written = SavedIommu.model_validate(state).to_json()
    state = SavedIommu.from_json(written, "__iommu").model_dump()

    other, first, second, third = Iommu("__iommu"), *(IommuEndpoint() for _ in range(3))
    with other.joined(SECOND, second):
        other.load(state)
        with other.joined(FIRST, first), other.joined(UNKNOWN, third):
            assert SavedIommu.model_validate(other.save()).to_json() == written
            assert led(first, 0x9001, Access.WRITE) == 0x6001
            assert led(first, 0x9001) is None
            assert led(second, 0x9001) == 0x9001
            assert led(third, 0x9001) is None


@pytest.mark.parametrize(
    "state",
    [
        {},
        {"bypass": 1, "domains": []},
        {"bypass": True, "domains": [{}]},
        {"bypass": True, "domains": [{"number": 1, "endpoints": ["a"], "mappings": []}]},
        {"bypass": True, "domains": [{"number": 1, "endpoints": [1, 1], "mappings": []}]},
        {"bypass": True, "domains": [{"number": 1, "endpoints": [1], "mappings": [[0, 1, 2, 3]]}]},
        {
            "bypass": True,
            "domains": [{"number": 1, "endpoints": [1], "mappings": [[-4096, -1, 0, 1]]}],
        },
        {"bypass": True, "domains": [{"number": 1, "endpoints": [1], "mappings": [[0, 4095]]}]},
        {"bypass": True, "domains": [{"number": 1, "endpoints": [], "mappings": []}]},
    ],
)
def test_state_that_is_none_is_refused(state: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="IOMMU"):
        Iommu("__iommu").load(state)

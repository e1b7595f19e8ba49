"""The rooms in which zones grow: what of them is RAM, and where their memory comes from."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.test_machine_memory import resident_pages
from vmm.boot.layout import Area, RamRange
from vmm.config.memory import MemoryConfig
from vmm.errors import GuestError, HostError
from vmm.machine import memory as memory_module
from vmm.machine.memory import GuestMemory
from vmm.machine.zones import Room, Zone, rooms_of, zones_of

MIB = 1 << 20
BLOCK = 2 * MIB
BASE = 4 << 30
ROOM = RamRange(BASE, 8 * BLOCK)


def opened(zone: Zone) -> Iterator[GuestMemory]:
    with GuestMemory.open([zone], [RamRange(0, zone.size)], [Room(zone, ROOM)]) as memory:
        yield memory


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    """4 MiB of RAM, and room for 16 MiB more."""
    yield from opened(Zone("near", 4 * MIB, room=8 * BLOCK, thp=False))


def test_room_is_no_ram_until_blocks_of_it_are_plugged(memory: GuestMemory) -> None:
    assert (memory.size, memory.ram) == (4 * MIB, (RamRange(0, 4 * MIB),))
    assert [each.range for each in memory.present] == [RamRange(0, 4 * MIB)]

    _, blocks = memory.room_of("near")
    blocks.mark(BASE + BLOCK, 2, plugged=True)
    blocks.mark(BASE + 7 * BLOCK, 1, plugged=True)

    assert [(each.range, each.offset) for each in memory.present] == [
        (RamRange(0, 4 * MIB), 0),
        (RamRange(BASE + BLOCK, 2 * BLOCK), BLOCK),
        (RamRange(BASE + 7 * BLOCK, BLOCK), 7 * BLOCK),
    ]
    assert memory.size == 4 * MIB


def test_room_can_be_used_by_devices_and_no_further(memory: GuestMemory) -> None:
    memory.write(BASE + BLOCK - 4, b"across it")

    assert memory.read(BASE + BLOCK - 4, 9) == b"across it"
    with pytest.raises(GuestError, match="is not RAM"):
        memory.write(BASE + 8 * BLOCK - 4, b"across it")


@pytest.mark.parametrize("shared", [False, True], ids=["private", "memfd"])
def test_memory_of_blocks_that_are_given_back_is_the_hosts_again(shared: bool) -> None:
    for memory in opened(Zone("near", 4 * MIB, shared=shared, thp=False, room=8 * BLOCK)):
        memory.write(BASE, b"x" * 8 * BLOCK)
        assert resident_pages(memory, BASE, 8 * BLOCK) == 4096

        memory.discard(BASE + BLOCK, 3 * BLOCK)

        assert resident_pages(memory, BASE, 8 * BLOCK) == 5 * 512
        assert memory.read(BASE + BLOCK, 16) == bytes(16)


@pytest.mark.parametrize(("prefault", "pages"), [(False, 0), (True, 1024)])
def test_memory_is_there_when_plugged_where_the_zone_wants_so(prefault: bool, pages: int) -> None:
    for memory in opened(Zone("near", 4 * MIB, thp=False, prefault=prefault, room=8 * BLOCK)):
        list(memory.populate())
        assert resident_pages(memory, BASE, 8 * BLOCK) == 0

        list(memory.provide(BASE + BLOCK, 2 * BLOCK))

        assert resident_pages(memory, BASE, 8 * BLOCK) == pages
        assert resident_pages(memory, BASE + BLOCK, 2 * BLOCK) == pages


def test_memory_that_the_host_has_not_is_its_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    # An advice that no kernel knows is refused as one that finds no memory is.
    monkeypatch.setattr(memory_module, "MADV_POPULATE_WRITE", 99)
    for memory in opened(Zone("near", 4 * MIB, prefault=True, room=8 * BLOCK)):
        with pytest.raises(HostError, match="zone 'near' needs 4 MiB of free memory"):
            list(memory.provide(BASE, 2 * BLOCK))


def test_room_of_a_file_follows_the_zone_in_it(tmp_path: Path) -> None:
    path = tmp_path / "ram"
    zone = Zone("near", 4 * MIB, file=str(path), shared=True, room=8 * BLOCK)
    for memory in opened(zone):
        memory.write(0, b"zone")
        memory.write(BASE, b"room")

    assert path.stat().st_size == 4 * MIB + 8 * BLOCK
    with path.open("rb") as file:
        assert os.pread(file.fileno(), 4, 0) == b"zone"
        assert os.pread(file.fileno(), 4, 4 * MIB) == b"room"


def test_zones_that_grow_have_a_room_each() -> None:
    config = MemoryConfig.model_validate(
        {
            "size": 128 * MIB,
            "hotplug_method": "VirtioMem",
            "hotplug_size": 128 * MIB,
            "hotplugged_size": 2 * MIB,
            "zones": [
                {"id": "fixed", "size": MIB},
                {"id": "huge", "size": 1 << 30, "hugepages": True, "hugepage_size": 1 << 30}
                | {"hotplug_size": 2 << 30},
            ],
        }
    )
    zones = zones_of(config)

    rooms = rooms_of(zones, [Area(BASE, 128 * MIB), Area(2 * BASE, 2 << 30)])

    assert [(zone.id, range_.gpa) for zone, range_ in rooms] == [("mem0", BASE), ("huge", 2 * BASE)]
    assert [(zone.room, zone.grown, zone.block_size) for zone, _ in rooms] == [
        (128 * MIB, 2 * MIB, BLOCK),
        (2 << 30, 0, 1 << 30),
    ]
    assert [zone.growth.alignment for zone, _ in rooms] == [128 * MIB, 1 << 30]


def test_ram_that_grows_by_acpi_has_no_room_for_virtio_mem() -> None:
    [zone] = zones_of(MemoryConfig(size=MIB, hotplug_size=128 * MIB))

    assert zone.room == 0


@pytest.mark.parametrize("shared", [False, True], ids=["private", "memfd"])
def test_what_is_not_plugged_is_given_back(shared: bool) -> None:
    for memory in opened(Zone("near", 4 * MIB, shared=shared, thp=False, room=8 * BLOCK)):
        memory.write(0, b"x" * 4 * MIB)
        memory.write(BASE, b"x" * 8 * BLOCK)
        memory.room_of("near")[1].replace([(1, 2), (6, 1)])

        list(memory.discard_unplugged())

        assert resident_pages(memory, 0, 4 * MIB) == 1024
        assert resident_pages(memory, BASE, 8 * BLOCK) == 3 * 512
        assert memory.read(BASE + BLOCK, 2 * BLOCK) == b"x" * 2 * BLOCK
        assert memory.read(BASE + 6 * BLOCK, BLOCK) == b"x" * BLOCK

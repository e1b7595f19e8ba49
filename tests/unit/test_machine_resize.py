"""vm.resize: what the machine is asked for, and what the configuration becomes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from vmm.acpi.memory_hotplug import SLOTS, MemoryHotplug
from vmm.boot.layout import Area, RamRange
from vmm.config.requests import VmResize, VmResizeZone
from vmm.config.vm import VmConfig
from vmm.errors import ConfigError, HostError, NotFoundError
from vmm.kvm_cffi import GuestMemoryMap, Vm
from vmm.machine.memory import GuestMemory
from vmm.machine.ram_hotplug import RamHotplug
from vmm.machine.resize import resize
from vmm.machine.zones import Zone

MIB = 1 << 20
BLOCK = 128 * MIB
BASE = 4 << 30
CONFIG = VmConfig.model_validate(
    {"memory": {"size": 512 * MIB}, "balloon": {"size": 0}, "payload": {"kernel": "/k"}}
)


class FakeMachine:
    def __init__(self) -> None:
        self.ram_size = 512 * MIB
        self.calls: list[tuple[str, int]] = []
        self.error: Exception | None = None

    async def grow_ram(self, size: int) -> None:
        self.calls.append(("grow", size))
        if self.error is not None:
            raise self.error

    async def resize_vcpus(self, count: int) -> None:
        self.calls.append(("vcpus", count))

    def check_payload(self, config: VmConfig) -> None:
        self.calls.append(("payload", config.memory.size))
        if self.error is not None:
            raise self.error

    def resize_zone(self, zone: str, size: int) -> None:
        self.calls.append((zone, size))

    def resize_balloon(self, size: int) -> None:
        self.calls.append(("balloon", size))


async def resized(
    machine: FakeMachine | None,
    *,
    config: VmConfig = CONFIG,
    vcpus: int | None = None,
    ram: int | None = None,
    balloon: int | None = None,
) -> VmConfig:
    """Resize, and give the configuration that was stored last."""
    stored = [config]
    await resize(
        config,
        machine,
        VmResize(desired_vcpus=vcpus, desired_ram=ram, desired_balloon=balloon),
        stored.append,
    )
    return stored[-1]


async def test_resize_before_boot_changes_the_configuration_alone() -> None:
    config = await resized(None, vcpus=1, ram=1 << 30, balloon=64 * MIB)

    assert config.cpus.boot_vcpus == 1
    assert config.memory.size == 1 << 30
    assert config.balloon is not None
    assert config.balloon.size == 64 * MIB


async def test_more_ram_is_plugged_in_and_stored() -> None:
    machine = FakeMachine()

    config = await resized(machine, ram=768 * MIB)

    assert machine.calls == [("grow", 256 * MIB)]
    assert config.memory.size == 768 * MIB


@pytest.mark.parametrize(("ram", "calls"), [(256 * MIB, [("payload", 256 * MIB)]), (512 * MIB, [])])
async def test_no_more_ram_waits_for_the_next_boot(ram: int, calls: list[tuple[str, int]]) -> None:
    machine = FakeMachine()

    config = await resized(machine, ram=ram)

    assert machine.calls == calls
    assert config.memory.size == ram


async def test_less_ram_than_the_next_boot_needs_is_refused_and_not_stored() -> None:
    machine = FakeMachine()
    machine.error = ConfigError("The kernel needs RAM up to 0x3000000")
    stored: list[VmConfig] = []

    with pytest.raises(ConfigError, match="needs RAM up to"):
        await resize(CONFIG, machine, VmResize(desired_ram=8 * MIB), stored.append)
    assert stored == []


async def test_less_ram_than_the_balloon_has_is_refused_and_not_stored() -> None:
    config = await resized(FakeMachine(), balloon=256 * MIB)
    stored: list[VmConfig] = []

    with pytest.raises(ConfigError, match="greater than RAM"):
        await resize(config, FakeMachine(), VmResize(desired_ram=256 * MIB), stored.append)
    assert stored == []


@pytest.mark.parametrize("machine", [None, FakeMachine()], ids=["created", "running"])
@pytest.mark.parametrize("ram", [0, 4097, 512 * MIB + 1])
async def test_ram_that_no_vm_can_have_is_refused_and_not_stored(
    machine: FakeMachine | None, ram: int
) -> None:
    stored: list[VmConfig] = []

    with pytest.raises(ConfigError, match="not a positive multiple of its page size 4096"):
        await resize(CONFIG, machine, VmResize(desired_ram=ram), stored.append)

    assert stored == []
    assert machine is None or machine.calls == []


async def test_ram_of_zones_is_not_resized_as_a_whole() -> None:
    zones = {"memory": {"size": 0, "zones": [{"id": "a", "size": BLOCK}]}}

    with pytest.raises(ConfigError, match=r"in zones .* use vm\.resize-zone"):
        await resized(FakeMachine(), config=VmConfig.model_validate(zones), ram=BLOCK)


MEM = {
    "payload": {"kernel": "/k"},
    "memory": {"size": 512 * MIB, "hotplug_method": "VirtioMem", "hotplug_size": 512 * MIB},
}
ZONES = {
    "payload": {"kernel": "/k"},
    "memory": {
        "size": 0,
        "hotplug_method": "VirtioMem",
        "zones": [
            {"id": "fixed", "size": BLOCK},
            {"id": "near", "size": BLOCK, "hotplug_size": BLOCK, "hotplugged_size": 64 * MIB},
        ],
    },
}


async def test_more_ram_by_virtio_mem_is_asked_for_and_less_too() -> None:
    machine = FakeMachine()

    config = await resized(machine, config=VmConfig.model_validate(MEM), ram=768 * MIB)
    again = await resized(machine, config=config, ram=768 * MIB)
    less = await resized(machine, config=again, ram=512 * MIB)

    assert machine.calls == [("mem0", 256 * MIB), ("mem0", 0)]
    assert [each.memory.size for each in (config, again, less)] == [512 * MIB] * 3
    assert (config.memory.hotplugged_size, less.memory.hotplugged_size) == (256 * MIB, None)
    assert again == config


async def test_less_ram_than_that_of_the_boot_is_refused_with_virtio_mem() -> None:
    machine = FakeMachine()

    with pytest.raises(ConfigError, match="the 536870912 bytes that were there at boot stay"):
        await resized(machine, config=VmConfig.model_validate(MEM), ram=511 * MIB)
    assert machine.calls == []


async def test_ram_before_boot_is_that_of_the_boot_with_virtio_mem_too() -> None:
    config = await resized(None, config=VmConfig.model_validate(MEM), ram=1 << 30)

    assert (config.memory.size, config.memory.hotplugged_size) == (1 << 30, None)


async def zone_resized(machine: FakeMachine | None, id: str, size: int) -> list[VmConfig]:
    """Resize a zone of ``ZONES``, and give what was stored."""
    stored: list[VmConfig] = []
    request = VmResizeZone(id=id, desired_ram=size)
    await resize(VmConfig.model_validate(ZONES), machine, request, stored.append)
    return stored


@pytest.mark.parametrize(("size", "beyond"), [(192 * MIB, None), (BLOCK, 0), (2 * BLOCK, BLOCK)])
async def test_zone_counts_what_it_has_from_the_boot_on(size: int, beyond: int | None) -> None:
    machine = FakeMachine()
    beyond = 64 * MIB if beyond is None else beyond

    [config] = await zone_resized(machine, "near", size)

    assert machine.calls == [("near", beyond)]
    _, zone = config.memory.zones or ()
    assert (zone.size, zone.hotplugged_size) == (BLOCK, beyond or None)


async def test_zone_of_a_vm_before_boot_is_made_of_another_size() -> None:
    [config] = await zone_resized(None, "fixed", 2 * BLOCK)

    assert [zone.size for zone in config.memory.zones or ()] == [2 * BLOCK, BLOCK]


@pytest.mark.parametrize("machine", [None, FakeMachine()], ids=["created", "running"])
async def test_zone_that_is_not_there_is_refused_with_the_names_of_those_that_are(
    machine: FakeMachine | None,
) -> None:
    with pytest.raises(NotFoundError, match=r'No memory zone with id "mem0"; .* has fixed, near'):
        await zone_resized(machine, "mem0", BLOCK)


@pytest.mark.parametrize(
    ("machine", "size", "message"),
    [
        (FakeMachine(), BLOCK - 2 * MIB, "the 134217728 bytes that were there at boot stay"),
        (None, 4097, "not a positive multiple of its page size 4096"),
        (None, 0, "not a positive multiple of its page size 4096"),
    ],
)
async def test_zone_of_a_size_that_cannot_be_is_refused_and_not_stored(
    machine: FakeMachine | None, size: int, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        await zone_resized(machine, "near", size)
    assert machine is None or machine.calls == []


async def test_what_was_done_before_a_failure_stays_done() -> None:
    machine = FakeMachine()
    machine.error = HostError("mmap", 12)
    stored: list[VmConfig] = []

    with pytest.raises(HostError):
        await resize(
            CONFIG,
            machine,
            VmResize(desired_ram=1 << 30, desired_balloon=MIB),
            stored.append,
        )

    assert stored == []
    assert machine.calls == [("grow", 512 * MIB)]


async def test_vcpus_are_checked_before_the_machine_is_asked() -> None:
    machine = FakeMachine()
    more = CONFIG.model_copy(update={"cpus": CONFIG.cpus.model_copy(update={"max_vcpus": 4})})

    assert (await resized(machine, config=more, vcpus=3)).cpus.boot_vcpus == 3
    with pytest.raises(ConfigError, match="max_vcpus"):
        await resized(machine, config=more, vcpus=5)
    assert machine.calls == [("vcpus", 3)]


class FakeVm:
    """KVM's memory slots."""

    def __init__(self) -> None:
        self.slots: dict[int, tuple[int, int]] = {}
        self.error: HostError | None = None

    def set_user_memory_region(self, slot: int, gpa: int, size: int, hva: int) -> None:
        if self.error is not None:
            raise self.error
        self.slots[slot] = (gpa, size)


class Board:
    """RAM of 1 MiB, and room for eight blocks more at 4 GiB."""

    def __init__(self, memory: GuestMemory) -> None:
        self.vm = FakeVm()
        self.memory = memory
        self.map = GuestMemoryMap((each.gpa, each.size, each.hva) for each in memory.regions)
        self.registers = MemoryHotplug(self)
        self.notified = 0
        vm: Vm = self.vm  # type: ignore[assignment]
        area, kind = Area(BASE, 9 * BLOCK), Zone("mem0", MIB)
        self.hotplug = RamHotplug(vm, memory, self.map, self.registers, area, kind)

    def notify(self, notification: object) -> None:
        self.notified += 1


@pytest.fixture
def board() -> Iterator[Board]:
    with GuestMemory.open([Zone("mem0", MIB)], [RamRange(0, MIB)]) as memory:
        yield Board(memory)


async def test_ram_that_is_plugged_in_is_there_for_all(board: Board) -> None:
    await board.hotplug.grow(BLOCK)
    await board.hotplug.grow(2 * BLOCK)

    assert board.vm.slots == {2: (BASE, BLOCK), 3: (BASE + BLOCK, 2 * BLOCK)}
    assert board.memory.size == MIB + 3 * BLOCK
    board.memory.write(BASE + BLOCK - 4, b"across it")
    assert board.memory.read(BASE + BLOCK - 4, 9) == b"across it"
    region = board.memory.regions[1]
    assert board.map.translate(BASE + 4096, 8) == region.hva + 4096
    assert board.notified == 2


@pytest.mark.parametrize(
    ("size", "message"),
    [
        (BLOCK - 4096, "blocks of 134217728 bytes"),
        (10 * BLOCK, r"hotplug_size=\) 1207959552 are left"),
    ],
)
async def test_ram_that_does_not_fit_is_refused(board: Board, size: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        await board.hotplug.grow(size)
    assert board.memory.size == MIB


async def test_ninth_time_is_refused_for_want_of_a_slot(board: Board) -> None:
    for _ in range(SLOTS):
        await board.hotplug.grow(BLOCK)

    with pytest.raises(ConfigError, match="all 8 slots for it are taken; reboot"):
        await board.hotplug.grow(BLOCK)


async def test_ram_that_kvm_refuses_leaves_nothing_behind(board: Board) -> None:
    board.vm.error = HostError("KVM_SET_USER_MEMORY_REGION", 22)

    with pytest.raises(HostError):
        await board.hotplug.grow(BLOCK)
    board.vm.error = None

    assert (board.memory.size, board.notified) == (MIB, 0)
    await board.hotplug.grow(BLOCK)
    assert board.memory.size == MIB + BLOCK


@pytest.mark.parametrize("shared", [False, True], ids=["private", "memfd"])
def test_ram_that_is_taken_back_is_the_hosts_again(board: Board, shared: bool) -> None:
    descriptors = len(os.listdir("/proc/self/fd"))
    kind = Zone("more", 4 * MIB, shared=shared, prefault=True, thp=False)
    region = board.memory.add(kind, BASE, 2)
    list(board.memory.populate(region))
    assert is_mapped(region.hva)

    board.memory.remove(region)

    assert not is_mapped(region.hva)
    assert len(os.listdir("/proc/self/fd")) == descriptors


def is_mapped(address: int) -> bool:
    """Whether there is memory of this process at an address."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    ranges = (line.split()[0].split("-") for line in lines)
    return any(int(start, 16) <= address < int(end, 16) for start, end in ranges)

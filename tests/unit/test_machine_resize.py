"""vm.resize: what the machine is asked for, and what the configuration becomes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from vmm.acpi.memory_hotplug import SLOTS, MemoryHotplug
from vmm.boot.layout import Area, RamRange
from vmm.config.requests import VmResize
from vmm.config.vm import VmConfig
from vmm.errors import ConfigError, HostError
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


@pytest.mark.parametrize("ram", [256 * MIB, 512 * MIB])
async def test_no_more_ram_waits_for_the_next_boot(ram: int) -> None:
    machine = FakeMachine()

    config = await resized(machine, ram=ram)

    assert machine.calls == []
    assert config.memory.size == ram


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

"""Devices that come and go in real VMs, whose guests read and write the registers themselves."""

from __future__ import annotations

import gc
import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import trio

from tests.kvm.guests import hotplug, programs
from tests.kvm.guests.hotplug import CPUS
from tests.kvm.guests.image import write_kernel
from tests.kvm.guests.leaks import check_nothing_left, holdings
from tests.kvm.guests.machines import DEADLINE_S, MIB, Owned, configure, owned, running
from vmm.config.disk import DiskConfig, ImageType
from vmm.config.net import NetConfig
from vmm.config.pci import PciSlot
from vmm.config.pmem import PmemConfig
from vmm.config.vm import VmConfig
from vmm.config.vsock import VsockConfig
from vmm.errors import ConfigError, DuplicateError, HostError, NotFoundError
from vmm.machine.commands import (
    AddDevice,
    Boot,
    Create,
    Pause,
    Reboot,
    RemoveDevice,
    Resume,
    Shutdown,
)
from vmm.net.tap import open_tap
from vmm.testing.namespace import network_namespace

pytestmark = [pytest.mark.kvm, pytest.mark.usefixtures("kvm")]

CYCLES = 200
WARM_CYCLES = 10
OBJECTS_A_CYCLE = 1
"""Python objects that a cycle may leave: what grows with the cycles is a leak."""

REMOVED = "device-removed"


@pytest.fixture
def namespace() -> Iterator[None]:
    """A network of the test's own; skipped where there is none to be had."""
    with ExitStack() as stack:
        try:
            stack.enter_context(network_namespace())
            stack.enter_context(open_tap("probe", 1))
        except HostError as error:
            pytest.skip(f"taps cannot be made here: {error}")
        yield


@pytest.fixture
def disk(tmp_path: Path) -> DiskConfig:
    """A disk of 1 MiB."""
    path = tmp_path / "disk.raw"
    path.write_bytes(bytes(MIB))
    return DiskConfig(path=str(path), image_type=ImageType.RAW)


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory whose path is short enough for a socket's."""
    with tempfile.TemporaryDirectory(prefix="vmm-") as directory:
        yield Path(directory)


def serving(tmp_path: Path, source: str, **sections: object) -> VmConfig:
    """A VM around a guest that reaches the registers."""
    return configure(write_kernel(tmp_path, source), cpus=CPUS, **sections)


def placed(entry: PciSlot, **place: object) -> PciSlot:
    """The same device in another place, or of another name."""
    return entry.model_copy(update=place)


async def add(held: Owned, section: str, entry: PciSlot) -> tuple[str, str]:
    """Add a device to a running VM: its id and its place."""
    place = await held.owner.submit(AddDevice(section, entry))
    assert place is not None
    return place.id, place.bdf


async def give_back(held: Owned, id: str) -> None:
    """Remove a device and wait until the guest has ejected it."""
    before = held.events.names.count(REMOVED)
    await held.do(RemoveDevice(id))
    await held.events.wait_for(REMOVED, times=before + 1)


def tree(held: Owned) -> set[str]:
    """The names in the device tree."""
    return set(held.owner.info().device_tree or {})


@pytest.mark.usefixtures("namespace")
async def test_devices_added_and_removed_200_times_in_the_same_slots_leave_nothing(
    tmp_path: Path, place: Path, disk: DiskConfig
) -> None:
    pmem = tmp_path / "pmem"
    pmem.write_bytes(bytes(2 * MIB))
    devices: tuple[tuple[str, PciSlot], ...] = (
        ("disks", disk),
        ("net", NetConfig()),
        ("pmem", PmemConfig(file=str(pmem))),
        ("vsock", VsockConfig(cid=3, socket=str(place / "vsock.sock"))),
    )
    async with owned(serving(tmp_path, hotplug.eject_for_ever())) as held:
        untouched = tree(held)

        async def cycle() -> None:
            places = [await add(held, *each) for each in devices]
            assert [bdf for _, bdf in places] == [f"0000:00:0{slot}.0" for slot in (2, 3, 4, 5)]
            for id, _ in places:
                await give_back(held, id)
            assert tree(held) == untouched

        for _ in range(WARM_CYCLES):
            await cycle()
        gc.collect()
        before, objects = holdings(), len(gc.get_objects())
        for _ in range(CYCLES):
            await cycle()
        gc.collect()

        check_nothing_left(before)
        assert len(gc.get_objects()) - objects < OBJECTS_A_CYCLE * CYCLES
        config = held.owner.info().config
        assert (config.disks, config.net, config.pmem, config.vsock) == (None,) * 4
        assert os.listdir(place) == []


async def test_second_vsock_is_refused_until_the_first_is_removed(
    tmp_path: Path, place: Path
) -> None:
    vsock = VsockConfig(cid=3, socket=str(place / "vsock.sock"))
    async with owned(serving(tmp_path, hotplug.eject_for_ever())) as held:
        id, _ = await add(held, "vsock", vsock)
        with pytest.raises(ConfigError, match="Too many virtio-vsock devices"):
            await held.do(AddDevice("vsock", vsock))

        await give_back(held, id)

        assert (await add(held, "vsock", vsock))[1] == "0000:00:02.0"


async def test_slot_of_another_segment_can_be_emptied_and_filled_at_once(
    tmp_path: Path, disk: DiskConfig
) -> None:
    config = serving(tmp_path, hotplug.eject_for_ever(1), platform={"num_pci_segments": 2})
    there = placed(disk, pci_segment=1, pci_device_id=0, id="data")
    async with owned(config) as held:
        for _ in range(3):
            assert await add(held, "disks", there) == ("data", "0001:00:00.0")
            await give_back(held, "_virtio-pci-data")
        assert await add(held, "disks", there) == ("data", "0001:00:00.0")


async def test_device_added_to_a_paused_vm_is_announced_when_it_runs_on(
    tmp_path: Path, disk: DiskConfig
) -> None:
    source = f"{hotplug.find()} {programs.say('ready')} {hotplug.tell_inserted()} {programs.HALT}"
    async with running(serving(tmp_path, source)) as vm:
        ready = await vm.debug.wait_for(b"ready")
        await vm.machine.pause()

        added = await vm.machine.add_device("disks", placed(disk, pci_device_id=7))
        assert len(vm.debug.output) == ready
        await vm.machine.resume()

        told = (await vm.debug.wait_for_bytes(ready + 4))[ready:]
        assert (added.entry.id, int.from_bytes(told, "little")) == ("_disk0", 1 << 7)


async def test_device_asked_back_while_paused_is_ejected_when_the_vm_runs_on(
    tmp_path: Path, disk: DiskConfig
) -> None:
    async with owned(serving(tmp_path, hotplug.eject_for_ever())) as held:
        id, _ = await add(held, "disks", disk)

        await held.do(Pause(), RemoveDevice(id))
        assert id in tree(held)
        await held.do(Resume())

        await held.events.wait_for(REMOVED)
        assert id not in tree(held)


async def test_guest_that_never_ejects_keeps_its_device_until_its_machine_ends(
    tmp_path: Path, disk: DiskConfig
) -> None:
    async with owned(configure(write_kernel(tmp_path, programs.HALT))) as held:
        named = placed(disk, id="data", pci_device_id=5)
        await add(held, "disks", named)

        await held.do(RemoveDevice("data"), RemoveDevice("data"))

        assert "data" in tree(held)
        assert held.owner.info().config.disks is None
        with pytest.raises(DuplicateError, match="data"):
            await held.do(AddDevice("disks", named))
        with pytest.raises(DuplicateError, match=r"0000:00:05\.0"):
            await held.do(AddDevice("net", NetConfig(pci_device_id=5)))
        with pytest.raises(HostError, match="lock"):
            await held.do(AddDevice("disks", disk))
        await held.do(Reboot())
        assert "data" not in tree(held)
        assert REMOVED not in held.events.names
        assert await add(held, "disks", named) == ("data", "0000:00:05.0")


async def test_ejection_that_nobody_asked_for_takes_nothing(
    tmp_path: Path, disk: DiskConfig
) -> None:
    source = f"{hotplug.find()} {hotplug.eject(0xFFFF_FFFF)} {programs.say('done')} {programs.HALT}"
    disks = [disk.to_json()]
    async with running(serving(tmp_path, source, disks=disks)) as vm:
        before = vm.machine.device_tree

        await vm.debug.wait_for(b"done")

        assert vm.machine.device_tree == before


async def test_device_that_cannot_be_opened_leaves_nothing_and_its_slot_free(
    tmp_path: Path, disk: DiskConfig
) -> None:
    async with owned(serving(tmp_path, hotplug.eject_for_ever())) as held:
        await give_back(held, (await add(held, "disks", disk))[0])
        before, names = holdings(), tree(held)
        wrong = placed(disk, path=str(tmp_path / "absent"), id="data", pci_device_id=3)
        with pytest.raises(HostError, match="absent"):
            await held.do(AddDevice("disks", wrong))

        check_nothing_left(before)
        assert tree(held) == names
        assert held.owner.info().config.disks is None
        right = placed(disk, id="data", pci_device_id=3)
        assert await add(held, "disks", right) == ("data", "0000:00:03.0")


@pytest.mark.parametrize(
    ("id", "kind"),
    [("absent", NotFoundError), ("__ioapic", NotFoundError)]
    + [(id, ConfigError) for id in ("__rng", "_virtio-pci-__rng", "__pvpanic", "__balloon")],
)
async def test_removal_of_what_is_unknown_or_the_machines_own_is_refused(
    id: str, kind: type[Exception], tmp_path: Path
) -> None:
    kernel = write_kernel(tmp_path, programs.HALT)
    config = configure(kernel, pvpanic=True, balloon={"size": 0})
    async with owned(config) as held:
        before = tree(held)

        with pytest.raises(kind, match=id.removeprefix("_virtio-pci-")):
            await held.do(RemoveDevice(id))

        assert tree(held) == before


async def test_names_and_slots_that_are_taken_are_refused(tmp_path: Path, disk: DiskConfig) -> None:
    other = tmp_path / "other.raw"
    other.write_bytes(bytes(MIB))
    second = placed(disk, path=str(other))
    async with owned(configure(write_kernel(tmp_path, programs.HALT))) as held:
        id, _ = await add(held, "disks", disk)
        before = tree(held)
        for entry, kind, text in (
            (placed(second, id=id), DuplicateError, id),
            (placed(second, id="__mine"), ConfigError, "__mine"),
            (placed(second, id=f"_virtio-pci-{id}"), DuplicateError, id),
            (placed(second, pci_device_id=2), DuplicateError, "0000:00:02.0"),
            (placed(second, pci_device_id=0), ConfigError, "root complex"),
            (placed(second, pci_device_id=32), ConfigError, "32"),
            (placed(second, pci_segment=1), ConfigError, "segment"),
        ):
            with pytest.raises(kind, match=text):
                await held.do(AddDevice("disks", entry))
            assert tree(held) == before
        # The one that found its slot taken has used up a number.
        assert await add(held, "disks", second) == ("_disk2", "0000:00:03.0")


async def test_bus_takes_devices_until_its_slots_are_full(tmp_path: Path, disk: DiskConfig) -> None:
    shared = placed(disk, readonly=True)
    async with owned(serving(tmp_path, hotplug.eject_for_ever())) as held:
        for slot in range(2, 32):
            assert await add(held, "disks", shared) == (f"_disk{slot - 2}", f"0000:00:{slot:02x}.0")
        with pytest.raises(ConfigError, match="slots of PCI segment 0"):
            await held.do(AddDevice("disks", shared))

        await give_back(held, "_disk17")

        assert (await add(held, "disks", shared))[1] == "0000:00:13.0"


async def test_devices_of_a_created_vm_are_there_at_its_boot(
    tmp_path: Path, disk: DiskConfig
) -> None:
    kernel = write_kernel(tmp_path, programs.HALT)
    async with owned() as held:
        await held.do(Create(configure(kernel)), AddDevice("disks", placed(disk, id="data")))

        await held.do(Boot())

        assert "data" in tree(held)
        await held.do(Shutdown(), RemoveDevice("data"), Boot())
        assert "data" not in tree(held)


async def test_device_added_while_the_vm_reboots_is_in_the_new_machine(
    tmp_path: Path, disk: DiskConfig
) -> None:
    async with owned(configure(write_kernel(tmp_path, programs.HALT))) as held:
        with trio.fail_after(DEADLINE_S):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(held.do, Reboot())
                await held.events.wait_for("rebooting")
                assert await add(held, "disks", disk) == ("_disk0", "0000:00:02.0")

        assert held.events.names.count("rebooted") == 1
        assert "_disk0" in tree(held)

"""Devices added to the VM of an owner and removed from it: what is kept, and what is refused."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.unit.owner_fixture import CONFIG, Bench, running
from vmm.config.device import VdpaConfig
from vmm.config.disk import DiskConfig
from vmm.config.net import NetConfig
from vmm.config.requests import VmResize
from vmm.errors import (
    DuplicateError,
    HostError,
    NotCreatedError,
    NotFoundError,
    StateError,
    UnsupportedError,
    VmmError,
)
from vmm.machine.commands import (
    AddDevice,
    Boot,
    Command,
    Create,
    Delete,
    Reboot,
    RemoveDevice,
    Resize,
    Shutdown,
    ShutdownVmm,
)

DISK = DiskConfig(path="/disk.raw")


def disks(bench: Bench) -> list[str | None]:
    return [disk.id for disk in bench.owner.info().config.disks or ()]


async def test_device_added_to_a_running_vm_has_a_place_and_stays_over_a_reboot() -> None:
    async with running() as bench:
        await bench.do(Create(CONFIG), Boot())

        place = await bench.owner.submit(AddDevice("disks", DISK))

        assert place is not None
        assert place.to_json() == {"id": "_disk7", "bdf": "0001:00:05.0"}
        assert disks(bench) == ["_disk7"]
        await bench.do(Reboot())
        assert disks(bench) == ["_disk7"]


async def test_device_added_to_a_created_vm_is_only_stored() -> None:
    async with running() as bench:
        await bench.do(Create(CONFIG))

        assert await bench.owner.submit(AddDevice("disks", DISK)) is None

        assert bench.owner.info().config.disks == (DISK,)
        assert bench.machines == []


@pytest.mark.parametrize("boot", [[], [Boot()]], ids=["created", "running"])
async def test_device_that_breaks_a_rule_is_refused_and_not_kept(boot: list[Command]) -> None:
    named = DISK.model_copy(update={"id": "root"})
    async with running() as bench:
        await bench.do(Create(CONFIG), *boot, AddDevice("disks", named))

        with pytest.raises(DuplicateError, match="root"):
            await bench.do(AddDevice("disks", named))
        with pytest.raises(UnsupportedError, match="back end vDPA"):
            await bench.do(AddDevice("vdpa", VdpaConfig(path="/dev/vhost-vdpa-0")))

        assert disks(bench) == ["root"]
        assert bench.owner.info().config.vdpa is None


async def test_device_that_cannot_be_opened_is_not_kept() -> None:
    async with running() as bench:
        await bench.do(Create(CONFIG), Boot())
        bench.machine.add_error = HostError("open", 2, path="/disk.raw")

        with pytest.raises(HostError):
            await bench.do(AddDevice("disks", DISK))

        assert disks(bench) == []


async def test_add_to_a_machine_that_fails_meanwhile_is_refused() -> None:
    async with running() as bench:
        await bench.do(Create(CONFIG), Boot())
        bench.machine.add_hangs = True
        bench.machine.break_down.set()

        with pytest.raises(StateError, match="not running"):
            await bench.do(AddDevice("disks", DISK))
        await bench.ended.wait()


async def test_device_removed_from_a_running_vm_leaves_the_configuration_at_once() -> None:
    named = DISK.model_copy(update={"id": "root"})
    async with running() as bench:
        await bench.do(Create(CONFIG), Boot(), AddDevice("disks", named))

        await bench.do(RemoveDevice("_virtio-pci-root"))

        assert bench.machine.calls[-1] == "remove _virtio-pci-root"
        assert bench.owner.info().config.disks is None


async def test_device_that_the_machine_does_not_give_stays_in_the_configuration() -> None:
    named = DISK.model_copy(update={"id": "root"})
    async with running() as bench:
        await bench.do(Create(CONFIG), Boot(), AddDevice("disks", named))
        bench.machine.remove_error = NotFoundError("No device")

        with pytest.raises(NotFoundError):
            await bench.do(RemoveDevice("root"))

        assert disks(bench) == ["root"]


async def test_device_removed_from_a_created_vm_is_gone_and_an_unknown_one_is_not_found() -> None:
    named = DISK.model_copy(update={"id": "root"})
    async with running() as bench:
        await bench.do(Create(CONFIG), AddDevice("disks", DISK), AddDevice("disks", named))

        await bench.do(RemoveDevice("root"))

        assert bench.owner.info().config.disks == (DISK,)
        with pytest.raises(NotFoundError, match="root"):
            await bench.do(RemoveDevice("root"))


class Pipe:
    """A descriptor that a client gives away, and whether anybody has it open."""

    def __init__(self) -> None:
        self.read_end, self.given = os.pipe()
        os.set_blocking(self.read_end, False)

    @property
    def is_closed(self) -> bool:
        try:
            return os.read(self.read_end, 1) == b""
        except BlockingIOError:
            return False

    def added(self, **entry: object) -> AddDevice:
        """The command that adds a network on it."""
        net = NetConfig.model_validate({**entry}).model_copy(update={"fds": (self.given,)})
        return AddDevice("net", net, (self.given,))


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    made = Pipe()
    yield made
    os.close(made.read_end)


async def test_descriptor_of_a_network_is_kept_over_boots_until_it_is_removed(pipe: Pipe) -> None:
    async with running() as bench:
        await bench.do(Create(CONFIG), pipe.added(id="lan"), Boot(), Reboot(), Shutdown(), Boot())
        assert not pipe.is_closed

        await bench.do(RemoveDevice("lan"))

        assert pipe.is_closed


async def test_descriptor_of_a_network_is_closed_with_the_vm(pipe: Pipe) -> None:
    async with running() as bench:
        await bench.do(Create(CONFIG), Boot(), pipe.added())
        assert not pipe.is_closed

        await bench.do(Delete())

        assert pipe.is_closed


async def test_descriptor_of_a_network_is_closed_at_the_end_of_the_owner(pipe: Pipe) -> None:
    async with running() as bench:
        await bench.do(Create(CONFIG), Boot(), pipe.added())
    assert pipe.is_closed


@pytest.mark.parametrize("before", [[], [Create(CONFIG)], [ShutdownVmm()]], ids=len)
async def test_descriptor_of_a_refused_network_is_closed(before: list[Command], pipe: Pipe) -> None:
    async with running() as bench:
        await bench.do(*before)

        with pytest.raises(VmmError):
            await bench.do(pipe.added(num_queues=8))

        assert pipe.is_closed


async def test_descriptor_of_a_network_that_cannot_be_opened_is_closed(pipe: Pipe) -> None:
    async with running() as bench:
        await bench.do(Create(CONFIG), Boot())
        bench.machine.add_error = HostError("TUNGETIFF", 25)

        with pytest.raises(HostError):
            await bench.do(pipe.added())

        assert pipe.is_closed


async def test_descriptor_of_a_command_behind_the_end_is_closed(pipe: Pipe) -> None:
    async with running() as bench:
        await bench.do(Create(CONFIG))
        bench.owner.request_end()

        with pytest.raises(StateError, match="ending"):
            await bench.do(pipe.added())

        assert pipe.is_closed


async def test_resize_of_a_running_vm_is_stored_and_told_by_two_events() -> None:
    async with running() as bench:
        await bench.do(Create(CONFIG), Boot())

        await bench.do(Resize(VmResize(desired_ram=1 << 30)))

        assert bench.owner.info().config.memory.size == 1 << 30
        assert bench.machine.calls == [f"grow by {512 << 20}"]
        assert bench.events.names[-2:] == ["resizing", "resized"]


async def test_resize_that_fails_changes_nothing_and_has_no_second_event() -> None:
    async with running() as bench:
        await bench.do(Create(CONFIG), Boot())
        bench.machine.add_error = HostError("mmap", 12)

        with pytest.raises(HostError):
            await bench.do(Resize(VmResize(desired_ram=1 << 30)))

        assert bench.owner.info().config.memory.size == CONFIG.memory.size
        assert bench.events.names[-1] == "resizing"


async def test_resize_without_a_vm_is_refused() -> None:
    async with running() as bench:
        with pytest.raises(NotCreatedError):
            await bench.do(Resize(VmResize(desired_ram=1 << 30)))

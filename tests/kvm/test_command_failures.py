"""Commands that KVM refuses at any point: the VM is as before, and they can be repeated."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.kvm.guests.image import write_kernel
from tests.kvm.guests.leaks import holdings
from tests.kvm.guests.machines import MIB, Owned, configure, owned
from tests.kvm.guests.programs import HALT
from vmm.config.disk import DiskConfig, ImageType
from vmm.config.pmem import PmemConfig
from vmm.config.requests import VmResize
from vmm.config.vsock import VsockConfig
from vmm.errors import HostError
from vmm.kvm_cffi import Vcpu, Vm
from vmm.machine.commands import (
    AddDevice,
    Boot,
    Command,
    Coredump,
    Create,
    Delete,
    Pause,
    Resize,
    Resume,
    Shutdown,
    Snapshot,
)

pytestmark = [pytest.mark.kvm, pytest.mark.usefixtures("kvm")]

CALLS_AT_MOST = 300


class Refusal:
    """Refuses one of the ioctls to a VM and its vCPUs, counted from 0, and lets all others pass."""

    def __init__(self, number: int) -> None:
        self._left = number
        self.has_come = False

    def around(self, call: Callable[..., int]) -> Callable[..., int]:
        """The call, unless it is the one."""

        def may_refuse(descriptor: object, name: str, *arguments: object) -> int:
            self._left -= 1
            if self._left == -1:
                self.has_come = True
                raise HostError(name, 28, hint="injected")
            return call(descriptor, name, *arguments)

        return may_refuse


def a_disk(folder: Path) -> Command:
    path = folder / "disk"
    path.write_bytes(bytes(MIB))
    return AddDevice("disks", DiskConfig(path=str(path), image_type=ImageType.RAW))


def persistent_memory(folder: Path) -> Command:
    path = folder / "pmem"
    path.write_bytes(bytes(2 * MIB))
    return AddDevice("pmem", PmemConfig(file=str(path)))


def a_vsock(folder: Path) -> Command:
    return AddDevice("vsock", VsockConfig(cid=3, socket=str(folder / "vsock")))


def two_vcpus(folder: Path) -> Command:
    return Resize(VmResize(desired_vcpus=3))


def more_ram(folder: Path) -> Command:
    return Resize(VmResize(desired_ram=192 * MIB))


def pause(folder: Path) -> Command:
    return Pause()


def resume(folder: Path) -> Command:
    return Resume()


def snapshot(folder: Path) -> Command:
    place = folder / "snapshot"
    place.mkdir(exist_ok=True)
    for file in place.iterdir():
        file.unlink()
    return Snapshot(place.as_uri())


def coredump(folder: Path) -> Command:
    path = folder / "core"
    path.unlink(missing_ok=True)
    return Coredump(path.as_uri())


@pytest.mark.parametrize(
    ("make", "before"),
    [
        *((make, ()) for make in (a_disk, persistent_memory, a_vsock, two_vcpus, more_ram)),
        *((make, ()) for make in (pause, coredump)),
        *((make, (Pause(),)) for make in (resume, snapshot, coredump)),
    ],
)
async def test_command_that_kvm_refuses_at_any_point_can_be_repeated(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    make: Callable[[Path], Command],
    before: tuple[Command, ...],
) -> None:
    config = configure(
        write_kernel(tmp_path, HALT),
        cpus={"boot_vcpus": 1, "max_vcpus": 3},
        memory={"size": 64 * MIB, "hotplug_size": 256 * MIB},
    )

    for number in range(CALLS_AT_MOST):
        refusal = Refusal(number)
        async with owned(config) as held:
            await held.do(*before)
            now = state_of(held)
            with monkeypatch.context() as patched:
                for kind, name in ((Vm, "_ioctl"), (Vm, "_ioctl_value"), (Vcpu, "_ioctl")):
                    patched.setattr(kind, name, refusal.around(getattr(kind, name)))
                is_refused = await refused(held, make(tmp_path))
            if is_refused:
                assert state_of(held) == now
                await held.do(make(tmp_path))
            await held.do(Delete())
        if not refusal.has_come:
            break

    assert 0 < number < CALLS_AT_MOST - 1


async def test_vm_that_kvm_has_given_up_leaves_no_descriptor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configure(
        write_kernel(tmp_path, HALT),
        vsock={"cid": 3, "socket": str(tmp_path / "vsock")},
        serial={"mode": "Null"},
    )

    def give_up(descriptor: object, name: str, *arguments: object) -> int:
        raise HostError(name, errno.EIO)

    async with owned() as held:
        await held.do(Create(config))
        before = holdings().descriptors
        await held.do(Boot())
        with monkeypatch.context() as patched:
            for kind, name in ((Vm, "_ioctl"), (Vm, "_ioctl_value"), (Vcpu, "_ioctl")):
                patched.setattr(kind, name, give_up)
            await held.do(Shutdown())

        # The consoles, too, are closed.
        assert not set(holdings().descriptors) - set(before)


async def refused(held: Owned, command: Command) -> bool:
    """Have a command carried out; whether that ended with what was injected."""
    try:
        await held.do(command)
    except HostError as error:
        if error.hint != "injected":
            raise
        return True
    return False


def state_of(held: Owned) -> tuple[object, ...]:
    """What must be as it was; but KVM keeps a vCPU that it has made as long as its VM."""
    open_now = [each for each in holdings().descriptors if "kvm-vcpu" not in each]
    return held.owner.info(), open_now

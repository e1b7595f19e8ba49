"""A process that may open no more descriptors: what needs one is refused, and the VM goes on."""

from __future__ import annotations

import os
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.kvm.guests.image import write_kernel
from tests.kvm.guests.leaks import holdings
from tests.kvm.guests.machines import configure, owned
from tests.kvm.guests.programs import HALT
from vmm.config.disk import DiskConfig, ImageType
from vmm.config.pmem import PmemConfig
from vmm.config.requests import VmResize
from vmm.config.vsock import VsockConfig
from vmm.errors import HostError
from vmm.machine.commands import AddDevice, Boot, Command, Create, Delete, Resize

pytestmark = [pytest.mark.kvm, pytest.mark.usefixtures("kvm")]

MOST = 200
"""More than any of these machines has."""


@contextmanager
def free_descriptors(count: int) -> Iterator[None]:
    """Let this process open so many more."""
    taken = {int(name) for name in os.listdir("/proc/self/fd")}
    free = [number for number in range(len(taken) + MOST) if number not in taken]
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free[count], before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def descriptors() -> list[str]:
    """What is open but for vCPUs, which KVM keeps as long as their VM, for the next attempt."""
    return [each for each in holdings().descriptors if "kvm-vcpu" not in each]


async def test_boot_that_runs_out_of_descriptors_leaves_none_open(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.write_bytes(bytes(1 << 20))
    config = configure(
        write_kernel(tmp_path, HALT),
        disks=[{"path": str(disk), "image_type": "Raw"}],
        memory={"size": 64 << 20, "shared": True},
        vsock={"cid": 3, "socket": str(tmp_path / "vsock")},
        serial={"mode": "Null"},
        console={"mode": "Null"},
        balloon={"size": 0},
        watchdog=True,
        pvpanic=True,
    )
    refusals = 0
    async with owned() as held:
        await held.do(Create(config))
        before = holdings().descriptors
        while held.owner.info().state == "Created":
            try:
                with free_descriptors(refusals):
                    await held.do(Boot())
            except HostError:
                refusals += 1
                assert holdings().descriptors == before
        await held.do(Delete())

    assert refusals > 30


def a_disk(folder: Path) -> Command:
    path = folder / "disk"
    path.write_bytes(bytes(1 << 20))
    config = DiskConfig(path=str(path), image_type=ImageType.RAW)
    return AddDevice("disks", config)


def persistent_memory(folder: Path) -> Command:
    path = folder / "pmem"
    path.write_bytes(bytes(2 << 20))
    return AddDevice("pmem", PmemConfig(file=str(path)))


def a_vsock(folder: Path) -> Command:
    return AddDevice("vsock", VsockConfig(cid=3, socket=str(folder / "vsock")))


def a_vcpu(folder: Path) -> Command:
    return Resize(VmResize(desired_vcpus=2))


@pytest.mark.parametrize("make", [a_disk, persistent_memory, a_vsock, a_vcpu])
async def test_addition_that_runs_out_of_descriptors_leaves_the_vm_as_it_was(
    tmp_path: Path, make: Callable[[Path], Command]
) -> None:
    config = configure(write_kernel(tmp_path, HALT), cpus={"boot_vcpus": 1, "max_vcpus": 2})
    refusals = 0
    async with owned(config) as held:
        before, has_come = descriptors(), False
        while not has_come:
            try:
                with free_descriptors(refusals):
                    await held.do(make(tmp_path))
                has_come = True
            except HostError:
                refusals += 1
                assert descriptors() == before
                assert held.owner.info().state == "Running"

    assert refusals > 0

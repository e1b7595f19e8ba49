"""A VM that cannot be built says why, and leaves no thread, descriptor or mapping behind."""

from __future__ import annotations

import errno
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
import trio

from tests.kvm.guests import programs
from tests.kvm.guests.image import write_kernel
from tests.kvm.guests.leaks import check_nothing_left, holdings
from tests.kvm.guests.machines import DEADLINE_S, configure, owned, running
from tests.unit.boot_images import make_elf
from vmm import kvm_cffi
from vmm.boot.layout import RamRange
from vmm.config.vm import VmConfig
from vmm.errors import ConfigError, HostError, StateError, VmmError
from vmm.kvm_cffi import Kvm, check, system, thread, vcpu
from vmm.machine.commands import Boot, Create, Delete
from vmm.machine.memory import GuestMemory
from vmm.machine.zones import Zone

pytestmark = [pytest.mark.kvm, pytest.mark.usefixtures("kvm")]

MIB = 1 << 20
CALLS_AT_MOST = 300
MADE_DESCRIPTORS = ("open", "KVM_CREATE_VM", "KVM_CREATE_VCPU")
BEYOND_THE_HOST = 60_000
"""A CPU number that no host here has."""


@pytest.fixture
def kernel(tmp_path: Path) -> Path:
    return write_kernel(tmp_path, programs.HALT)


async def fail_to_run(config: VmConfig, kind: type[VmmError]) -> str:
    """Build a machine that cannot be, check that nothing of it stays, and give the reason."""
    before = holdings()
    text = None
    with trio.fail_after(DEADLINE_S):
        async with owned() as held:
            await held.do(Create(config))
            try:
                await held.do(Boot())
            except kind as error:
                text = str(error)
            assert held.owner.info().state == "Created"
    check_nothing_left(before)
    assert text is not None
    return text


async def test_host_without_kvm(kernel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Kvm, "open", partial(Kvm.open, "/dev/kvm-is-not-there"))

    text = await fail_to_run(configure(kernel), HostError)

    assert "/dev/kvm-is-not-there" in text
    assert "load the kvm_intel or kvm_amd module" in text


async def test_kernel_that_is_not_there(tmp_path: Path) -> None:
    text = await fail_to_run(configure(tmp_path / "absent"), HostError)

    assert str(tmp_path / "absent") in text
    assert "--kernel" in text


async def test_kernel_that_needs_more_memory(tmp_path: Path) -> None:
    path = tmp_path / "large"
    path.write_bytes(make_elf(memsz=100 * MIB))

    text = await fail_to_run(configure(path), ConfigError)

    assert "102 MiB" in text
    assert "64 MiB" in text
    assert "raise memory.size" in text


async def test_initramfs_that_needs_more_memory(kernel: Path, tmp_path: Path) -> None:
    path = tmp_path / "initramfs"
    with path.open("wb") as file:
        file.truncate(80 * MIB)
    payload = {"kernel": str(kernel), "initramfs": str(path)}

    text = await fail_to_run(configure(kernel, payload=payload), ConfigError)

    assert f"has {80 * MIB} bytes" in text
    assert "raise memory.size" in text


async def test_huge_pages_that_the_host_has_not_reserved(kernel: Path) -> None:
    free = Path("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages")
    if int(free.read_text()) * 2 * MIB >= 64 * MIB:  # noqa: ASYNC240
        pytest.skip("this host has reserved huge pages")
    memory = {"size": 64 * MIB, "hugepages": True}

    text = await fail_to_run(configure(kernel, memory=memory), HostError)

    assert "reserve 32 pages of 2048 KiB" in text


async def test_huge_pages_of_a_size_that_does_not_exist(kernel: Path) -> None:
    memory = {"size": 64 * MIB, "hugepages": True, "hugepage_size": 16 * MIB}

    text = await fail_to_run(configure(kernel, memory=memory), HostError)

    assert "16384 KiB" in text


async def test_memory_zone_whose_file_cannot_be_opened(kernel: Path) -> None:
    zone = {"id": "ram", "size": 64 * MIB, "file": "/proc/no/such", "shared": True}

    text = await fail_to_run(configure(kernel, memory={"size": 0, "zones": [zone]}), HostError)

    assert "/proc/no/such" in text


async def test_more_vcpus_than_kvm_has(kernel: Path, kvm: Kvm) -> None:
    most = kvm.check_extension(kvm_cffi.constants.KVM_CAP_MAX_VCPUS)
    cpus = {"boot_vcpus": most + 1, "max_vcpus": most + 1}

    text = await fail_to_run(configure(kernel, cpus=cpus), ConfigError)

    assert f"use at most {most}" in text


async def test_affinity_to_a_cpu_that_the_host_does_not_have(kernel: Path) -> None:
    affinity = [{"vcpu": 1, "host_cpus": [BEYOND_THE_HOST]}]
    cpus = {"boot_vcpus": 3, "max_vcpus": 3, "affinity": affinity}

    text = await fail_to_run(configure(kernel, cpus=cpus), ConfigError)

    assert f"vCPU 1 on the host CPUs [{BEYOND_THE_HOST}]" in text
    assert str(sorted(os.sched_getaffinity(0))) in text


async def test_amx_on_a_host_without_it(kernel: Path) -> None:
    if "amx_tile" in Path("/proc/cpuinfo").read_text():  # noqa: ASYNC240
        pytest.skip("this host has AMX")
    cpus = {"boot_vcpus": 1, "max_vcpus": 1, "features": {"amx": True}}

    text = await fail_to_run(configure(kernel, cpus=cpus), ConfigError)

    assert "cpus.features.amx" in text


async def test_every_call_to_kvm_may_fail(kernel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cpus = {"boot_vcpus": 2, "max_vcpus": 2}
    config = configure(kernel, cpus=cpus, serial={"mode": "Null"})
    before = holdings()
    failed = set()

    for call in range(CALLS_AT_MOST):
        fault = Fault(call)
        with monkeypatch.context() as patched:
            for module in (system, kvm_cffi.vm, vcpu, thread, kvm_cffi.msrs):
                if hasattr(module, "check"):
                    patched.setattr(module, "check", fault.check)
            with trio.fail_after(DEADLINE_S):
                try:
                    async with running(config):
                        break
                except* HostError as errors:
                    injected = errors.subgroup(lambda error: "injected" in str(error))
                    texts = [] if injected is None else [str(injected)]
        check_nothing_left(before)
        assert texts
        assert fault.operation is not None
        failed.add(fault.operation)

    assert {"open", "KVM_CREATE_VM", "KVM_CREATE_VCPU", "KVM_SET_USER_MEMORY_REGION"} <= failed


async def test_failed_boot_can_be_tried_again(kernel: Path) -> None:
    path = kernel.with_name("later")
    async with owned() as held:
        await held.do(Create(configure(path)))
        with pytest.raises(HostError):
            await held.do(Boot())
        write_kernel(path.parent, programs.HALT, path.name)

        await held.do(Boot())

        assert held.owner.info().state == "Running"
        await held.do(Delete())
        with pytest.raises(StateError):
            await held.do(Boot())


def test_file_that_ends_early_is_named_and_the_memory_is_unmapped() -> None:
    before = holdings()

    with (
        pytest.raises(ConfigError, match="ends at byte 3, 7 bytes before its own headers say"),
        GuestMemory.open([Zone("ram", 64 * MIB)], [RamRange(0, 64 * MIB)]) as memory,
        short_file(b"abc") as file,
    ):
        memory.write_from_file(0, 10, file, 0)

    check_nothing_left(before)


@contextmanager
def short_file(data: bytes) -> Iterator[io.FileIO]:
    fd = os.memfd_create("short")
    os.write(fd, data)
    with io.FileIO(fd, "r") as file:
        yield file


class Fault:
    """Lets one call to KVM fail: the n-th."""

    def __init__(self, call: int) -> None:
        self._left = call
        self.operation: str | None = None

    def check(self, operation: str, result: int, *, path: str | None = None) -> int:
        """Stand in for the check of a call's result."""
        self._left -= operation in MADE_DESCRIPTORS or operation.startswith("KVM_")
        if self._left != -1 or self.operation is not None:
            return check.check(operation, result, path=path)
        if operation in MADE_DESCRIPTORS:
            os.close(result)
        self.operation = operation
        raise HostError(operation, errno.EIO, hint="injected")

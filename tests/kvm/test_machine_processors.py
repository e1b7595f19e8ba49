"""What the processors' options make of a VM's processors, as its guest and its host see them."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest

from tests.kvm.guests.image import write_kernel
from tests.kvm.guests.machines import configure, running
from tests.kvm.guests.programs import HALT, tell
from vmm.errors import ConfigError
from vmm.kvm_cffi import Kvm
from vmm.kvm_cffi.constants import KVM_CAP_HYPERV_SYNIC
from vmm.testing.process import threads_of

pytestmark = [pytest.mark.kvm, pytest.mark.usefixtures("kvm")]

SYNIC_CONTROL = 0x4000_0080
REFERENCE_COUNTER = 0x4000_0020


async def told_by(place: Path, source: str, words: int, **cpus: object) -> tuple[int, ...]:
    """Run a guest on processors with these options and give the words that it tells."""
    given = {"boot_vcpus": 1, "max_vcpus": 1, **cpus}
    config = configure(write_kernel(place, source + HALT), cpus=given)
    async with running(config) as vm:
        return struct.unpack(f"<{words}I", await vm.debug.wait_for_bytes(4 * words))


async def test_width_of_addresses_is_at_most_the_one_asked_for(tmp_path: Path) -> None:
    source = "mov $0x80000008, %eax; cpuid; and $0xff, %eax;" + tell()

    assert await told_by(tmp_path, source, 1, max_phys_bits=36) == (36,)


@pytest.fixture
def _hyperv(kvm: Kvm) -> None:
    if not kvm.check_extension(KVM_CAP_HYPERV_SYNIC):
        pytest.skip("this host's KVM has no Hyper-V interface (KVM_CAP_HYPERV_SYNIC)")


@pytest.mark.usefixtures("_hyperv")
async def test_guest_with_hyperv_finds_it_and_may_use_its_registers(tmp_path: Path) -> None:
    find = "mov $0x40000001, %eax; cpuid;" + tell()
    control = f"mov ${SYNIC_CONTROL}, %ecx; mov $1, %eax; xor %edx, %edx; wrmsr; rdmsr;" + tell()
    counter = f"mov ${REFERENCE_COUNTER}, %ecx; rdmsr; mov %edx, %eax;" + tell()

    told = await told_by(tmp_path, find + control + counter, 3, kvm_hyperv=True)

    assert struct.pack("<I", told[0]) == b"Hv#1"
    assert told[1:] == (1, 0)


async def test_hyperv_on_a_host_without_it_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_extension = Kvm.check_extension

    def check_all_but_hyperv(kvm: Kvm, cap: int) -> int:
        return 0 if cap == KVM_CAP_HYPERV_SYNIC else check_extension(kvm, cap)

    monkeypatch.setattr(Kvm, "check_extension", check_all_but_hyperv)

    with pytest.raises(ConfigError, match=r"kvm_hyperv=on.*leave it out"):
        await told_by(tmp_path, tell(), 1, kvm_hyperv=True)


async def test_guest_without_hyperv_finds_kvm(tmp_path: Path) -> None:
    source = "mov $0x40000000, %eax; cpuid; mov %ebx, %eax;" + tell()

    (signature,) = await told_by(tmp_path, source, 1)

    assert struct.pack("<I", signature) == b"KVMK"


async def test_vcpus_run_on_the_host_cpus_of_their_affinity(tmp_path: Path) -> None:
    allowed = sorted(os.sched_getaffinity(0))
    affinity = [{"vcpu": 1, "host_cpus": [allowed[-1]]}]
    cpus = {"boot_vcpus": 2, "max_vcpus": 2, "affinity": affinity}
    config = configure(write_kernel(tmp_path, HALT), cpus=cpus)

    async with running(config) as vm:
        await vm.machine.pause()  # A thread has its name once it stands.
        found = host_cpus_by_thread()

    assert found["vcpu0"] == set(allowed)
    assert found["vcpu1"] == {allowed[-1]}


def host_cpus_by_thread() -> dict[str, set[int]]:
    """The host CPUs that each vCPU's thread of this process may run on; they are there."""
    names = threads_of(os.getpid())
    return {
        name: os.sched_getaffinity(tid) for tid, name in names.items() if name.startswith("vcpu")
    }

"""What a guest does that runs VMs itself is part of a vCPU: saved, and set in another one.

It needs a processor of AMD's that has nested SVM, such as the nested host's (``python -m
tools.nested_host run -- .venv/bin/python -m pytest tests/kvm/test_nested_state.py``). There is no
assembler there, so the guest is bytes.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.kvm.bare import CODE, Driver, enter_protected_mode
from vmm.boot.cpuid import AMD_ECX_SVM
from vmm.boot.cpuid_table import CpuidTable
from vmm.errors import ConfigError
from vmm.kvm_cffi import (
    ExitRouter,
    Kvm,
    Loop,
    ThreadState,
    Vcpu,
    VcpuThread,
    address_of,
    constants,
)
from vmm.machine.saved import SavedVcpu
from vmm.machine.vcpu_state import load_vcpu, save_vcpu

pytestmark = pytest.mark.kvm

EFER = 0xC000_0080
GLOBAL_INTERRUPTS = 1 << 8
"""A flag of the state of a guest on AMD: they are on unless it has said CLGI."""

ASK = 0x100
BE_A_HOST = bytes.fromhex(
    "b9800000c0 0f32"  # mov $EFER, %ecx; rdmsr
    "0d00100000 0f30"  # or $SVME, %eax; wrmsr
    "0f01dd"  # clgi
    "ba00010000 ec"  # mov $ASK, %edx; in %dx, %al
    "ebfe"
)


@pytest.fixture
def kvm(kvm: Kvm) -> Kvm:
    """One that lets guests of AMD's run VMs."""
    may_nest = CpuidTable(kvm.get_supported_cpuid()).get(0x8000_0001).ecx & AMD_ECX_SVM
    if not (may_nest and kvm.check_extension(constants.KVM_CAP_NESTED_STATE)):
        pytest.skip("this host's KVM has no nested SVM")
    return kvm


@pytest.fixture
def vcpus(kvm: Kvm) -> Iterator[tuple[Vcpu, Vcpu]]:
    """The vCPUs of two machines, of which the first is to run the guest."""
    with ExitStack() as stack:
        made = []
        for _ in range(2):
            vm = stack.enter_context(kvm.create_vm())
            vm.enable_cap(constants.KVM_CAP_SPLIT_IRQCHIP, 24)
            memory = stack.enter_context(mmap.mmap(-1, 1 << 20))
            memory[CODE : CODE + len(BE_A_HOST)] = BE_A_HOST
            vm.set_user_memory_region(0, 0, len(memory), address_of(memory))
            made.append(stack.enter_context(vm.create_vcpu(0)))
        made[0].set_cpuid2(kvm.get_supported_cpuid())
        enter_protected_mode(made[0])
        yield made[0], made[1]


async def saved_host(vcpu: Vcpu) -> SavedVcpu:
    """A vCPU whose guest has turned virtualisation on and interrupts off, by CLGI."""
    router = ExitRouter()
    router.map_pio(ASK, 1, Loop())
    with VcpuThread(vcpu, router, name="host") as thread:
        thread.start()
        await Driver(thread).asked()
        thread.request_pause()
        await Driver(thread).reach(ThreadState.PAUSED)
        return save_vcpu(vcpu, [EFER])


def flags_of(nested: bytes) -> int:
    return int.from_bytes(nested[:2], "little")


async def test_guest_that_is_a_host_stays_one_in_another_vcpu(vcpus: tuple[Vcpu, Vcpu]) -> None:
    first, vcpu = vcpus
    saved = await saved_host(first)
    assert not flags_of(saved.nested) & GLOBAL_INTERRUPTS
    assert flags_of(vcpu.get_nested_state()) & GLOBAL_INTERRUPTS

    load_vcpu(vcpu, saved, 0)

    assert vcpu.get_nested_state() == saved.nested


@pytest.mark.parametrize("nested", [bytes(127), bytes(1 << 20)])
async def test_state_that_is_not_whole_is_refused(vcpus: tuple[Vcpu, Vcpu], nested: bytes) -> None:
    saved = (await saved_host(vcpus[0])).model_copy(update={"nested": nested})

    with pytest.raises(ConfigError, match=f"has {len(nested)} bytes, and KVM takes 128 to"):
        load_vcpu(vcpus[1], saved, 0)

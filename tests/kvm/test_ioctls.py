"""Every ioctl wrapper against the real KVM, and what its errors say."""

from __future__ import annotations

import dataclasses
import errno
import mmap
from collections.abc import Iterator

import pytest

from tests.kvm.bare import ASK, Machines
from vmm.errors import HostError, InternalError
from vmm.kvm_cffi import (
    ClockData,
    CpuidEntry,
    Kvm,
    MsiRoute,
    MsrEntry,
    Regs,
    Vcpu,
    Vm,
    address_of,
    constants,
)
from vmm.kvm_cffi.bench import raw_exit_loop

pytestmark = pytest.mark.kvm

MSR_TSC_AUX = 0xC000_0103
MSR_SYSENTER_CS = 0x174
MSR_NONSENSE = 0x0BAD_0BAD


@pytest.fixture
def vm(kvm: Kvm) -> Iterator[Vm]:
    with kvm.create_vm() as made:
        made.enable_cap(constants.KVM_CAP_SPLIT_IRQCHIP, 24)
        yield made


@pytest.fixture
def vcpu(vm: Vm) -> Iterator[Vcpu]:
    with vm.create_vcpu(0) as made:
        yield made


def test_system_facts_are_those_of_a_working_kvm(kvm: Kvm) -> None:
    assert kvm.get_api_version() == 12
    assert kvm.check_extension(constants.KVM_CAP_SPLIT_IRQCHIP) > 0
    assert kvm.check_extension(99999) == 0
    assert kvm.get_vcpu_mmap_size() >= mmap.PAGESIZE
    assert MSR_SYSENTER_CS in kvm.get_msr_index_list()
    leaves = {entry.function for entry in kvm.get_supported_cpuid()}
    assert {0, 1, 0x4000_0000, 0x8000_0000} <= leaves


def test_feature_msrs_can_be_read(kvm: Kvm) -> None:
    indices = kvm.get_msr_feature_index_list()

    assert [entry.index for entry in kvm.get_msrs(indices)] == indices


def test_registers_come_back_as_set(vcpu: Vcpu) -> None:
    regs = Regs(*range(0x1000, 0x1011))
    sregs = vcpu.get_sregs()
    sregs.cs = sregs.cs._replace(base=0x12340, selector=0x1234)
    sregs.gdt = sregs.gdt._replace(base=0x500, limit=31)
    fpu = vcpu.get_fpu()
    fpu = dataclasses.replace(fpu, fcw=0x27F, xmm=bytes(range(256)))

    vcpu.set_regs(regs)
    vcpu.set_sregs(sregs)
    vcpu.set_fpu(fpu)

    assert vcpu.get_regs() == regs
    assert vcpu.get_sregs() == sregs
    assert vcpu.get_fpu() == fpu


def test_opaque_state_comes_back_as_set(vcpu: Vcpu) -> None:
    for get, set_ in (
        (vcpu.get_lapic, vcpu.set_lapic),
        (vcpu.get_vcpu_events, vcpu.set_vcpu_events),
        (vcpu.get_debugregs, vcpu.set_debugregs),
        (vcpu.get_xsave, vcpu.set_xsave),
    ):
        state = get()
        set_(state)
        assert get() == state


def test_opaque_state_of_the_wrong_length_is_refused(vcpu: Vcpu) -> None:
    with pytest.raises(InternalError, match="1024 bytes"):
        vcpu.set_lapic(bytes(1000))


def test_xcrs_and_mp_state_come_back_as_set(vcpu: Vcpu) -> None:
    vcpu.set_xcrs(vcpu.get_xcrs())
    vcpu.set_mp_state(constants.KVM_MP_STATE_HALTED)

    assert vcpu.get_xcrs()[0] & 1
    assert vcpu.get_mp_state() == constants.KVM_MP_STATE_HALTED
    assert vcpu.get_tsc_khz() > 0


def test_cpuid_comes_back_as_set(kvm: Kvm, vcpu: Vcpu) -> None:
    entries = [*kvm.get_supported_cpuid(), CpuidEntry(0x4000_0100, 0, 0, 1, 2, 3, 4)]

    vcpu.set_cpuid2(entries)
    found = vcpu.get_cpuid2()

    # KVM itself rewrites some feature leaves, so only this program's own leaf is compared whole.
    assert [(e.function, e.index) for e in found] == [(e.function, e.index) for e in entries]
    assert entries[-1] in found


def test_msrs_come_back_as_set_also_in_several_calls(vcpu: Vcpu) -> None:
    entries = [MsrEntry(MSR_SYSENTER_CS, value) for value in range(300)]

    vcpu.set_msrs(entries)

    assert vcpu.get_msrs([MSR_SYSENTER_CS] * 300) == [MsrEntry(MSR_SYSENTER_CS, 299)] * 300


def test_msr_unknown_is_named(vcpu: Vcpu) -> None:
    with pytest.raises(HostError, match=r"KVM_SET_MSRS.*MSR 0xbad0bad \(value 0x7\)"):
        vcpu.set_msrs([MsrEntry(MSR_SYSENTER_CS, 0), MsrEntry(MSR_NONSENSE, 7)])
    with pytest.raises(HostError, match=r"KVM_GET_MSRS.*MSR 0xbad0bad"):
        vcpu.get_msrs([MSR_NONSENSE])


def test_clock_can_be_set_forward(vm: Vm, vcpu: Vcpu) -> None:
    vm.set_clock(ClockData(10**15))

    assert vm.get_clock().clock >= 10**15
    assert vcpu.index == 0


def test_address_ioctls_are_accepted(vm: Vm) -> None:
    vm.set_identity_map_addr(0xF800_3000)
    vm.set_tss_addr(0xF800_0000)
    vm.set_gsi_routing([MsiRoute(gsi, 0xFEE0_0000, gsi) for gsi in range(100)])


def test_dirty_log_cleared_by_hand_is_protected_again(vm: Vm) -> None:
    vm.enable_cap(constants.KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, 3)
    size = 64 * mmap.PAGESIZE
    with mmap.mmap(-1, size) as memory:
        vm.set_user_memory_region(0, 0, size, address_of(memory), log_dirty=True)
        before = vm.get_dirty_log(0, size)

        vm.clear_dirty_log(0, 0, 64, before)

        assert before == b"\xff" * 8
        assert vm.get_dirty_log(0, size) == bytes(8)
        vm.set_user_memory_region(0, 0, 0, 0)


def test_device_absent_says_which_module_to_load() -> None:
    with pytest.raises(HostError, match="kvm_intel or kvm_amd") as caught:
        Kvm.open("/dev/no-such-kvm")

    assert caught.value.errno == errno.ENOENT
    assert caught.value.path == "/dev/no-such-kvm"


def test_device_that_is_not_kvm_is_refused_and_closed() -> None:
    with pytest.raises(HostError, match="KVM_GET_API_VERSION"):
        Kvm.open("/dev/null")


def test_vcpu_index_taken_is_an_error_with_the_ioctl_name(vm: Vm, vcpu: Vcpu) -> None:
    with pytest.raises(HostError, match="KVM_CREATE_VCPU") as caught:
        vm.create_vcpu(vcpu.index)

    assert caught.value.errno == errno.EEXIST


def test_memory_slots_that_overlap_are_refused(vm: Vm) -> None:
    with mmap.mmap(-1, mmap.PAGESIZE) as memory:
        vm.set_user_memory_region(0, 0, mmap.PAGESIZE, address_of(memory))

        with pytest.raises(HostError, match="KVM_SET_USER_MEMORY_REGION"):
            vm.set_user_memory_region(1, 0, mmap.PAGESIZE, address_of(memory))
        vm.set_user_memory_region(0, 0, 0, 0)


def test_closed_descriptors_give_host_errors_not_crashes(kvm: Kvm) -> None:
    vm = kvm.create_vm()
    vcpu = vm.create_vcpu(0)
    vcpu.close()
    vcpu.close()
    vm.close()

    with pytest.raises(HostError, match="KVM_GET_REGS"):
        vcpu.get_regs()
    with pytest.raises(HostError, match="KVM_SIGNAL_MSI"):
        vm.signal_msi(0xFEE0_0000, 0x41)


def test_raw_exit_loop_counts_exits(machines: Machines) -> None:
    machine = machines.make(f"mov ${ASK}, %dx; 1: out %al, %dx; jmp 1b")

    assert raw_exit_loop(machine.vcpus[0], 100) > 0


def test_raw_exit_loop_with_a_faulting_guest_is_an_error(machines: Machines) -> None:
    machine = machines.make("lidt empty; ud2; empty: .word 0; .long 0")

    with pytest.raises(HostError, match="KVM_RUN"):
        raw_exit_loop(machine.vcpus[0], 1)

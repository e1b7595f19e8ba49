"""Registers in the run area: read and replaced at an exit without an ioctl (KVM_CAP_SYNC_REGS)."""

from __future__ import annotations

import pytest

from tests.kvm.bare import ASK, FLAT_CODE, Machines
from vmm.kvm_cffi import ExitKind, SyncRegs, ThreadState

pytestmark = pytest.mark.kvm

ASK_WITH_ECX = f"mov $0x11, %ecx; 1: mov %ecx, %eax; mov ${ASK}, %dx; out %al, %dx; jmp 1b"


async def test_registers_asked_for_are_there_at_each_exit(machines: Machines) -> None:
    machine = machines.make(ASK_WITH_ECX)
    vcpu = machine.vcpus[0]
    vcpu.sync_regs(SyncRegs.REGS | SyncRegs.SREGS)

    await machine.start().next_exit()

    assert (vcpu.get_synced_regs().rcx, vcpu.get_synced_regs().rdx) == (0x11, ASK)
    assert vcpu.get_synced_sregs().cs.selector == FLAT_CODE.selector


async def test_registers_of_a_paused_vcpu_are_those_of_the_ioctl(machines: Machines) -> None:
    machine = machines.make(f"mov $0x22, %ecx; mov ${ASK}, %dx; out %al, %dx; 1: jmp 1b")
    vcpu = machine.vcpus[0]
    vcpu.sync_regs(SyncRegs.REGS)
    driver = machine.start()
    await driver.asked()

    machine.threads[0].request_pause()
    await driver.reach(ThreadState.PAUSED)

    assert vcpu.get_synced_regs() == vcpu.get_regs()
    assert vcpu.get_synced_regs().rcx == 0x22


async def test_registers_replaced_at_an_exit_are_the_guests_from_there_on(
    machines: Machines,
) -> None:
    machine = machines.make(ASK_WITH_ECX)
    vcpu = machine.vcpus[0]
    vcpu.sync_regs(SyncRegs.REGS)
    driver = machine.start()
    first = await driver.next_exit()
    regs = vcpu.get_synced_regs()
    regs.rcx = 0x33

    vcpu.set_synced_regs(regs)
    machine.threads[0].answer(0)
    second = await driver.next_exit()

    assert (first.value, second.value) == (0x11, 0x33)


async def test_registers_that_kvm_does_not_know_fail_the_run(machines: Machines) -> None:
    machine = machines.make(ASK_WITH_ECX)
    machine.vcpus[0].sync_regs(SyncRegs(1 << 40))

    exit_ = await machine.start().next_exit()

    assert exit_.kind is ExitKind.RUN_ERROR

"""vCPUs that come and go in real VMs, whose guest reads and writes the registers itself."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
import trio.lowlevel

from tests.kvm.guests import programs
from tests.kvm.guests.hotplug import CPUS, PHYS_BITS
from tests.kvm.guests.image import write_kernel
from tests.kvm.guests.leaks import check_nothing_left, holdings
from tests.kvm.guests.machines import Running, configure, owned, running
from vmm.acpi.cpu_hotplug import MOST, Status
from vmm.boot import layout
from vmm.config.requests import VmResize
from vmm.errors import ConfigError, NotCreatedError, PendingError
from vmm.kvm_cffi import VcpuThread, constants
from vmm.machine.chipset import CPU_HOTPLUG_PAGE
from vmm.machine.commands import Boot, Create, Pause, Reboot, Resize, Resume
from vmm.page import PAGE

pytestmark = [pytest.mark.kvm, pytest.mark.usefixtures("kvm")]

AP_PAGE = 0x8000
REGISTERS = (1 << PHYS_BITS) - layout.UNUSED_TOP - (CPU_HOTPLUG_PAGE + 1) * PAGE
SELECT = programs.WINDOW + REGISTERS % (2 << 20)
STATUS = SELECT + 4
COMMAND = programs.WINDOW + 0x300
"""The LAPIC's interrupt command register, once its page is in the window."""

TWO = {**CPUS, "max_vcpus": 2}

SERVING = f"""
    {programs.copy_code("second", "end", AP_PAGE)}
    movl $0x1ff, 0xfee000f0
    again: {programs.map_window(REGISTERS)}
    movl $1, {SELECT:#x}
    {programs.say("r")}
    poll:
    movb {STATUS:#x}, %al
    test ${Status.INSERTING:d}, %al
    jnz come
    test ${Status.REMOVING:d}, %al
    jz poll
    movb ${Status.REMOVING:d}, {STATUS:#x}
    movb ${Status.EJECT:d}, {STATUS:#x}
    {programs.say("gone")}
    jmp poll
    come:
    movb ${Status.INSERTING:d}, {STATUS:#x}
    {programs.map_window(layout.LAPIC)}
    movl $0x01000000, {COMMAND + 0x10:#x}
    movl $0x00004500, {COMMAND:#x}
    movl $0x01000000, {COMMAND + 0x10:#x}
    movl ${0x4600 | AP_PAGE >> 12:#x}, {COMMAND:#x}
    jmp again
    second:
    .code16
    mov $'2', %al
    out %al, $0xe9
    9: hlt
    jmp 9b
    .code32
    end:
"""
"""Starts the second vCPU when it comes, which says "2", and gives it back when it is wanted."""


def vcpus() -> set[str]:
    """The threads of vCPUs that this process has; one has its name by the time it can pause."""
    names = {thread.partition(" ")[2] for thread in holdings().threads}
    return {name for name in names if name.startswith("vcpu")}


async def come_and_go(vm: Running, after: int) -> int:
    """Plug the second vCPU in, let it speak, and take it away; the position behind its end."""
    await vm.machine.resize_vcpus(2)
    spoken = await vm.debug.wait_for(b"2", after=after)
    await vm.machine.resize_vcpus(1)
    return await vm.debug.wait_for(b"gone", after=spoken)


async def test_vcpu_that_comes_runs_and_is_started_anew_when_it_comes_again(
    tmp_path: Path,
) -> None:
    async with running(configure(write_kernel(tmp_path, SERVING), cpus=TWO)) as vm:
        at = await come_and_go(vm, await vm.debug.wait_for(b"r"))
        # KVM keeps a vCPU's descriptor for as long as there is the VM.
        before = holdings()
        for _ in range(50):
            at = await come_and_go(vm, at)

        check_nothing_left(before)


async def test_vcpu_that_comes_again_has_nothing_of_a_debuggers(tmp_path: Path) -> None:
    async with running(configure(write_kernel(tmp_path, SERVING), cpus=TWO)) as vm:
        at = await come_and_go(vm, await vm.debug.wait_for(b"r"))
        while "vcpu1" in vcpus():
            await trio.lowlevel.checkpoint()
        control = constants.KVM_GUESTDBG_ENABLE | constants.KVM_GUESTDBG_USE_HW_BP
        at_once = (AP_PAGE, 0, 0, 0, 0, 0, 0, 0x402)
        vm.machine._vcpus.vcpu(1).set_guest_debug(control, at_once)

        await come_and_go(vm, at)


async def test_vcpu_that_comes_while_the_vm_is_paused_runs_when_it_runs_on(tmp_path: Path) -> None:
    async with running(configure(write_kernel(tmp_path, SERVING), cpus=TWO)) as vm:
        ready = await vm.debug.wait_for(b"r")
        await vm.machine.pause()
        await vm.machine.resize_vcpus(2)
        assert len(vm.debug.output) == ready

        await vm.machine.resume()

        await vm.debug.wait_for(b"2", after=ready)
        await vm.machine.pause()
        await vm.machine.resume()


async def test_resize_waits_for_what_the_guest_has_not_given_back(tmp_path: Path) -> None:
    cpus = {"boot_vcpus": 2, "max_vcpus": 4}
    async with owned(configure(write_kernel(tmp_path, programs.HALT), cpus=cpus)) as held:
        await held.do(Resize(VmResize(desired_vcpus=1)))
        with pytest.raises(PendingError, match=r"\[1\]"):
            await held.do(Resize(VmResize(desired_vcpus=3)))

        assert held.owner.info().config.cpus.boot_vcpus == 1
        await held.do(Reboot(), Resize(VmResize(desired_vcpus=3)))

        assert held.owner.info().config.cpus.boot_vcpus == 3
        assert held.events.names.count("resizing") == 3
        assert held.events.names.count("resized") == 2


@pytest.mark.parametrize("is_running", [False, True], ids=["created", "running"])
async def test_more_vcpus_than_there_may_be_are_refused_and_change_nothing(
    is_running: bool, tmp_path: Path
) -> None:
    sizes = VmResize(desired_vcpus=3)
    config = configure(write_kernel(tmp_path, programs.HALT), cpus=TWO)
    async with owned(config if is_running else None) as held:
        if not is_running:
            with pytest.raises(NotCreatedError):
                await held.do(Resize(sizes))
            await held.do(Create(config))

        with pytest.raises(ConfigError, match="max_vcpus"):
            await held.do(Resize(sizes))

        assert held.owner.info().config.cpus.boot_vcpus == 1


async def test_vcpus_of_a_created_vm_are_there_at_its_boot(tmp_path: Path) -> None:
    async with owned() as held:
        await held.do(Create(configure(write_kernel(tmp_path, programs.HALT), cpus=TWO)))

        await held.do(Resize(VmResize(desired_vcpus=2)), Boot(), Resize(VmResize()))

        await held.do(Pause())
        assert vcpus() == {"vcpu0", "vcpu1"}
        await held.do(Resume())


async def test_vcpus_that_cannot_all_be_started_do_not_come(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = VcpuThread.start

    def fail_for_the_third(thread: VcpuThread) -> None:
        if thread._vcpu.index == 3:
            raise ConfigError("No third one")
        start(thread)

    cpus = {"boot_vcpus": 1, "max_vcpus": 4}
    async with running(configure(write_kernel(tmp_path, programs.HALT), cpus=cpus)) as vm:
        with monkeypatch.context() as broken:
            broken.setattr(VcpuThread, "start", fail_for_the_third)
            with pytest.raises(ConfigError, match="third"):
                await vm.machine.resize_vcpus(4)

        await vm.machine.pause()
        assert vcpus() == {"vcpu0"}
        await vm.machine.resume()
        await vm.machine.resize_vcpus(4)
        await vm.machine.pause()
        assert len(vcpus()) == 4


async def test_vcpus_of_a_vm_that_may_have_too_many_stay(tmp_path: Path) -> None:
    cpus = {"boot_vcpus": 1, "max_vcpus": MOST + 1}
    async with running(configure(write_kernel(tmp_path, programs.HALT), cpus=cpus)) as vm:
        await vm.machine.resize_vcpus(1)

        with pytest.raises(ConfigError, match=str(MOST)):
            await vm.machine.resize_vcpus(2)

"""A VM while it runs, as its owner drives it; ``open_machine`` builds it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import AbstractContextManager, ExitStack
from typing import TYPE_CHECKING

import trio

from vmm.acpi.ged import AcpiNotification
from vmm.acpi.machine import Iommu as IommuPlaces
from vmm.errors import HostError, InternalError, StateError
from vmm.kvm_cffi import (
    ExitKind,
    Kvm,
    constants,
)
from vmm.machine import firmware
from vmm.machine.clock import Clock
from vmm.machine.devices import Devices
from vmm.machine.hotplug import Hotplug
from vmm.machine.iommu import ranges_behind
from vmm.machine.memory import GuestMemory
from vmm.machine.plug import Wiring
from vmm.machine.ram_hotplug import RamHotplug
from vmm.machine.sections import Board
from vmm.machine.vcpus import Vcpus

if TYPE_CHECKING:
    from vmm.config.pci import PciSlot
    from vmm.config.vm import VmConfig
    from vmm.gdb.debuggee import Debuggee
    from vmm.kvm_cffi import Exit, Vm
    from vmm.kvm_cffi.pager import Pager
    from vmm.machine.chipset import Chipset
    from vmm.machine.dirty import DirtyLog
    from vmm.machine.hotplug import Added
    from vmm.machine.processors import Processors
    from vmm.snapshot.state import MachineState, SavedDevice
    from vmm.virtio.iommu import Iommu

logger = logging.getLogger(__name__)

PAGE_S = 1.0
"""How long the vCPUs of a machine that ends may still wait for pages of RAM."""


class VirtualMachine:
    """A running VM, as its owner drives it."""

    def __init__(
        self,
        kvm: Kvm,
        vm: Vm,
        cpus: Processors,
        memory: GuestMemory,
        chipset: Chipset,
        board: Board,
        vcpus: Vcpus,
    ) -> None:
        self._kvm = kvm
        self._vm = vm
        self.cpus = cpus
        self.memory = memory
        self.memory_map = board.memory_map
        self._chipset = chipset
        self._lifecycle = board.lifecycle
        self._disk_pool = board.disk_pool
        self._lacks_locks = False
        self._devices = Devices(Wiring(vm, chipset.interrupts, chipset.buses, board), self._fail)
        self._hotplug = Hotplug(
            self._devices, chipset.pci_hotplug, board.events, board.iommu_segments
        )
        self._vcpus = vcpus
        self.ram_hotplug: RamHotplug | None = None
        """Room for more RAM, if the configuration has any."""
        self.debuggee: Debuggee | None = None
        """What a debugger has of it, if there may be one."""
        self._clock = Clock(vm)
        self._saved: Mapping[str, SavedDevice] | None = None
        self._fill_ended = trio.Event()
        self._fill_errno: int | None = None
        self._failed = trio.Event()
        self._failure: Exception | None = None

    @property
    def memory_actual_size(self) -> int:
        """The RAM that the guest has now, in bytes."""
        return max(0, self.memory.size + self._devices.ram_bytes)

    async def dump_core(self, path: str, *, is_running: bool) -> None:
        """Write a core file; a machine that runs stands still meanwhile. Raises: HostError."""
        from vmm.snapshot.coredump import write_core  # Only now: most VMs never are.

        if not is_running:
            await write_core(path, self.memory, self._vcpus.registers())
            return
        await self.pause()
        try:
            await write_core(path, self.memory, self._vcpus.registers())
        finally:
            # Bounded: it wakes threads and tasks, and waits for none.
            with trio.CancelScope(shield=True):
                await self.resume()

    def watch_ram(self) -> AbstractContextManager[DirtyLog]:
        """Know which pages of RAM change, until the scope is left. Raises: HostError."""
        from vmm.machine.dirty import DirtyLog  # Only now: most VMs never move.

        return DirtyLog.open(self._vm, self.memory, self.memory_map)

    @property
    def ram_size(self) -> int:
        """The RAM it has, in bytes, whatever a balloon holds of it."""
        return self.memory.size

    async def grow_ram(self, size: int) -> None:
        """Plug in more RAM, in bytes; nothing comes where the configuration has no room for it.

        Raises: ConfigError (caller), HostError.
        """
        if self.ram_hotplug is not None:
            await self.ram_hotplug.grow(size)

    def check_payload(self, config: VmConfig) -> None:
        """Refuse a configuration with less RAM than its kernel needs.

        Raises: ConfigError (caller), HostError when the kernel cannot be read.
        """
        firmware.check(config)

    def resize_zone(self, zone: str, size: int) -> None:
        """Ask the guest to have so many bytes of a zone beyond those of the boot.

        Raises: ConfigError (caller).
        """
        self._devices.mem(zone).resize(size)

    def resize_balloon(self, size: int) -> None:
        """Ask the guest for so many bytes in all. Raises: ConfigError (caller)."""
        self._devices.balloon().resize(size)

    @property
    def device_tree(self) -> dict[str, dict[str, object]]:
        """The devices by name, as vm.info shows them."""
        return self._chipset.device_tree | self._devices.tree

    def described_in(self, config: VmConfig) -> VmConfig:
        """The configuration with what was left open in it and has been chosen."""
        return self._devices.described_in(config)

    @property
    def counters(self) -> dict[str, dict[str, int]]:
        """The devices that count, and what."""
        return self._devices.counters

    async def pause(self) -> None:
        """Stop the vCPUs, the devices that serve them, and the guest's clock.

        Raises: HostError when the clock cannot be read. Cancel, and then: all runs on as before.
        """
        with ExitStack() as undo:
            undo.callback(self._vcpus.resume)
            await self._vcpus.pause()
            if self.debuggee is not None:
                undo.callback(self.debuggee.cover)
                self.debuggee.uncover()
            self._clock.stop()
            undo.callback(self._clock.start)
            undo.callback(self._devices.wake)
            await self._devices.sleep()
            undo.pop_all()

    async def resume(self) -> None:
        """Let the devices and the vCPUs run on, with the clock where it stood.

        Raises: HostError when a disk that was given away is another's now; it stands then.
        """
        self.take_locks()
        self._clock.start()
        self._devices.wake()
        if self.debuggee is not None:
            self.debuggee.cover()
        self._vcpus.resume()

    def rest(self) -> None:
        """Have the vCPUs stand for a moment, and nothing else: see ``Vcpus.rest``."""
        self._vcpus.rest()

    def go_on(self) -> None:
        """Let vCPUs that rest run on."""
        self._vcpus.go_on()

    def release_locks(self) -> None:
        """Let another VMM have the disks of a machine that stands; ``resume`` takes them back."""
        for lock in self._disk_pool().locks:
            lock.release()
        self._lacks_locks = True

    def take_locks(self) -> None:
        """Have the disks again. Raises: HostError when another has them."""
        if self._lacks_locks:
            for lock in self._disk_pool().locks:
                lock.take()
            self._lacks_locks = False

    def save(self) -> MachineState:
        """Read all but the content of RAM; the machine must be paused.

        Raises: StateError while the guest is to give a device back, HostError.
        """
        from vmm.machine.saving import save_machine  # Only now: most VMs never are.

        if self.memory.pager is not None:
            raise StateError(
                "VM on-demand memory restore is still in progress: "
                f"{self.missing_bytes >> 20} MiB are to be read; wait"
            )
        if self._hotplug.wanted_back:
            raise StateError(
                f"The guest has not given back {', '.join(self._hotplug.wanted_back)} yet, which "
                "is no longer in the configuration; resume it and wait until it has"
            )
        vcpus = self._vcpus.save(self._kvm.get_msr_index_list())
        memory, chipset, devices = self.memory, self._chipset, self._devices
        return save_machine(self.cpus, vcpus, self._clock, memory, chipset, devices)

    async def snapshot(self, folder: str, config: VmConfig) -> None:
        """Write the paused machine to a directory, whole or not at all.

        Raises: StateError, HostError when the directory cannot take it.
        """
        from vmm.snapshot.save import write_snapshot  # Only now: most VMs never are.

        await write_snapshot(folder, config, self.save(), self.memory)

    def load(self, state: MachineState) -> None:
        """Take over what was saved; the vCPUs have it already. It stands until ``resume``.

        Raises: ConfigError when it is not this machine's (caller), HostError.
        """
        from vmm.machine.board_state import load_board  # Only now: most VMs are booted.

        load_board(self._chipset, state.board)
        self._clock.load(state.clock)
        self._saved = state.devices

    async def add_device(self, section: str, entry: PciSlot) -> Added:
        """Add a device of a section of the configuration: see ``Hotplug.add``."""
        return await self._hotplug.add(section, entry)

    def remove_device(self, id: str) -> str:
        """Ask the guest for a device, and give its id: see ``Hotplug.remove``."""
        return self._hotplug.remove(id)

    def resize_disk(self, name: str, size: int) -> None:
        """Give a disk another size in bytes.

        Raises: NotFoundError, ConfigError (caller), HostError.
        """
        self._devices.disk(name).resize(size)

    def press_power_button(self) -> None:
        """Tell the guest that its power button was pressed."""
        self._chipset.ged.notify(AcpiNotification.POWER_BUTTON)

    def inject_nmi(self) -> None:
        """Send a non-maskable interrupt to every vCPU."""
        self._vcpus.inject_nmi()

    def end_of_interrupt(self, vector: int) -> None:
        """A level-triggered interrupt's end was signalled."""
        self._chipset.ioapic.end_of_interrupt(vector)

    def lifecycle_exit(self, vcpu: int, exit_: Exit) -> None:
        """A vCPU has stopped for good: reset, power off, or fail as the reason says."""
        match exit_.kind:
            case ExitKind.SHUTDOWN:
                logger.warning("vCPU %d met a triple fault; the VM is reset", vcpu)
                self._lifecycle.request_reset()
            case ExitKind.SYSTEM_EVENT if exit_.value == constants.KVM_SYSTEM_EVENT_SHUTDOWN:
                self._lifecycle.request_shutdown()
            case ExitKind.SYSTEM_EVENT if exit_.value == constants.KVM_SYSTEM_EVENT_RESET:
                self._lifecycle.request_reset()
            case ExitKind.DEBUG if self.debuggee is not None:
                self.debuggee.hear(vcpu, exit_)
            case ExitKind.RUN_ERROR:
                self._fail(HostError(f"KVM_RUN on vCPU {vcpu}", exit_.value))
            case _:
                reason = f"{exit_.kind.name} {exit_.value:#x} {[hex(word) for word in exit_.data]}"
                self._fail(InternalError(f"vCPU {vcpu} cannot go on: {reason}"))

    def _fail(self, failure: Exception) -> None:
        self._failure = self._failure or failure
        self._failed.set()

    async def run_devices(
        self, config: VmConfig, scope: trio.CancelScope, *, task_status: trio.TaskStatus[None]
    ) -> None:
        """Run the chipset's tasks and the devices of a configuration until ``scope`` is cancelled.

        Raises: ConfigError (caller), HostError.
        """
        with scope:
            async with trio.open_nursery() as nursery:
                for task in self._chipset.tasks:
                    await nursery.start(task.run)
                async with self._devices.running(config, nursery, self._saved):
                    task_status.started()
                    # Whoever was cancelled while this started never learns that it did.
                    await trio.lowlevel.checkpoint_if_cancelled()
                    scope.shield = True
                    await trio.sleep_forever()

    def iommu_places(self, config: VmConfig, iommu: Iommu) -> IommuPlaces:
        """Where the IOMMU is, and what is behind it."""
        _, held = self._devices.find(iommu.id)
        return IommuPlaces(held.plugged.bdf, ranges_behind(config, iommu))

    async def run_vcpus(self, nursery: trio.Nursery) -> None:
        """Start the vCPUs' tasks, and the one that ends the machine when one of them fails."""
        nursery.start_soon(self._raise_failure)
        if self.memory.pager is not None:
            nursery.start_soon(self._wait_until_filled, self.memory.pager)
        else:
            self._fill_ended.set()
        await self._vcpus.start(nursery, self)

    async def until_filled(self) -> None:
        """Wait until all of RAM is there: at once, unless it is read on demand.

        Raises: HostError when it cannot be read; the machine ends then.
        """
        await self._fill_ended.wait()
        if self._fill_errno is not None:
            raise _unreadable(self._fill_errno)

    @property
    def missing_bytes(self) -> int:
        """The RAM that is still to be read."""
        return 0 if self.memory.pager is None else self.memory.pager.progress.bytes_left

    async def resize_vcpus(self, count: int) -> None:
        """Have another number of vCPUs: see ``Vcpus.resize``."""
        await self._vcpus.resize(count)

    async def _wait_until_filled(self, pager: Pager) -> None:
        """End the pager when all of RAM is there, and the machine when it cannot be."""
        from vmm.kvm_cffi.pager import PagerState

        try:
            await trio.lowlevel.wait_readable(pager.event_fd)
        except trio.Cancelled:
            # A vCPU may wait in the kernel for a page that does not come, and hears nothing there.
            with trio.move_on_after(PAGE_S, shield=True) as patience:
                await self._vcpus.ended.wait()
            if patience.cancelled_caught:
                pager.give_up()
            raise
        now = pager.progress
        if now.state is PagerState.FAILED:
            self._fill_errno = now.error
            self._fill_ended.set()
            self._fail(_unreadable(now.error))
            return
        logger.info("All of RAM is there; %d accesses had to wait for theirs", now.faults)
        self.memory.pager = None
        pager.close()
        self._fill_ended.set()

    async def _raise_failure(self) -> None:
        await self._failed.wait()
        assert self._failure is not None
        raise self._failure


def _unreadable(errno: int) -> HostError:
    return HostError("read of RAM on demand", errno)

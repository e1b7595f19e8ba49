"""The vCPUs of one machine: those of its boot, and those that come and go.

Each has a task and a thread of its own. KVM never gives a vCPU up before its VM: one that the guest
gave back has no thread any more, and is used again when it is plugged in again.
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Self

import trio

from vmm.acpi.cpu_hotplug import MOST
from vmm.boot.msrs import KERNEL_GS_BASE
from vmm.errors import ConfigError, PendingError, StateError
from vmm.kvm_cffi import VcpuThread, constants, host
from vmm.machine import processors
from vmm.machine.vcpu import VcpuTask, pause_all

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from types import TracebackType

    from vmm.acpi.cpu_hotplug import CpuHotplug
    from vmm.boot.entry import KernelEntry
    from vmm.config.cpus import CpusConfig
    from vmm.kvm_cffi import ExitRouter, Vcpu, Vm
    from vmm.machine.bus import AddressSpaces
    from vmm.machine.processors import Processors
    from vmm.machine.saved import SavedVcpu
    from vmm.machine.vcpu import ExitSink
    from vmm.snapshot.core_file import VcpuRegisters


class Vcpus:
    """A context manager that makes the vCPUs of the boot and closes all there ever were.

    ``entry`` is where the first one begins. With ``saved`` they are what others were at the time
    ``saved_at`` of the host's wall clock, in ns since 1970, and stand until ``resume``. An Ejector
    of the registers of CPU hot plug. Raises: HostError.
    """

    def __init__(
        self,
        vm: Vm,
        model: Processors,
        entry: KernelEntry | None,
        config: CpusConfig,
        router: ExitRouter,
        spaces: AddressSpaces,
        registers: CpuHotplug[trio.Event],
        saved: Mapping[int, SavedVcpu] | None = None,
        saved_at: int = 0,
    ) -> None:
        self._vm = vm
        self._model = model
        self._entry = entry
        self._config = config
        self._router = router
        self._spaces = spaces
        self._registers = registers
        self._pinned = {each.vcpu: tuple(each.host_cpus) for each in config.affinity or ()}
        self._stack = ExitStack()
        self._created: dict[int, Vcpu] = {}
        self._made: dict[int, Vcpu] = {}
        """Of those that were created, which KVM does only once, the ones that could be set up."""
        self._tasks: dict[int, VcpuTask] = {}
        self._scopes: dict[int, trio.CancelScope] = {}
        self._leaving: dict[int, trio.Event] = {}
        self._nursery: trio.Nursery | None = None
        self._sink: ExitSink | None = None
        self._saved = saved
        self._saved_at = saved_at
        self._first = range(config.boot_vcpus) if saved is None else sorted(saved)
        self._is_paused = saved is not None
        self._let_run: frozenset[int] | None = None
        self._rests = False
        self.ended = trio.Event()
        """None has a thread any more."""
        registers.serve(self)

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            stack.push(self)
            for index in self._first:
                self._make(index, None if self._saved is None else self._saved[index])
            stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    async def start(self, nursery: trio.Nursery, sink: ExitSink) -> None:
        """Start the vCPUs of the boot in ``nursery``; ``sink`` hears what concerns the whole VM.

        A vCPU's thread shares a physical core with threads of its own cookie alone, and has the
        cookie of this thread when it is made: one for all in mode Vm, a new one each in mode Vcpu.
        """
        self._nursery, self._sink = nursery, sink
        mode = self._config.core_scheduling
        if mode == "Vm":
            host.create_core_scheduling_cookie()
        for index in self._first:
            if mode == "Vcpu":
                host.create_core_scheduling_cookie()
            await self._run(index)
        if mode != "Off":
            # The loop has secrets of its own: it shares a core with no vCPU either.
            host.create_core_scheduling_cookie()

    async def pause(self) -> None:
        """Stop every vCPU; one that comes meanwhile stands from the beginning."""
        self._is_paused = True
        await pause_all(tuple(self._tasks.values()))

    def resume(self) -> None:
        """Let every vCPU run on, but those that a debugger holds."""
        self._is_paused = False
        self._resume_tasks()

    def rest(self) -> None:
        """Have every vCPU stand for a moment, until ``go_on``, so that the guest does less."""
        self._rests = True
        for task in self._tasks.values():
            task.rest()

    def go_on(self) -> None:
        """Let every vCPU that rested run on, unless it is paused or a debugger holds it."""
        self._rests = False
        self._resume_tasks()

    def hold_from_the_start(self) -> None:
        """Have the vCPUs of the boot stand until ``release``."""
        self._let_run = frozenset()

    async def hold(self) -> None:
        """Stop every vCPU for a debugger, whether they are paused besides or not."""
        self._let_run = frozenset()
        await pause_all(tuple(self._tasks.values()))

    def release(self, only: Iterable[int] | None = None) -> None:
        """Let every vCPU that a debugger held, or only some, run on unless they are paused."""
        self._let_run = None if only is None else frozenset(only)
        self._resume_tasks()

    @property
    def is_paused(self) -> bool:
        """Whether all stand, or are to, until ``resume``."""
        return self._is_paused

    @property
    def debug_controls(self) -> int:
        """What a debugger may ask of this host's KVM for a vCPU: KVM_GUESTDBG_*."""
        return self._vm.check_extension(constants.KVM_CAP_SET_GUEST_DEBUG2)

    @property
    def present(self) -> list[int]:
        """The vCPUs that are there, in order."""
        return sorted(self._tasks)

    def vcpu(self, index: int) -> Vcpu:
        """A vCPU's descriptor; use it while the vCPU stands. Raises: KeyError."""
        return self._made[index]

    def _resume_tasks(self) -> None:
        for index, task in self._tasks.items():
            if self._may_run(index):
                task.resume()

    def _may_run(self, index: int) -> bool:
        if self._is_paused or self._rests:
            return False
        return self._let_run is None or index in self._let_run

    def inject_nmi(self) -> None:
        """Send a non-maskable interrupt to every vCPU."""
        for task in self._tasks.values():
            task.inject_nmi()

    def registers(self) -> list[VcpuRegisters]:
        """What a core file has of each vCPU; they must stand still. Raises: HostError."""
        from vmm.snapshot.core_file import VcpuRegisters

        found = []
        for index in sorted(self._tasks):
            vcpu = self._made[index]
            [gs_base] = vcpu.get_msrs([KERNEL_GS_BASE])
            found.append(VcpuRegisters(index, vcpu.get_regs(), vcpu.get_sregs(), gs_base.data))
        return found

    def save(self, msrs: Sequence[int]) -> dict[int, SavedVcpu]:
        """Read each vCPU; they must stand still. ``msrs`` are those to read. Raises: HostError."""
        from vmm.machine.vcpu_state import save_vcpu  # Only now: most VMs never are.

        return {index: save_vcpu(self._made[index], msrs) for index in sorted(self._tasks)}

    async def resize(self, count: int) -> None:
        """Have another number of vCPUs: more come at once, fewer as soon as the guest lets go.

        Raises: ConfigError (caller) for more than there may be; PendingError when the guest has
        not given back what it was asked for; HostError.
        """
        present = len(self._tasks)
        if self._registers.wanted_back or self._leaving:
            raise PendingError(
                f"The guest has not given back vCPUs {sorted(self._registers.wanted_back)} yet; "
                "wait until it has"
            )
        if count != present and self._config.max_vcpus > MOST:
            raise ConfigError(
                f"A VM that may have {self._config.max_vcpus} vCPUs (cpus.max_vcpus, --cpus max=…) "
                f"keeps those of its boot; use at most {MOST} to have them come and go"
            )
        if count > present:
            await self._plug(range(present, count))
            self._registers.announce(range(present, count))
        elif count < present:
            self._registers.ask_back(range(count, present))

    def eject_cpu(self, index: int) -> trio.Event:
        """Stop a vCPU that the guest has let go of; the event is set when its thread has ended."""
        gone = self._leaving[index] = trio.Event()
        self._scopes[index].cancel()
        return gone

    async def _plug(self, indices: Iterable[int]) -> None:
        """Start vCPUs that wait for the guest to start them; all of them, or none."""
        if self._nursery is None or self._nursery.cancel_scope.cancel_called:
            raise StateError("VM is not running")
        started: list[int] = []
        try:
            for index in indices:
                if index in self._made:
                    # Whatever it did last: now it waits for INIT and SIPI, as a new one does, and
                    # no debugger has told it anything.
                    self._made[index].set_mp_state(constants.KVM_MP_STATE_UNINITIALIZED)
                    self._made[index].set_guest_debug(0)
                else:
                    self._make(index)
                # It has a cookie of its own in mode Vm as well: that of the others is out of reach.
                await self._run(index, has_own_cookie=self._config.core_scheduling != "Off")
                started.append(index)
        except BaseException:
            # Bounded: a thread's end has a deadline.
            with trio.CancelScope(shield=True):
                for gone in [self.eject_cpu(index) for index in started]:
                    await gone.wait()
            raise

    def _make(self, index: int, saved: SavedVcpu | None = None) -> None:
        if index not in self._created:
            created = self._vm.create_vcpu(self._model.apic_ids[index])
            self._created[index] = self._stack.enter_context(created)
        vcpu = self._created[index]
        if saved is None:
            processors.set_up(vcpu, index, self._model, self._entry)
        else:
            elapsed = time.time_ns() - self._saved_at
            processors.bring_back(vcpu, index, self._model, saved, elapsed)
        self._made[index] = vcpu

    async def _run(self, index: int, *, has_own_cookie: bool = False) -> None:
        assert self._nursery is not None, "vCPUs run while the machine does"
        if has_own_cookie:
            host.create_core_scheduling_cookie()
        await self._nursery.start(self._live, index)
        if has_own_cookie:
            host.create_core_scheduling_cookie()

    async def _live(self, index: int, *, task_status: trio.TaskStatus[None]) -> None:
        """Be one vCPU, until its machine ends or the guest has given it back."""
        assert self._sink is not None, "vCPUs run while the machine does"
        host_cpus = self._pinned.get(index, ())
        thread = VcpuThread(
            self._made[index], self._router, name=f"vcpu{index}", host_cpus=host_cpus
        )
        ports, mmio = self._spaces.ports, self._spaces.mmio
        task = VcpuTask(thread, index, ports=ports, mmio=mmio, sink=self._sink, host_cpus=host_cpus)
        if not self._may_run(index):
            thread.request_pause()
        with trio.CancelScope() as scope:
            self._tasks[index], self._scopes[index] = task, scope
            try:
                await task.run(task_status=task_status)
            finally:
                del self._tasks[index], self._scopes[index]
                if not self._tasks:
                    self.ended.set()
                if index in self._leaving:
                    self._leaving.pop(index).set()

"""The VM owner: one task that holds at most one VM, serves commands and keeps its state.

States, as the API shows them:

    (none) --create--> Created --boot--> Running <--pause/resume--> Paused
      ^                  | ^                |                          |
      +------delete------+ +---shutdown-----+--------------------------+

Only this task changes state, one command at a time; reads look at what it last left. The guest's
own wishes (reset, power off) and a machine's failure arrive in the same queue, so that they too
wait their turn.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from enum import Enum
from functools import partial
from typing import TYPE_CHECKING

import trio

from vmm.config.changes import with_device, without_device
from vmm.errors import InternalError, NotCreatedError, NotFoundError, StateError, VmmError, chain
from vmm.machine import commands
from vmm.machine.commands import Command
from vmm.machine.confinement import explained
from vmm.machine.descriptors import KeptDescriptors
from vmm.machine.hotplug import extended
from vmm.machine.mailbox import Guest, Letter, Request, Wish
from vmm.machine.scope import Scope, enter

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmm.config.info import PciDeviceInfo, VmInfo
    from vmm.config.requests import VmResize, VmResizeZone
    from vmm.config.vm import VmConfig
    from vmm.machine.consoles import Consoles
    from vmm.machine.interface import Events, Machine, OpenConsoles, OpenMachine

logger = logging.getLogger(__name__)


class State(Enum):
    """What the API calls the VM's state."""

    CREATED = "Created"
    RUNNING = "Running"
    PAUSED = "Paused"


class VmOwner:
    """The only holder of the VM. ``run`` serves until the VMM is to end."""

    def __init__(
        self,
        *,
        events: Events,
        open_consoles: OpenConsoles,
        open_machine: OpenMachine,
        no_shutdown: bool = False,
        confine: Callable[[VmConfig], None] = lambda _: None,
    ) -> None:
        """``confine`` has the process give up what a configuration does not need."""
        self._events = events
        self._open_consoles = open_consoles
        self._open_machine = open_machine
        self._no_shutdown = no_shutdown
        self._confine = confine
        # Bounded by what waits: each API client has one request, a machine one wish.
        self._send, self._receive = trio.open_memory_channel[Letter](float("inf"))
        self._config: VmConfig | None = None
        self._descriptors = KeptDescriptors()
        self._consoles: Scope[Consoles] | None = None
        self._machine: Scope[Machine] | None = None
        self._guest: Guest | None = None
        self._state = State.CREATED
        self._ended = False
        self._failed = False
        self._nursery: trio.Nursery | None = None

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve commands until one of them, or the guest, ends the VMM.

        Cancel: the VM is gone, with all it held, when this returns.
        """
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            try:
                while not self._ended:
                    request = await self._receive.receive()
                    if isinstance(request, Request):
                        await self._answer(request)
                    else:
                        await self._grant(*request)
                self._refuse_the_rest()
            finally:
                # Bounded: the vCPUs and the consoles each have a deadline for their end. The
                # machine goes first, so that its last words still reach the consoles.
                with trio.CancelScope(shield=True):
                    await self._leave_machine()
                    await self._leave_consoles()
                self._descriptors.close_unnamed(None)

    async def submit(self, command: Command) -> PciDeviceInfo | None:
        """Have a command carried out, after those before it; gives where an added device is.

        Cancel: the command is carried out all the same.
        Raises: whatever VmmError the command ends with; StateError when the VMM ends before it.
        """
        request = Request(command)
        if self._ended:
            request.refuse()
        else:
            self._send.send_nowait(request)
            await request.done.wait()
        if request.error is not None:
            raise request.error
        return request.given

    def request_end(self) -> None:
        """Have the VMM end, after the commands before this."""
        if not self._ended:
            self._send.send_nowait(Request(commands.ShutdownVmm()))

    @property
    def has_ended(self) -> bool:
        """Whether no more commands are served."""
        return self._ended

    @property
    def has_failed(self) -> bool:
        """Whether it ended because a VM that its guest had reset could not be built anew."""
        return self._failed

    def info(self) -> VmInfo:
        """What vm.info shows. Raises: NotCreatedError."""
        from vmm.config.info import DeviceNode, VmInfo, VmState

        config = self._needed_config()
        machine = self._machine.value if self._machine else None
        tree = machine.device_tree if machine else None
        return VmInfo(
            config=config,
            state=VmState(self._state.value),
            memory_actual_size=machine.memory_actual_size if machine else config.total_memory(),
            device_tree=None
            if tree is None
            else {name: DeviceNode.model_validate(node) for name, node in tree.items()},
        )

    def counters(self) -> dict[str, dict[str, int]]:
        """What vm.counters shows. Raises: NotCreatedError, StateError."""
        return self._needed_machine().value.counters

    def _refuse_the_rest(self) -> None:
        with suppress(trio.WouldBlock):
            while True:
                request = self._receive.receive_nowait()
                if isinstance(request, Request):
                    request.refuse()

    async def _answer(self, request: Request) -> None:
        request.error = InternalError("The command was not carried out to its end")
        try:
            request.given = await self._carry_out(request.command)
            request.error = None
        except VmmError as error:
            request.error = explained(error, self._config)
        finally:
            request.end()

    async def _carry_out(self, command: Command) -> PciDeviceInfo | None:
        match command:
            case commands.Create(config):
                await self._create(config)
            case commands.Delete():
                await self._delete()
            case commands.Boot():
                await self._boot()
            case commands.Pause():
                await self._pause()
            case commands.Resume():
                await self._resume()
            case commands.Shutdown():
                self._needed_machine()
                await self._stop()
            case commands.Reboot():
                self._needed_machine()
                await self._reboot()
            case commands.AddDevice():
                return await self._add_device(command)
            case commands.RemoveDevice(id):
                self._remove_device(id)
            case commands.Resize(sizes):
                await self._resize(sizes)
            case commands.Coredump(url):
                await self._dump_core(url)
            case commands.ResizeDisk(id, size):
                self._needed_machine().value.resize_disk(id, size)
            case commands.PowerButton():
                self._needed_machine().value.press_power_button()
            case commands.Nmi():
                self._needed_machine().value.inject_nmi()
            case commands.ShutdownVmm():
                await self._delete()
                self._ended = True
        return None

    async def _grant(self, guest: Guest, wish: Wish) -> None:
        if guest is not self._guest:
            return  # That machine is gone already; Linux, for one, resets in two ways at once.
        match wish:
            case Wish.RESET:
                try:
                    await self._reboot()
                except VmmError as error:
                    for line in chain(error):
                        logger.error("The VM could not reboot: %s", line)
                    self._failed = True
                    await self._end()
            case Wish.SHUTDOWN if self._no_shutdown:
                await self._stop()
            case Wish.SHUTDOWN | Wish.FAILURE:
                await self._end()

    async def _create(self, config: VmConfig) -> None:
        if self._config is not None:
            raise StateError("VM is already created")
        await self._enter_consoles(config)
        try:
            self._confine(config)
        except VmmError:
            await self._leave_consoles()
            raise
        self._config = config

    async def _delete(self) -> None:
        if self._machine is not None:
            await self._stop()
        await self._leave_consoles()
        if self._config is not None:
            self._store(None)
            self._events.emit("vm", "deleted")

    async def _boot(self) -> None:
        if self._config is None:
            raise NotCreatedError("VM config is missing")
        if self._machine is not None:
            raise StateError("VM is already created")
        self._events.emit("vm", "booting")
        await self._start(self._config)
        self._events.emit("vm", "booted")

    async def _start(self, config: VmConfig) -> None:
        consoles = self._consoles or await self._enter_consoles(config)
        guest = Guest(self._send)
        self._machine = await enter(
            self._needed_nursery(),
            self._open_machine(config, consoles.value, guest),
            guest.failed,
        )
        self._guest = guest
        # What was chosen for it now, such as names and addresses, it has at the next boot too.
        self._config = self._machine.value.described_in(self._config or config)
        self._state = State.RUNNING

    async def _pause(self) -> None:
        machine = self._needed_machine()
        self._check_transition(State.RUNNING, State.PAUSED)
        self._events.emit("vm", "pausing")
        await machine.during(machine.value.pause)
        self._state = State.PAUSED
        self._events.emit("vm", "paused")

    async def _resume(self) -> None:
        machine = self._needed_machine()
        self._check_transition(State.PAUSED, State.RUNNING)
        self._events.emit("vm", "resuming")
        await machine.during(machine.value.resume)
        self._state = State.RUNNING
        self._events.emit("vm", "resumed")

    async def _resize(self, sizes: VmResize | VmResizeZone) -> None:
        from vmm.machine.resize import resize  # Only now: most VMs never are.

        config = self._stored_config()
        machine = self._machine.value if self._machine else None
        self._events.emit("vm", "resizing")
        change = partial(resize, config, machine, sizes, self._store)
        await (change() if self._machine is None else self._machine.during(change))
        self._events.emit("vm", "resized")

    async def _dump_core(self, url: str) -> None:
        from vmm.snapshot.coredump import path_of  # Only now: most VMs never are.

        machine = self._needed_machine()
        dump = partial(
            machine.value.dump_core, path_of(url), is_running=self._state is State.RUNNING
        )
        self._events.emit("vm", "coredumping")
        await machine.during(dump)

    async def _add_device(self, command: commands.AddDevice) -> PciDeviceInfo | None:
        section, entry = command.section, command.entry
        config, info = self._stored_config(), None
        changed = extended(config, section, entry)
        if self._machine is not None:
            from vmm.config.info import PciDeviceInfo

            add = partial(self._machine.value.add_device, section, entry)
            added = await self._machine.during(add)
            changed = with_device(config, section, added.entry)
            info = PciDeviceInfo(id=added.entry.id or "", bdf=str(added.bdf))
        self._descriptors.keep(command.take_descriptors())
        self._store(changed)
        return info

    def _remove_device(self, id: str) -> None:
        config = self._stored_config()
        if self._machine is not None:
            # Out of the configuration at once; out of the machine when its guest lets go.
            self._store(without_device(config, self._machine.value.remove_device(id)))
            return
        self._store(without_device(config, id))
        if self._config is config:
            raise NotFoundError(f'No device with id "{id}" to remove; vm.info lists what there is')

    async def _stop(self) -> None:
        await self._leave_machine()
        await self._leave_consoles()
        self._events.emit("vm", "shutdown")

    async def _reboot(self) -> None:
        config, machine = self._needed_config(), self._needed_machine()
        self._events.emit("vm", "rebooting")
        # The consoles stay: whoever watches one sees the new machine on it. The old machine stays
        # in sight as well until there is a new one, for reads meanwhile.
        await machine.leave()
        try:
            await self._start(config)
        except VmmError:
            await self._stop()
            raise
        self._events.emit("vm", "rebooted")

    async def _end(self) -> None:
        await self._carry_out(commands.ShutdownVmm())

    async def _enter_consoles(self, config: VmConfig) -> Scope[Consoles]:
        self._consoles = await enter(
            self._needed_nursery(), self._open_consoles(config), self._console_failed
        )
        return self._consoles

    async def _leave_consoles(self) -> None:
        if self._consoles is not None:
            await self._consoles.leave()
            self._consoles = None

    async def _leave_machine(self) -> None:
        if self._machine is not None:
            await self._machine.leave()
        self._machine = self._guest = None
        self._state = State.CREATED

    def _console_failed(self, error: Exception) -> None:
        for line in chain(error):
            logger.error("A console stopped: %s", line)

    def _check_transition(self, wanted: State, new: State) -> None:
        if self._state is not wanted:
            raise StateError(f"invalid VM state transition: {self._state.value} to {new.value}")

    def _store(self, config: VmConfig | None) -> None:
        self._config = config
        self._descriptors.close_unnamed(config)

    def _stored_config(self) -> VmConfig:
        if self._config is None:
            raise NotCreatedError("VM is not created")
        return self._config

    def _needed_config(self) -> VmConfig:
        config = self._stored_config()
        return self._consoles.value.described_in(config) if self._consoles else config

    def _needed_machine(self) -> Scope[Machine]:
        self._needed_config()
        if self._machine is None:
            raise StateError("VM is not running")
        return self._machine

    def _needed_nursery(self) -> trio.Nursery:
        assert self._nursery is not None, "commands are served by run alone"
        return self._nursery

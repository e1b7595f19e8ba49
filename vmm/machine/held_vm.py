"""The one VM of a VMM: its configuration, its consoles, and its machine, if it has one.

All of it is changed by the VM owner's task alone, one command at a time; see ``vmm.machine.owner``.
"""

from __future__ import annotations

import logging
from enum import Enum
from functools import partial
from typing import TYPE_CHECKING

import trio

from vmm.config.changes import with_device, without_device
from vmm.errors import (
    AlreadyCreatedError,
    NotCreatedError,
    NotFoundError,
    StateError,
    VmmError,
    chain,
)
from vmm.machine.confinement import explained
from vmm.machine.descriptors import KeptDescriptors
from vmm.machine.hotplug import extended
from vmm.machine.mailbox import Guest, Letter
from vmm.machine.scope import Scope, enter

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmm.config.info import PciDeviceInfo, VmInfo
    from vmm.config.requests import VmResize, VmResizeZone
    from vmm.config.vm import VmConfig
    from vmm.machine import commands
    from vmm.machine.consoles import Consoles
    from vmm.machine.interface import (
        Arrival,
        Events,
        Machine,
        MachineSource,
        OpenConsoles,
        OpenMachine,
    )

logger = logging.getLogger(__name__)


class State(Enum):
    """What the API calls the VM's state."""

    CREATED = "Created"
    RUNNING = "Running"
    PAUSED = "Paused"


class HeldVm:
    """At most one VM; machines and consoles live in ``nursery``, and wish by ``send``."""

    def __init__(
        self,
        events: Events,
        open_consoles: OpenConsoles,
        open_machine: OpenMachine,
        confine: Callable[[VmConfig], None],
        send: trio.MemorySendChannel[Letter],
    ) -> None:
        self._events = events
        self._open_consoles = open_consoles
        self._open_machine = open_machine
        self._confine = confine
        self._send = send
        self._config: VmConfig | None = None
        self._descriptors = KeptDescriptors()
        self._consoles: Scope[Consoles] | None = None
        self._machine: Scope[Machine] | None = None
        self._state = State.CREATED
        self.guest: Guest | None = None
        """Who may wish for something now: the guest of the machine that is there."""
        self.nursery: trio.Nursery | None = None

    async def close(self) -> None:
        """Give back all there is; the machine first, so that its last words reach the consoles."""
        await self.leave_machine()
        await self.leave_consoles()
        self._descriptors.close_unnamed(None)

    @property
    def is_there(self) -> bool:
        """Whether there is one."""
        return self._config is not None

    def explained(self, error: VmmError) -> VmmError:
        """An error that the confinement of this VM may be behind, with that said."""
        return explained(error, self._config)

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
        return self.needed_machine().value.counters

    async def create(self, config: VmConfig) -> None:
        """Store a configuration and open its consoles. Raises: StateError, HostError."""
        if self._config is not None:
            raise StateError("VM is already created")
        await self._enter_consoles(config)
        try:
            self._confine(config)
        except VmmError:
            await self.leave_consoles()
            raise
        self._config = config

    async def delete(self) -> None:
        """Forget the VM, after stopping it if it runs; do nothing without one."""
        if self._machine is not None:
            await self.stop()
        await self.leave_consoles()
        if self._config is not None:
            self._store(None)
            self._events.emit("vm", "deleted")

    async def boot(self) -> None:
        """Build the machine and let it run. Raises: StateError, ConfigError, HostError."""
        if self._config is None:
            raise NotCreatedError("VM config is missing")
        if self._machine is not None:
            raise StateError("VM is already created")
        self._events.emit("vm", "booting")
        await self._start(self._config)
        self._events.emit("vm", "booted")

    async def _start(self, config: VmConfig, source: MachineSource | None = None) -> None:
        consoles = self._consoles or await self._enter_consoles(config)
        guest = Guest(self._send)
        self._machine = await enter(
            self.needed_nursery(),
            self._open_machine(config, consoles.value, guest, source=source),
            guest.failed,
        )
        self.guest = guest
        # What was chosen for it now, such as names and addresses, it has at the next boot too.
        self._config = self._machine.value.described_in(self._config or config)
        self._state = State.RUNNING if source is None else State.PAUSED

    async def snapshot(self, url: str) -> None:
        """Write the paused VM to a directory. Raises: StateError, ConfigError, HostError."""
        from vmm.snapshot.url import path_of  # Only now: most VMs never are.

        machine, config = self.needed_machine(), self.stored_config()
        if self._state is not State.PAUSED:
            raise StateError(f"The VM is {self._state.value}; pause it, then take the snapshot")
        folder = path_of(url, "destination_url", "an existing directory")
        self._events.emit("vm", "snapshotting")
        await machine.during(partial(machine.value.snapshot, folder, config))
        self._events.emit("vm", "snapshotted")

    async def restore(self, command: commands.Restore) -> None:
        """Bring a VM back from a snapshot; there is none if that fails.

        Raises: AlreadyCreatedError, ConfigError, HostError.
        """
        if self._config is not None:
            raise AlreadyCreatedError("VM is already created")
        from vmm.snapshot.restore import Snapshot  # Only now: most VMs are booted.

        self._events.emit("vm", "restoring")
        snapshot = Snapshot(command.request, command.descriptors)
        self._descriptors.keep(command.take_descriptors())
        try:
            await self._start(snapshot.config, snapshot)
            # What the snapshot is read from is open by now.
            self._confine(snapshot.config)
            if command.request.resume:
                await self.resume()
        except BaseException:
            # Bounded, as any end of a machine is: whoever asked may ask again.
            await self._leave_all()
            raise
        self._events.emit("vm", "restored")

    async def _leave_all(self) -> None:
        """Have no VM any more, also when cancelled."""
        with trio.CancelScope(shield=True):
            await self.leave_machine()
            await self.leave_consoles()
        self._store(None)

    @property
    def has_machine(self) -> bool:
        """Whether it is booted."""
        return self._machine is not None

    @property
    def is_running(self) -> bool:
        """Whether it is booted and not paused."""
        return self._state is State.RUNNING

    async def take_in(
        self, config: VmConfig, arrival: Arrival, command: commands.ReceiveMigration
    ) -> None:
        """Have the VM that another VMM sends, in place of a stored configuration.

        The configuration names the descriptors that the command brought.
        Raises: what stops it; there is no VM then.
        """
        try:
            await self.leave_consoles()
            self._store(None)
            self._descriptors.keep(command.take_descriptors())
            await self._start(config, arrival)
            machine = self.needed_machine()
            runs = await machine.during(arrival.completion)
            # Only now: nothing gives a file back, and this process may have to wait for another VM.
            self._confine(config)
            # Bounded: waking waits for nothing, and the source for as long as its link's patience.
            # The VM is ours from here on.
            with trio.CancelScope(shield=True):
                if runs:
                    await self.resume()
                await arrival.confirm()
        except BaseException:
            # Bounded, as any end of a machine is.
            await self._leave_all()
            raise

    def stands(self) -> None:
        """The machine was stopped when it was to go to another VMM, and has not been resumed."""
        self._state = State.PAUSED

    async def pause(self) -> None:
        """Stop the vCPUs. Raises: StateError, HostError."""
        machine = self.needed_machine()
        self._check_transition(State.RUNNING, State.PAUSED)
        self._events.emit("vm", "pausing")
        await machine.during(machine.value.pause)
        self._state = State.PAUSED
        self._events.emit("vm", "paused")

    async def resume(self) -> None:
        """Let the vCPUs run on. Raises: StateError, HostError."""
        machine = self.needed_machine()
        self._check_transition(State.PAUSED, State.RUNNING)
        self._events.emit("vm", "resuming")
        await machine.during(machine.value.resume)
        self._state = State.RUNNING
        self._events.emit("vm", "resumed")

    async def resize(self, sizes: VmResize | VmResizeZone) -> None:
        """Give the VM other amounts: see ``vmm.machine.resize``."""
        from vmm.machine.resize import resize  # Only now: most VMs never are.

        config = self.stored_config()
        machine = self._machine.value if self._machine else None
        self._events.emit("vm", "resizing")
        change = partial(resize, config, machine, sizes, self._store)
        await (change() if self._machine is None else self._machine.during(change))
        self._events.emit("vm", "resized")

    async def dump_core(self, url: str) -> None:
        """Write a core file. Raises: StateError, ConfigError, HostError."""
        from vmm.snapshot.url import path_of  # Only now: most VMs never are.

        machine = self.needed_machine()
        path = path_of(url, "destination_url", "a file to make")
        dump = partial(machine.value.dump_core, path, is_running=self._state is State.RUNNING)
        self._events.emit("vm", "coredumping")
        await machine.during(dump)

    async def add_device(self, command: commands.AddDevice) -> PciDeviceInfo | None:
        """Add a device, to the machine too if there is one, and give its place then.

        Raises: StateError, ConfigError, HostError.
        """
        section, entry = command.section, command.entry
        config, info = self.stored_config(), None
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

    def remove_device(self, id: str) -> None:
        """Take a device away. Raises: StateError, NotFoundError, ConfigError."""
        config = self.stored_config()
        if self._machine is not None:
            # Out of the configuration at once; out of the machine when its guest lets go.
            self._store(without_device(config, self._machine.value.remove_device(id)))
            return
        self._store(without_device(config, id))
        if self._config is config:
            raise NotFoundError(f'No device with id "{id}" to remove; vm.info lists what there is')

    async def stop(self) -> None:
        """Stop the machine and close the consoles; the configuration stays."""
        await self.leave_machine()
        await self.leave_consoles()
        self._events.emit("vm", "shutdown")

    async def reboot(self) -> None:
        """Build the machine anew, or stop it. Raises: StateError, ConfigError, HostError."""
        config, machine = self._needed_config(), self.needed_machine()
        self._events.emit("vm", "rebooting")
        # The consoles stay: whoever watches one sees the new machine on it. The old machine stays
        # in sight as well until there is a new one, for reads meanwhile.
        await machine.leave()
        try:
            await self._start(config)
        except VmmError:
            await self.stop()
            raise
        self._events.emit("vm", "rebooted")

    async def _enter_consoles(self, config: VmConfig) -> Scope[Consoles]:
        self._consoles = await enter(
            self.needed_nursery(), self._open_consoles(config), self._console_failed
        )
        return self._consoles

    async def leave_consoles(self) -> None:
        """Close the consoles, if there are any."""
        if self._consoles is not None:
            await self._consoles.leave()
            self._consoles = None

    async def leave_machine(self) -> None:
        """Stop the machine, if there is one."""
        if self._machine is not None:
            await self._machine.leave()
        self._machine = self.guest = None
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

    def stored_config(self) -> VmConfig:
        """The configuration as it was given. Raises: NotCreatedError."""
        if self._config is None:
            raise NotCreatedError("VM is not created")
        return self._config

    def _needed_config(self) -> VmConfig:
        config = self.stored_config()
        return self._consoles.value.described_in(config) if self._consoles else config

    def needed_machine(self) -> Scope[Machine]:
        """The machine. Raises: NotCreatedError, StateError when there is none."""
        self._needed_config()
        if self._machine is None:
            raise StateError("VM is not running")
        return self._machine

    def needed_nursery(self) -> trio.Nursery:
        """Where what outlives a command runs."""
        assert self.nursery is not None, "commands are served by run alone"
        return self.nursery

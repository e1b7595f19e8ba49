"""The migrations of a VMM's one VM, one at a time: begun, looked at, and stopped by its owner."""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

from vmm.errors import HostError, InternalError, NotFoundError, StateError, VmmError
from vmm.machine import commands

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from vmm.config.info import MigrationInfo
    from vmm.config.requests import SendMigrationData
    from vmm.machine.held_vm import HeldVm
    from vmm.machine.interface import Events
    from vmm.machine.mailbox import Guest, Request
    from vmm.migration.address import Address
    from vmm.migration.messages import Description
    from vmm.migration.moving import Moving
    from vmm.migration.progress import Progress
    from vmm.snapshot.descriptors import Given

    Operation = Callable[[Progress], Awaitable[None]]


class Moves:
    """What moves the VM that ``vm`` holds; ``end`` has the VMM end, once it has gone."""

    def __init__(self, vm: HeldVm, events: Events, end: Callable[[], None]) -> None:
        self._vm = vm
        self._events = events
        self._end = end
        self._moving: Moving | None = None
        self._has_gone = False
        self._followed: Guest | None = None
        """Whose memory follows it here, or did not all do so."""

    def info(self) -> MigrationInfo:
        """What ``vm.migration`` shows. Raises: NotFoundError when there was none."""
        if self._moving is None:
            raise NotFoundError("No VM has been sent or received by this VMM")
        is_followed = self._followed is not None and self._followed is self._vm.guest
        if is_followed and not self._moving.is_over:
            self._moving.progress.remains(self._vm.needed_machine().value.missing_bytes)
        return self._moving.info()

    def check_stays(self) -> None:
        """Check that the VM may be changed. Raises: StateError while it moves."""
        if self._has_gone:
            raise StateError("The VM has moved to another VMM")
        if self._moving is not None and self._moving.keeps_vm:
            raise StateError("VM is currently migrating and can't be modified")

    async def cancel(self) -> None:
        """Stop what is under way. Raises: StateError when nothing is, or it is too late."""
        moving = self._moving
        if moving is None or moving.is_over:
            raise StateError("No migration is under way")
        if not moving.progress.is_decided:
            await moving.cancel()
        if moving.progress.is_decided:
            side = "here" if moving.progress.is_incoming else "at another VMM"
            raise StateError(f"It is too late: the VM is {side} already")

    async def stop(self) -> bool:
        """Stop what is under way, for the end of the VM here: whether it is this VMM's."""
        if self._moving is not None and self._moving.keeps_vm:
            await self._moving.stop()
        return not self._has_gone

    async def end_with_machine(self) -> bool:
        """The machine has failed, which ends what is under way: whether the VM is this VMM's."""
        if self._moving is not None and self._moving.keeps_vm:
            await self._moving.until_over()
        return not self._has_gone

    async def has_lost(self, guest: Guest) -> bool:
        """Whether a machine that has failed did so because not all of its memory came."""
        if self._moving is None or guest is not self._followed:
            return False
        # Bounded: it ends with the machine.
        await self._moving.until_over()
        return self._moving.progress.error is not None

    def begin(self, request: Request) -> None:
        """Have a VM sent or received; the request ends when that does, or is refused at once."""
        try:
            self.check_stays()
            operation = self._prepared(request.command)
        except VmmError as error:
            request.error = error
            request.end()
            return
        from vmm.migration.moving import Moving  # Only now: most VMs never move.

        is_incoming = isinstance(request.command, commands.ReceiveMigration)
        self._moving = Moving(self._events, is_incoming=is_incoming)
        self._vm.needed_nursery().start_soon(self._run, request, self._moving, operation)

    def _prepared(self, command: commands.Command) -> Operation:
        """Check a request; give what carries it out. Raises: StateError, ConfigError."""
        match command:
            case commands.SendMigration(data):
                return self._sending(data)
            case commands.ReceiveMigration():
                return self._receiving(command)
        raise InternalError(f"{command} moves no VM")

    async def _run(self, request: Request, moving: Moving, operation: Operation) -> None:
        request.error = InternalError("The migration was not carried out to its end")
        try:
            await moving.run(operation)
            request.error = None
        except VmmError as error:
            request.error = error
        finally:
            request.end()

    def _sending(self, data: SendMigrationData) -> Operation:
        from vmm.migration.rules import check_send

        if self._vm.needed_machine().value.memory.pager is not None:
            raise StateError(
                "Not all of the VM's RAM is here yet: it is read on demand; try again later"
            )
        return partial(self._send, data, check_send(data, self._vm.stored_config()))

    async def _send(self, data: SendMigrationData, address: Address, progress: Progress) -> None:
        from vmm.migration.messages import describe
        from vmm.migration.progress import Fate
        from vmm.migration.source import Departure

        context = None
        if data.tls_dir is not None:
            from vmm.migration.tls import sender_context

            context = sender_context(data.tls_dir)
        scope = self._vm.needed_machine()
        departure = Departure(
            scope.value,
            describe(scope.value, self._vm.stored_config()),
            data,
            address,
            progress,
            self._events,
            guest=self._vm.guest,
            is_running=self._vm.is_running,
            context=context,
        )
        self._events.emit("vm", "migration-started")
        try:
            await scope.during(departure.send)
        finally:
            if progress.fate is not Fate.HERE or progress.stands:
                self._vm.stands()
            if progress.fate is Fate.GONE and not data.preserve_source:
                self._has_gone = True
                self._end()

    def _receiving(self, command: commands.ReceiveMigration) -> Operation:
        from vmm.migration.rules import check_receive
        from vmm.snapshot.descriptors import given_to

        address = check_receive(command.data)
        given = given_to(command.data.net_fds, command.descriptors)
        if self._vm.has_machine:
            raise StateError("VM is already created")
        return partial(self._receive, command, address, given)

    async def _receive(
        self,
        command: commands.ReceiveMigration,
        address: Address,
        given: Given,
        progress: Progress,
    ) -> None:
        from vmm.config.changes import with_nodes
        from vmm.config.requests import MigrationMode
        from vmm.config.rules.restore import validate_received
        from vmm.migration.destination import Arrival, check_processors, listen
        from vmm.snapshot.descriptors import with_descriptors

        data = command.data

        def check(description: Description) -> None:
            validate_received(data, description.config)
            check_processors(description)

        async with listen(address, data.tls_dir) as listener:
            self._events.emit("vm", "migration-receive-ready")
            is_postcopy = data.memory_mode is MigrationMode.POSTCOPY
            with Arrival(listener, progress, check, is_postcopy=is_postcopy) as arrival:
                try:
                    description = await arrival.meet()
                    self._events.emit("vm", "migration-receive-started")
                    config = with_nodes(description.config, data.zone_updates or ())
                    await self._vm.take_in(with_descriptors(config, given), arrival, command)
                except BaseException:
                    await arrival.refuse()
                    raise
        if is_postcopy:
            await self._follow(progress)

    async def _follow(self, progress: Progress) -> None:
        """Wait for the rest of the VM's memory. Raises: MemoryLostError; the VM ends then."""
        from vmm.config.info import MigrationPhase
        from vmm.migration.postcopy import MemoryLostError

        machine = self._vm.needed_machine()
        self._followed = self._vm.guest
        progress.phase = MigrationPhase.MEMORY
        progress.start_moving()
        try:
            # One that is ended meanwhile needs no more.
            with suppress(StateError):
                await machine.during(machine.value.until_filled)
        except HostError as error:
            raise MemoryLostError(
                "The VM came before its memory, and not all of that has followed; it is lost, and "
                "deleted here"
            ) from error
        self._followed = None
        progress.remains(0)

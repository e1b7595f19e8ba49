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
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import trio

from vmm.errors import InternalError, StateError, VmmError, chain
from vmm.kvm_cffi.check import refused
from vmm.machine import commands
from vmm.machine.commands import Command
from vmm.machine.held_vm import HeldVm
from vmm.machine.mailbox import ENDING, Guest, Letter, Request, Wish
from vmm.migration.moves import Moves

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from vmm.config.info import MigrationInfo, PciDeviceInfo, VmInfo
    from vmm.config.vm import VmConfig
    from vmm.machine.interface import Events, OpenConsoles, OpenMachine

logger = logging.getLogger(__name__)

LENGTHY = (
    commands.Boot,
    commands.Reboot,
    commands.Restore,
    commands.Snapshot,
    commands.Coredump,
    commands.Pause,
    commands.Resize,
    commands.AddDevice,
)
"""What takes as long as there is memory, or until the host's storage answers: the end of the VMM
does not wait for these."""


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
        # Bounded by what waits: each API client has one request, a machine one wish.
        self._send, self._receive = trio.open_memory_channel[Letter](float("inf"))
        self._vm = HeldVm(events, open_consoles, open_machine, confine, self._send)
        self._moves = Moves(self._vm, events, self.request_end)
        self._no_shutdown = no_shutdown
        self._lengthy: trio.CancelScope | None = None
        self._is_ending = False
        self._ended = False
        self._failed = False

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve commands until one of them, or the guest, ends the VMM.

        Cancel: the VM is gone, with all it held, when this returns.
        """
        async with trio.open_nursery() as nursery:
            self._vm.nursery = nursery
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
                # Bounded: the vCPUs and the consoles each have a deadline for their end.
                with trio.CancelScope(shield=True):
                    await self._vm.close()

    async def submit(self, command: Command) -> PciDeviceInfo | None:
        """Have a command carried out, after those before it; gives where an added device is.

        Cancel: the command is carried out all the same.
        Raises: whatever VmmError the command ends with; StateError when the VMM ends before it.
        """
        request = Request(command)
        if self._ended:
            request.refuse()
        else:
            self._post(request)
            await request.done.wait()
        if request.error is not None:
            raise request.error
        return request.given

    def request_end(self) -> None:
        """Have the VMM end, after the commands before this; lengthy ones are cut off."""
        if not self._ended:
            self._post(Request(commands.ShutdownVmm()))

    @property
    def is_ending(self) -> bool:
        """Whether the end has been asked for."""
        return self._is_ending

    @property
    def has_vm(self) -> bool:
        """Whether there is a VM, be it only created."""
        return self._vm.is_there

    @property
    def has_failed(self) -> bool:
        """Whether it ended because a VM that its guest had reset could not be built anew."""
        return self._failed

    def info(self) -> VmInfo:
        """What vm.info shows. Raises: NotCreatedError."""
        return self._vm.info()

    def counters(self) -> dict[str, dict[str, int]]:
        """What vm.counters shows. Raises: NotCreatedError, StateError."""
        return self._vm.counters()

    def migration(self) -> MigrationInfo:
        """What vm.migration shows. Raises: NotFoundError."""
        return self._moves.info()

    def _post(self, request: Request) -> None:
        self._send.send_nowait(request)
        if isinstance(request.command, commands.ShutdownVmm):
            self._is_ending = True
            if self._lengthy is not None:
                self._lengthy.cancel()

    @contextmanager
    def _cut_off_by_the_end(self, command: Command) -> Iterator[trio.CancelScope]:
        """Cancel what is done in here, if it is lengthy, once the VMM is to end."""
        with trio.CancelScope() as scope:
            if isinstance(command, LENGTHY):
                self._lengthy = scope
                if self._is_ending:
                    scope.cancel()
            try:
                yield scope
            finally:
                self._lengthy = None

    def _refuse_the_rest(self) -> None:
        with suppress(trio.WouldBlock):
            while True:
                request = self._receive.receive_nowait()
                if isinstance(request, Request):
                    request.refuse()

    async def _answer(self, request: Request) -> None:
        if isinstance(request.command, commands.SendMigration | commands.ReceiveMigration):
            self._moves.begin(request)
            return
        request.error = InternalError("The command was not carried out to its end")
        try:
            with self._cut_off_by_the_end(request.command) as scope:
                request.given = await self._carry_out(request.command)
                request.error = None
            if scope.cancelled_caught:
                request.error = StateError(ENDING)
        except VmmError as error:
            request.error = self._vm.explained(error)
        except OSError as error:  # Even of an import, where no descriptors are left.
            request.error = self._vm.explained(refused("open", error))
        finally:
            request.end()

    async def _carry_out(self, command: Command) -> PciDeviceInfo | None:
        if not isinstance(command, commands.CancelMigration | commands.ShutdownVmm):
            self._moves.check_stays()
        match command:
            case commands.Create(config):
                await self._vm.create(config)
            case commands.Delete():
                await self._vm.delete()
            case commands.Boot():
                await self._vm.boot()
            case commands.Pause():
                await self._vm.pause()
            case commands.Resume():
                await self._vm.resume()
            case commands.Shutdown():
                self._vm.needed_machine()
                await self._vm.stop()
            case commands.Reboot():
                self._vm.needed_machine()
                await self._vm.reboot()
            case commands.AddDevice():
                return await self._vm.add_device(command)
            case commands.RemoveDevice(id):
                self._vm.remove_device(id)
            case commands.Resize(sizes):
                await self._vm.resize(sizes)
            case commands.Coredump(url):
                await self._vm.dump_core(url)
            case commands.Snapshot(url):
                await self._vm.snapshot(url)
            case commands.Restore():
                await self._vm.restore(command)
            case commands.ResizeDisk(id, size):
                self._vm.needed_machine().value.resize_disk(id, size)
            case commands.PowerButton():
                self._vm.needed_machine().value.press_power_button()
            case commands.Nmi():
                self._vm.needed_machine().value.inject_nmi()
            case commands.CancelMigration():
                await self._moves.cancel()
            case commands.ShutdownVmm():
                self._is_ending = True
                await self._moves.stop()
                await self._vm.delete()
                self._ended = True
        return None

    async def _grant(self, guest: Guest, wish: Wish) -> None:
        if guest is not self._vm.guest:
            return  # That machine is gone already; Linux, for one, resets in two ways at once.
        has_failed = wish is Wish.FAILURE
        is_ours = await (self._moves.end_with_machine() if has_failed else self._moves.stop())
        if not is_ours or guest is not self._vm.guest:
            return  # The VM is another VMM's, or stayed there.
        match wish:
            case Wish.RESET:
                try:
                    with self._cut_off_by_the_end(commands.Reboot()):
                        await self._vm.reboot()
                except VmmError as error:
                    for line in chain(error):
                        logger.error("The VM could not reboot: %s", line)
                    self._failed = True
                    await self._end()
            case Wish.SHUTDOWN if self._no_shutdown:
                await self._vm.stop()
            case Wish.FAILURE if await self._moves.has_lost(guest):
                await self._vm.delete()  # As any VM that does not come; another may.
            case Wish.SHUTDOWN | Wish.FAILURE:
                await self._end()

    async def _end(self) -> None:
        await self._carry_out(commands.ShutdownVmm())

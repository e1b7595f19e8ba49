"""One migration of a VMM's, out or in, from its request to its end."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import trio

from vmm.config.info import MigrationPhase
from vmm.errors import StateError, VmmError, chain, first_error
from vmm.migration.postcopy import MemoryLostError
from vmm.migration.progress import Progress

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from vmm.config.info import MigrationInfo
    from vmm.machine.interface import Events

logger = logging.getLogger(__name__)

SILENCE_S = 30.0
"""How long memory that follows a VM may rest where the VMM is to end."""


class Moving:
    """A migration and the way to stop it."""

    def __init__(self, events: Events, *, is_incoming: bool) -> None:
        self.progress = Progress(is_incoming=is_incoming)
        self._events = events
        self._word = "migration-receive" if is_incoming else "migration"
        self._scope = trio.CancelScope()
        self._ended = trio.Event()

    @property
    def is_over(self) -> bool:
        """Whether it has ended."""
        return self._ended.is_set()

    @property
    def keeps_vm(self) -> bool:
        """Whether the VM may not be changed; one that has come may, while its memory follows."""
        return not self.is_over and not self.progress.has_arrived

    def info(self) -> MigrationInfo:
        """What ``vm.migration`` shows."""
        return self.progress.describe()

    async def cancel(self) -> None:
        """Stop it, and wait until it has ended, or it is sure that the VM has changed sides."""
        if self.progress.may_stop:
            self._scope.cancel()
        await self.progress.settled.wait()

    async def stop(self) -> None:
        """Stop it and wait for its end, for a VM that is to end: memory that follows one elsewhere
        is waited for while some does, and no longer for a destination that asks for none and never
        closes.
        """
        if self.progress.may_stop:
            self._scope.cancel()
        while not self.is_over:
            before = self.progress.transferred_bytes
            with trio.move_on_after(SILENCE_S):
                await self.until_over()
            if self.progress.is_decided and self.progress.transferred_bytes == before:
                self._scope.cancel()

    async def until_over(self) -> None:
        """Wait for its end."""
        await self._ended.wait()

    async def run(self, operation: Callable[[Progress], Awaitable[None]]) -> None:
        """Carry it out. Raises: what failed; StateError when it was cancelled.

        What fails once the VM has changed sides is no matter of whose it is, unless its memory is
        lost. Cancel: it has ended, with the VM at one side.
        """
        error: VmmError | None = StateError("The migration was cancelled")
        phase = MigrationPhase.CANCELLED
        try:
            with self._scope:
                await operation(self.progress)
                phase, error = MigrationPhase.COMPLETED, None
        except* VmmError as group:
            first = first_error(group)
            assert isinstance(first, VmmError)
            phase, error = MigrationPhase.FAILED, first
        finally:
            if self.progress.is_decided and not isinstance(error, MemoryLostError):
                if phase is MigrationPhase.FAILED and error is not None:
                    logger.error("The VM had moved before this: %s", ": ".join(chain(error)))
                phase, error = MigrationPhase.COMPLETED, None
            self._end(phase, error)
        if error is not None:
            raise error

    def _end(self, phase: MigrationPhase, error: VmmError | None) -> None:
        text = None if error is None else ": ".join(chain(error))
        self.progress.end(phase, text)
        if text is not None:
            logger.error("The migration has ended: %s", text)
        self._events.emit("vm", f"{self._word}-{'finished' if error is None else 'failed'}")
        self._ended.set()

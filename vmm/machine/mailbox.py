"""What waits for the VM owner: commands with their senders, and the wishes of machines."""

from __future__ import annotations

import logging
from enum import Enum
from typing import TYPE_CHECKING

import trio

from vmm.errors import StateError, chain
from vmm.machine.commands import ShutdownVmm

if TYPE_CHECKING:
    from vmm.config.info import PciDeviceInfo
    from vmm.errors import VmmError
    from vmm.machine.commands import Command

logger = logging.getLogger(__name__)

ENDING = "The VMM is ending; start another"


class Wish(Enum):
    """What a machine may ask of its owner."""

    RESET = "reset"
    SHUTDOWN = "shutdown"
    FAILURE = "failure"


class Request:
    """A command, what it gives, and how its sender hears of its end."""

    def __init__(self, command: Command) -> None:
        self.command = command
        self.done = trio.Event()
        self.given: PciDeviceInfo | None = None
        self.error: VmmError | None = None

    def refuse(self) -> None:
        """The VMM ends before the command; one that asks for the end has its wish."""
        if not isinstance(self.command, ShutdownVmm):
            self.error = StateError(ENDING)
        self.end()

    def end(self) -> None:
        """Let the sender hear, and give back what the command still holds."""
        self.command.release()
        self.done.set()


class Guest:
    """One machine's way to its owner; deaf once it has been heard, so a guest cannot flood it."""

    def __init__(self, send: trio.MemorySendChannel[Letter]) -> None:
        self._send = send
        self._heard = False

    @property
    def has_wish(self) -> bool:
        """Whether it has asked for something that has not been done yet."""
        return self._heard

    def request_reset(self) -> None:
        """Have the VM reset."""
        self._wish(Wish.RESET)

    def request_shutdown(self) -> None:
        """Have the VM powered off."""
        self._wish(Wish.SHUTDOWN)

    def failed(self, error: Exception) -> None:
        """Say that the machine has ended by itself."""
        for line in chain(error):
            logger.error("The VM stopped: %s", line)
        logger.debug("The VM stopped", exc_info=error)
        self._heard = False
        self._wish(Wish.FAILURE)

    def _wish(self, wish: Wish) -> None:
        if not self._heard:
            self._heard = True
            self._send.send_nowait((self, wish))


Letter = Request | tuple[Guest, Wish]
"""One of either."""

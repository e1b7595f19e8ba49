"""pvpanic: one register by which a guest says that it has panicked.

A PCI function with a BAR of one byte. Reading it gives the events it knows, writing reports one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

from vmm.pci.bar import Bar, BarKind
from vmm.pci.configuration import COMMAND, Command, Configuration, Identity

if TYPE_CHECKING:
    from vmm.legacy.saved import SavedPvpanic

IDENTITY = Identity(vendor=0x1B36, device=0x0011, class_code=0x08, subclass=0x80, revision=1)
BAR_SIZE = 16
"""Bytes; the least that a memory BAR can have, of which two are registers."""
INITIAL_COMMAND = Command.IO | Command.MEMORY | Command.SERR

PANIC = 1 << 0
CRASH_LOADED = 1 << 1
SUPPORTED = PANIC | CRASH_LOADED


class Events(Protocol):
    """Who is told of what happened."""

    def emit(
        self, source: str, event: str, properties: Mapping[str, str] | None = None
    ) -> None: ...


class Pvpanic:
    """The function and the IoHandler of its BAR; each kind of event is reported once."""

    def __init__(self, id: str, events: Events) -> None:
        self.id = id
        self.bar = Bar(0, BarKind.MEMORY32, BAR_SIZE)
        self.memory: None = None
        self.configuration = Configuration(IDENTITY)
        self.configuration.set(COMMAND, INITIAL_COMMAND.to_bytes(2, "little"))
        self._events = events
        self._reported: set[str] = set()

    def read(self, offset: int, size: int) -> int:
        """The events it knows; zero beside them."""
        return SUPPORTED if offset == 0 else 0

    def write(self, offset: int, size: int, value: int) -> None:
        """Report an event. A guest that goes on writing is not heard again."""
        if offset:
            return
        if value & PANIC:
            event = "panic"
        elif value & CRASH_LOADED:
            event = "crash_loaded"
        else:
            event = "unknown_event"
        if event not in self._reported:
            self._reported.add(event)
            self._events.emit("guest", "panic", {"event": event})

    def save(self) -> SavedPvpanic:
        """Give what a snapshot keeps."""
        from vmm.legacy.saved import SavedPvpanic  # Only now: most VMs never are.

        return SavedPvpanic(reported=tuple(sorted(self._reported)))

    def load(self, state: SavedPvpanic) -> None:
        """Take over what a snapshot kept."""
        self._reported = set(state.reported)

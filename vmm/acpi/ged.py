"""The register of the generic event device: which kinds of event wait for the operating system.

Spec: ACPI 6.5, section 5.6.9; the byte itself is this machine's own.
"""

from __future__ import annotations

from enum import IntFlag
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from vmm.acpi.saved import SavedGed

REGISTER_SIZE = 1


class AcpiNotification(IntFlag):
    """What happened; each is one bit of the register."""

    CPU = 1
    MEMORY = 2
    PCI = 4
    POWER_BUTTON = 8


class EdgeInterrupt(Protocol):
    """An edge-triggered line into the interrupt controller."""

    def raise_edge(self) -> None:
        """Send one edge."""


class Notifier(Protocol):
    """The device, as those that have something to tell see it."""

    def notify(self, notification: AcpiNotification) -> None: ...


class GeneralEventDevice:
    """One byte of pending notifications that a read takes away."""

    def __init__(self, interrupt: EdgeInterrupt) -> None:
        self._interrupt = interrupt
        self._pending = AcpiNotification(0)

    def notify(self, notification: AcpiNotification) -> None:
        """Let the operating system know; what it has not read yet stays pending."""
        self._pending |= notification
        self._interrupt.raise_edge()

    def read(self, offset: int, size: int) -> int:
        """Give the pending bits and clear them; all ones beside the register."""
        if offset != 0:
            return (1 << 8 * size) - 1
        pending, self._pending = self._pending, AcpiNotification(0)
        return int(pending)

    def write(self, offset: int, size: int, value: int) -> None:
        """Ignore it: the register can only be read."""

    def save(self) -> SavedGed:
        """Give what a snapshot keeps."""
        from vmm.acpi.saved import SavedGed  # Only now: most VMs never are.

        return SavedGed(pending=int(self._pending))

    def load(self, state: SavedGed) -> None:
        """Take over what a snapshot kept, and say once more what waits."""
        self._pending = AcpiNotification(state.pending & sum(AcpiNotification))
        if self._pending:
            self._interrupt.raise_edge()

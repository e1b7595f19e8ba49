"""The IOAPIC: 24 pins, each a redirection entry that says which message the pin sends.

The irqchip is split: the LAPICs are in the kernel, and a pin is a GSI whose message is kept here.
Two windows of the page at 0xFEC00000: IOREGSEL selects a register, IOWIN is that register. Only
aligned 4-byte accesses of IOWIN exist; others read zero and write nothing.

Snapshot: the identification, the selected register and the redirection entries.
Spec: Intel 82093AA data sheet, section 3; Intel SDM volume 3, 11.11 (message format). The extended
destination is the guest half of KVM_FEATURE_MSI_EXT_DEST_ID (Linux, virt/kvm/x86/cpuid.rst).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from vmm.errors import ConfigError

if TYPE_CHECKING:
    from vmm.legacy.saved import SavedIoapic

BASE = 0xFEC00000
SIZE = 0x20
PINS = 24

IOREGSEL = 0x00
IOWIN = 0x10
IOWIN_BYTES = 4

REGISTER_ID = 0x00
REGISTER_VERSION = 0x01
REGISTER_ARBITRATION = 0x02
REGISTER_ENTRIES = 0x10

VERSION = (PINS - 1) << 16 | 0x11
ID_BITS = 0x0F00_0000

VECTOR_BITS = 0xFF
DELIVERY_MODE_BITS = 7 << 8
LOGICAL = 1 << 11
DELIVERY_STATUS = 1 << 12
REMOTE_IRR = 1 << 14
LEVEL = 1 << 15
MASKED = 1 << 16
READ_ONLY_BITS = DELIVERY_STATUS | REMOTE_IRR
ENTRY_BITS = 0xFFFF_0000_0001_FFFF
ENTRY_AT_RESET = MASKED

DESTINATION_SHIFT = 56
EXTENDED_DESTINATION_SHIFT = 49
EXTENDED_DESTINATION_BITS = 0x7F

MSI_BASE = 0xFEE0_0000
MSI_DESTINATION_SHIFT = 12
MSI_EXTENDED_DESTINATION_SHIFT = 5
MSI_LOGICAL = 1 << 2
MSI_ASSERT = 1 << 14


class Routes(Protocol):
    """What a pin leads to. Every pin begins masked."""

    def set_route(self, pin: int, address: int, data: int) -> None:
        """Let the pin send this message."""

    def mask(self, pin: int) -> None:
        """Hold the pin's interrupts back."""

    def unmask(self, pin: int) -> None:
        """Let the pin's interrupts through."""


def message_of(entry: int) -> tuple[int, int]:
    """Decode a redirection entry into the address and data of its message.

    Destination bits 14 to 8, in entry bits 55 to 49, go to address bits 11 to 5.
    """
    destination = entry >> DESTINATION_SHIFT & 0xFF
    extended = entry >> EXTENDED_DESTINATION_SHIFT & EXTENDED_DESTINATION_BITS
    address = MSI_BASE | destination << MSI_DESTINATION_SHIFT
    address |= extended << MSI_EXTENDED_DESTINATION_SHIFT
    if entry & LOGICAL:
        address |= MSI_LOGICAL
    data = entry & (VECTOR_BITS | DELIVERY_MODE_BITS)
    if entry & LEVEL:
        data |= LEVEL | MSI_ASSERT
    return address, data


class Ioapic:
    """An IoHandler for the IOAPIC's page, which turns entries into routes."""

    def __init__(self, routes: Routes) -> None:
        self._routes = routes
        self._identification = 0
        self._selected = 0
        self._entries = [ENTRY_AT_RESET] * PINS

    def read(self, offset: int, size: int) -> int:
        """Read the selected register, or which one that is."""
        if offset == IOREGSEL:
            return self._selected
        if offset == IOWIN and size == IOWIN_BYTES:
            return self._read_register(self._selected)
        return 0

    def write(self, offset: int, size: int, value: int) -> None:
        """Select a register, or write the selected one."""
        if offset == IOREGSEL:
            self._selected = value & 0xFF
        elif offset == IOWIN and size == IOWIN_BYTES:
            self._write_register(self._selected, value)

    def mark_delivered(self, pin: int) -> None:
        """Note that a LAPIC has taken the pin's interrupt: a level pin waits for its end."""
        if self._entries[pin] & LEVEL:
            self._entries[pin] |= REMOTE_IRR

    def end_of_interrupt(self, vector: int) -> tuple[int, ...]:
        """Note that the guest has served a vector.

        Returns the level-triggered pins that send it: a line among them that is still asserted
        has to interrupt again.
        """
        ended = tuple(
            pin
            for pin, entry in enumerate(self._entries)
            if entry & LEVEL and entry & VECTOR_BITS == vector
        )
        for pin in ended:
            self._entries[pin] &= ~REMOTE_IRR
        return ended

    def save(self) -> SavedIoapic:
        """Give what a snapshot keeps."""
        from vmm.legacy.saved import SavedIoapic  # Only now: most VMs never are.

        return SavedIoapic(
            identification=self._identification,
            selected=self._selected,
            entries=tuple(self._entries),
        )

    def load(self, state: SavedIoapic) -> None:
        """Take over what a snapshot kept, and set every route by it.

        Raises: ConfigError when the state was not made by an IOAPIC of 24 pins (caller).
        """
        _check_entries(state.entries)
        self._identification = state.identification & ID_BITS
        self._selected = state.selected & 0xFF
        for pin, entry in enumerate(state.entries):
            self._set_entry(pin, entry)

    def _read_register(self, register: int) -> int:
        if register in (REGISTER_ID, REGISTER_ARBITRATION):
            return self._identification
        if register == REGISTER_VERSION:
            return VERSION
        pin, is_high = divmod(register - REGISTER_ENTRIES, 2)
        if not 0 <= pin < PINS:
            return 0
        return self._entries[pin] >> (32 if is_high else 0) & 0xFFFF_FFFF

    def _write_register(self, register: int, value: int) -> None:
        if register == REGISTER_ID:
            self._identification = value & ID_BITS
        pin, is_high = divmod(register - REGISTER_ENTRIES, 2)
        if not 0 <= pin < PINS:
            return
        entry = self._entries[pin]
        if is_high:
            self._set_entry(pin, entry & 0xFFFF_FFFF | value << 32)
            return
        kept = entry & READ_ONLY_BITS
        if not value & LEVEL:
            # An edge pin never waits for an end of interrupt; guests use this to clear a stuck one.
            kept &= ~REMOTE_IRR
        self._set_entry(pin, entry & ~0xFFFF_FFFF | value & ~READ_ONLY_BITS & 0xFFFF_FFFF | kept)

    def _set_entry(self, pin: int, entry: int) -> None:
        """Store an entry and tell the routes what changed."""
        before = self._entries[pin]
        entry &= ENTRY_BITS
        self._entries[pin] = entry
        if entry & MASKED:
            if not before & MASKED:
                self._routes.mask(pin)
            return
        if before & MASKED or message_of(entry) != message_of(before):
            self._routes.set_route(pin, *message_of(entry))
        if before & MASKED:
            self._routes.unmask(pin)


def _check_entries(entries: Sequence[int]) -> None:
    if len(entries) != PINS or not all(0 <= entry < 1 << 64 for entry in entries):
        raise ConfigError(
            f"The saved IOAPIC has {len(entries)} redirection entries; {PINS} of 64 bits are needed"
        )

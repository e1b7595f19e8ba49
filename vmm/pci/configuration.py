"""The configuration space of one PCI function, kept in bytes that a guest reads without an exit.

Nothing happens on a read: every byte always shows what a read has to give. A write passes through a
mask and comes back as events, plain values that the function's owner acts upon.

Spec: PCI Local Bus 3.0, chapter 6; PCI Express 5.0, section 7.5.
"""

from __future__ import annotations

import struct
from enum import IntFlag
from typing import TYPE_CHECKING, NamedTuple

from vmm.errors import ConfigError, InternalError
from vmm.pci.bar import Bar, BarKind

if TYPE_CHECKING:
    from vmm.pci.saved import SavedConfiguration

SIZE = 4096

COMMAND = 0x04
STATUS = 0x06
CAPABILITIES_POINTER = 0x34
INTERRUPT_LINE = 0x3C

_CACHE_LINE_SIZE = 0x0C
_SUBSYSTEM = 0x2C
_FIRST_CAPABILITY = 0x40
_LEGACY_SIZE = 256
_HAS_CAPABILITIES = 1 << 4


class Command(IntFlag):
    """Bits of the command register."""

    IO = 1 << 0
    MEMORY = 1 << 1
    BUS_MASTER = 1 << 2
    PARITY = 1 << 6
    SERR = 1 << 8
    INTX_DISABLE = 1 << 10


_WRITABLE_COMMAND = sum(Command)


class Identity(NamedTuple):
    """What a function says it is."""

    vendor: int
    device: int
    class_code: int
    subclass: int
    programming_interface: int = 0
    revision: int = 0
    subsystem_vendor: int = 0
    subsystem: int = 0


class BarMoved(NamedTuple):
    """A BAR went from one guest address to another; None is nowhere."""

    bar: int
    old: int | None
    new: int | None


class CommandChanged(NamedTuple):
    """The command register has another value."""

    old: Command
    new: Command


class CapabilityWritten(NamedTuple):
    """The guest wrote to writable bytes of a capability, such as MSI-X's control word."""

    id: int
    position: int


Event = BarMoved | CommandChanged | CapabilityWritten


class _Capability(NamedTuple):
    id: int
    position: int
    end: int


class Configuration:
    """A type 0 header, its BARs and its capabilities.

    The bytes are the object's own until ``move_to`` gives them a place.
    """

    def __init__(self, identity: Identity) -> None:
        self._space = memoryview(bytearray(SIZE))
        self._writable = bytearray(SIZE)
        self._bars: list[Bar] = []
        self._capabilities: list[_Capability] = []
        self._next_capability = _FIRST_CAPABILITY
        struct.pack_into("<HH", self._space, 0, identity.vendor, identity.device)
        struct.pack_into(
            "<BBBB",
            self._space,
            8,
            identity.revision,
            identity.programming_interface,
            identity.subclass,
            identity.class_code,
        )
        struct.pack_into(
            "<HH", self._space, _SUBSYSTEM, identity.subsystem_vendor, identity.subsystem
        )
        self._allow(COMMAND, 2, _WRITABLE_COMMAND)
        self._allow(_CACHE_LINE_SIZE, 1, 0xFF)
        self._allow(INTERRUPT_LINE, 1, 0xFF)

    # Building

    def add_bar(self, bar: Bar, address: int) -> None:
        """Place a BAR, and turn on the decoding of its address space.

        Firmware would do both; a kernel that is started directly finds its devices placed.
        Raises: InternalError when its registers are taken or the address does not suit it.
        """
        for other in self._bars:
            if other.covers(bar.offset) or bar.covers(other.offset):
                raise InternalError(f"BAR {bar.index} overlaps BAR {other.index}")
        self._store(bar.offset, bar.length, bar.encode(address))
        self._allow(bar.offset, bar.length, bar.writable)
        self._bars.append(bar)
        self._store(COMMAND, 2, self.command | _enabling(bar))
        for each in self._bars:
            self._decode(each)

    def add_capability(self, id: int, body: bytes, writable: bytes = b"") -> int:
        """Append a capability and give its position.

        ``body`` follows the id and the link. The guest can change the bits set in ``writable``,
        which may be shorter than the body.
        Raises: InternalError when the 256 bytes of the header's page are full.
        """
        position = self._next_capability
        end = position + 2 + len(body)
        if end > _LEGACY_SIZE or len(writable) > len(body):
            raise InternalError(
                f"Capability {id:#x} of {2 + len(body)} bytes does not fit at {position:#x}"
            )
        link = self._capabilities[-1].position + 1 if self._capabilities else CAPABILITIES_POINTER
        self._space[link] = position
        self._space[position] = id
        self._space[position + 2 : end] = body
        self._writable[position + 2 : position + 2 + len(writable)] = writable
        self._store(STATUS, 2, self.read(STATUS, 2) | _HAS_CAPABILITIES)
        self._capabilities.append(_Capability(id, position, end))
        self._next_capability = -(-end // 4) * 4
        return position

    def move_to(self, space: memoryview) -> None:
        """Keep the bytes in ``space`` from now on; it has 4096 bytes and is overwritten.

        The view that held them so far is released, so that what is below it can be unmapped.
        """
        space[:] = self._space
        self._space.release()
        self._space = space

    # Using

    @property
    def command(self) -> Command:
        """The command register."""
        return Command(self.read(COMMAND, 2) & _WRITABLE_COMMAND)

    def read(self, offset: int, size: int) -> int:
        """Give bytes as an unsigned number; ``offset + size`` is at most 4096."""
        return int.from_bytes(self._space[offset : offset + size], "little")

    def set(self, offset: int, data: bytes) -> None:
        """Change bytes on the device's own behalf, whatever the guest may write."""
        self._space[offset : offset + len(data)] = data

    def write(self, offset: int, size: int, value: int) -> list[Event]:
        """Take a guest's write to one register of four bytes; give what it caused.

        Bits that cannot be written keep their value; every ``value`` of ``size`` bytes is allowed.
        """
        mask = int.from_bytes(self._writable[offset : offset + size], "little")
        if not mask:
            return []
        command_before = self.command
        self._store(offset, size, self.read(offset, size) & ~mask | value & mask)
        events: list[Event] = []
        if self.command != command_before:
            events.append(CommandChanged(command_before, self.command))
        for bar in self._bars:
            if bar.covers(offset):
                bar.note_probe(offset, size, value)
            old = bar.address
            if self._decode(bar):
                events.append(BarMoved(bar.index, old, bar.address))
        for capability in self._capabilities:
            if capability.position < offset + size and offset < capability.end:
                events.append(CapabilityWritten(capability.id, capability.position))
        return events

    def save(self) -> SavedConfiguration:
        """Give what a snapshot keeps."""
        from vmm.pci.saved import SavedConfiguration  # Only now: most VMs never are.

        return SavedConfiguration(
            space=bytes(self._space).rstrip(b"\0"),
            probed=tuple(bar.probed for bar in self._bars),
        )

    def load(self, state: SavedConfiguration) -> None:
        """Take over what a snapshot kept; each BAR is then where it says.

        Raises: ConfigError when it is another function's (caller).
        """
        same = slice(0, COMMAND), slice(8, 12), slice(_SUBSYSTEM, _SUBSYSTEM + 4)
        space = state.space.ljust(SIZE, b"\0")
        if (
            len(space) != SIZE
            or len(state.probed) != len(self._bars)
            or any(space[part] != bytes(self._space[part]) for part in same)
        ):
            raise ConfigError(
                f"The saved configuration space begins with {space[:12].hex()} and has "
                f"{len(state.probed)} BARs; the device here is another one: give it the "
                "configuration that it had"
            )
        for bar, probed in zip(self._bars, state.probed, strict=True):
            if probed >= 1 << bar.registers:
                raise ConfigError(
                    f"The saved registers of BAR {bar.index} are being sized by {probed:#x}, and "
                    f"there are {bar.registers} of them, a bit each; the state is not whole"
                )
        for at, allowed in enumerate(self._writable):
            self._space[at] = self._space[at] & ~allowed | space[at] & allowed
        for bar, probed in zip(self._bars, state.probed, strict=True):
            bar.probed = probed
            self._decode(bar)

    def _decode(self, bar: Bar) -> bool:
        raw = self.read(bar.offset, bar.length)
        return bar.decode(raw, bool(self.command & _enabling(bar)))

    def _store(self, offset: int, size: int, value: int) -> None:
        self._space[offset : offset + size] = value.to_bytes(size, "little")

    def _allow(self, offset: int, size: int, mask: int) -> None:
        self._writable[offset : offset + size] = mask.to_bytes(size, "little")


def _enabling(bar: Bar) -> Command:
    return Command.IO if bar.kind is BarKind.IO else Command.MEMORY

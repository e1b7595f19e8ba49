"""One PCI segment: a bus of 32 slots with a function each, over a shadow of its ECAM window.

The shadow is what the guest reads. Where no function is, it holds all ones.

Spec: PCI Express 5.0, section 7.2.2 (ECAM).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from vmm.errors import ConfigError, DuplicateError, InternalError
from vmm.pci.bdf import Bdf
from vmm.pci.configuration import SIZE, Configuration
from vmm.pci.host_bridge import HostBridge

SLOTS = 32
SLOT_STRIDE = 8 * SIZE
"""Bytes of ECAM a slot: room for eight functions, of which the first is used."""
SHADOW_SIZE = SLOTS * SLOT_STRIDE

_ABSENT = b"\xff" * SIZE


class Function(Protocol):
    """What a slot holds."""

    @property
    def configuration(self) -> Configuration:
        """Its configuration space."""

    def write_configuration(self, offset: int, size: int, value: int) -> None:
        """Take a guest's write to one register of four bytes, and act on what it causes."""


class Segment:
    """The slots of one bus, in 1 MiB of shadow that the caller maps for the guest to read.

    Segment 0 has the host bridge in slot 0; the others have none.
    """

    def __init__(self, id: int, shadow: memoryview) -> None:
        if len(shadow) != SHADOW_SIZE:
            raise InternalError(
                f"The shadow of PCI segment {id} has {len(shadow)} bytes; it needs {SHADOW_SIZE}"
            )
        self.id = id
        self._shadow = shadow
        self._functions: dict[int, Function] = {}
        self._reserved: set[int] = set()
        for at in range(0, SHADOW_SIZE, SIZE):
            shadow[at : at + SIZE] = _ABSENT
        if id == 0:
            self.add(HostBridge(), 0)

    def bdf(self, slot: int) -> Bdf:
        """Name the function in a slot."""
        return Bdf(self.id, 0, slot, 0)

    def reserve(self, slot: int) -> None:
        """Keep a slot for a later ``add`` that names it; others are then not given it.

        Raises: ConfigError when there is no such slot, DuplicateError when it is taken.
        """
        if not 0 <= slot < SLOTS:
            raise ConfigError(
                f"PCI slot {slot} of segment {self.id} is not within 0 and {SLOTS - 1}"
            )
        if slot in self._reserved or slot in self._functions:
            raise DuplicateError(f"PCI slot {self.bdf(slot)} is taken; choose another one")
        self._reserved.add(slot)

    def add(self, function: Function, slot: int | None = None) -> Bdf:
        """Put a function in a slot: the one named, reserved before or not, or the lowest free.

        Raises: ConfigError when there is no such slot or none is free, DuplicateError when it holds
        a function.
        """
        if slot is None:
            slot = self._lowest_free()
        elif slot not in self._reserved:
            self.reserve(slot)
        self._reserved.discard(slot)
        self._functions[slot] = function
        function.configuration.move_to(self._page(slot))
        return self.bdf(slot)

    def remove(self, slot: int) -> Function:
        """Empty a slot; its function keeps its bytes.

        Raises: InternalError when it is empty already.
        """
        function = self._functions.pop(slot, None)
        if function is None:
            raise InternalError(f"PCI slot {self.bdf(slot)} is empty; nothing can be removed")
        function.configuration.move_to(memoryview(bytearray(SIZE)))
        self._page(slot)[:] = _ABSENT
        return function

    def close(self) -> None:
        """Empty every slot and release the shadow, so that its memory can be unmapped."""
        for slot in list(self._functions):
            self.remove(slot)
        self._shadow.release()

    def functions(self) -> Iterator[tuple[Bdf, Function]]:
        """Yield what is plugged in, by slot."""
        for slot in sorted(self._functions):
            yield self.bdf(slot), self._functions[slot]

    def read(self, offset: int, size: int) -> int:
        """Give what the guest sees at an offset of the ECAM window; all ones past its end."""
        seen = bytes(self._shadow[offset : offset + size]).ljust(size, b"\xff")
        return int.from_bytes(seen, "little")

    def write(self, offset: int, size: int, value: int) -> None:
        """Hand a guest's write to the function it hits, in pieces of one register each.

        The specification leaves an access wider than a register, or across two, undefined; it is
        taken as several. What hits no function is dropped.
        """
        end = offset + size
        while offset < end:
            piece = min(4 - offset % 4, end - offset)
            slot, register = divmod(offset, SLOT_STRIDE)
            function = self._functions.get(slot)
            if function is not None and register < SIZE:
                function.write_configuration(register, piece, value & ((1 << 8 * piece) - 1))
            offset += piece
            value >>= 8 * piece

    def _page(self, slot: int) -> memoryview:
        return self._shadow[slot * SLOT_STRIDE : slot * SLOT_STRIDE + SIZE]

    def _lowest_free(self) -> int:
        for slot in range(SLOTS):
            if slot not in self._functions and slot not in self._reserved:
                return slot
        raise ConfigError(
            f"All {SLOTS} slots of PCI segment {self.id} are taken; "
            "put the device on another segment"
        )

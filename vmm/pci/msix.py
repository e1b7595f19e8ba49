"""MSI-X: the vector table, the masks, and the array of pending bits.

Sans-I/O: a guest's write comes back as what each touched vector delivers from now on. Who raises a
vector, and what keeps its event while it is masked, is the caller's.

Spec: PCI Local Bus 3.0, section 6.8.2.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, NamedTuple

from vmm.errors import ConfigError, InternalError

if TYPE_CHECKING:
    from vmm.pci.saved import SavedMsix

CAPABILITY_ID = 0x11
ENTRY_SIZE = 16
MAX_VECTORS = 2048
ENABLE = 1 << 15
FUNCTION_MASK = 1 << 14

_MASKED = 1
_ENTRY = struct.Struct("<QII")
_ENTRY_AT_RESET = _ENTRY.pack(0, 0, _MASKED)
# The low two bits of the address are read-only, and of the vector's control word only the mask
# bit exists.
_WRITABLE = _ENTRY.pack(0xFFFF_FFFF_FFFF_FFFC, 0xFFFF_FFFF, _MASKED)


class Message(NamedTuple):
    """What an interrupt writes, and where."""

    address: int
    data: int


class VectorChanged(NamedTuple):
    """A vector delivers another message from now on; None holds its interrupts back."""

    vector: int
    message: Message | None


class Msix:
    """The table of one function, with ``vectors`` entries, all masked, and MSI-X off.

    ``table`` is where its bytes are kept, if a guest is to read them without asking.
    """

    def __init__(self, vectors: int, table: memoryview | None = None) -> None:
        if not 1 <= vectors <= MAX_VECTORS:
            raise InternalError(f"An MSI-X table of {vectors} vectors is not within 1 and 2048")
        self.vectors = vectors
        self._table = memoryview(bytearray(vectors * ENTRY_SIZE)) if table is None else table
        self._table[:] = _ENTRY_AT_RESET * vectors
        self._control = 0
        self._delivered: list[Message | None] = [None] * vectors

    @property
    def is_enabled(self) -> bool:
        """Whether the guest turned MSI-X on."""
        return bool(self._control & ENABLE)

    def capability(self, bar: int, table_offset: int, pba_offset: int) -> tuple[bytes, bytes]:
        """Give the capability's body and which of its bits the guest can write."""
        words = (self.vectors - 1, table_offset | bar, pba_offset | bar)
        return struct.pack("<HII", *words), struct.pack("<H", ENABLE | FUNCTION_MASK)

    def write_control(self, value: int) -> list[VectorChanged]:
        """Take the message control word as it stands after a guest's write."""
        self._control = value & (ENABLE | FUNCTION_MASK)
        return self._changes(range(self.vectors))

    def read_table(self, offset: int, size: int) -> int:
        """Give bytes of the table; zero past its end."""
        return int.from_bytes(self._table[offset : offset + size], "little")

    def write_table(self, offset: int, size: int, value: int) -> list[VectorChanged]:
        """Take a guest's write. Only whole words are defined; others are dropped."""
        if size not in (4, 8) or offset % size or not 0 <= offset < len(self._table):
            return []
        at = slice(offset, offset + size)
        in_entry = offset % ENTRY_SIZE
        mask = int.from_bytes(_WRITABLE[in_entry : in_entry + size], "little")
        self._table[at] = (value & mask).to_bytes(size, "little")
        return self._changes((offset // ENTRY_SIZE,))

    def read_pba(self, offset: int, size: int, is_pending: Callable[[int], bool]) -> int:
        """Give bytes of the pending bit array; ``is_pending`` is asked for each masked vector."""
        bits = 0
        for vector in range(8 * offset, min(8 * (offset + size), self.vectors)):
            if self._delivered[vector] is None and is_pending(vector):
                bits |= 1 << vector - 8 * offset
        return bits

    def reset(self) -> list[VectorChanged]:
        """Mask every vector and turn MSI-X off."""
        self._table[:] = _ENTRY_AT_RESET * self.vectors
        return self.write_control(0)

    def save(self) -> SavedMsix:
        """Give what a snapshot keeps."""
        from vmm.pci.saved import SavedMsix  # Only now: most VMs never are.

        return SavedMsix(control=self._control, table=bytes(self._table))

    def load(self, state: SavedMsix) -> list[VectorChanged]:
        """Take over what a snapshot kept. Raises: ConfigError for another table (caller)."""
        if len(state.table) != len(self._table):
            raise ConfigError(
                f"The saved MSI-X table has {len(state.table)} bytes and the device's has "
                f"{len(self._table)}; give the device the queues that it had"
            )
        for at in range(0, len(self._table), ENTRY_SIZE):
            words = zip(state.table[at : at + ENTRY_SIZE], _WRITABLE, strict=True)
            self._table[at : at + ENTRY_SIZE] = bytes(byte & mask for byte, mask in words)
        return self.write_control(state.control)

    def _changes(self, vectors: Iterable[int]) -> list[VectorChanged]:
        changes = []
        for vector in vectors:
            message = self._message(vector)
            if message != self._delivered[vector]:
                self._delivered[vector] = message
                changes.append(VectorChanged(vector, message))
        return changes

    def _message(self, vector: int) -> Message | None:
        address, data, control = _ENTRY.unpack_from(self._table, vector * ENTRY_SIZE)
        is_masked = control & _MASKED or self._control & FUNCTION_MASK
        return None if is_masked or not self.is_enabled else Message(address, data)

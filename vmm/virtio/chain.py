"""Descriptor chains: what a driver hands over at once, as views of guest memory.

Source: VIRTIO 1.2, sections 2.6 to 2.8.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vmm.errors import GuestError

CHAIN_MAX = 1024
"""The most descriptors, and the most pieces of host memory, one chain may have."""

CHAIN_BYTES_MAX = (1 << 32) - 1
"""The most bytes, readable and writable together, one chain may have."""

DESC = struct.Struct("<QIHH")
"""Address, length, then flags and next (split) or buffer id and flags (packed)."""

DESC_NEXT = 0x1
DESC_WRITE = 0x2
DESC_INDIRECT = 0x4


class Chain(Protocol):
    """A request of the driver's: bytes to read, then room to write an answer to.

    The views are the guest's own memory: it may change under them, so copy once and judge the copy.
    ``read`` and ``write`` go on where their last call stopped.
    """

    @property
    def head(self) -> int:
        """What identifies the chain among those in flight."""

    @property
    def readable(self) -> tuple[memoryview, ...]:
        """The pieces that the device may read, in order; none is empty."""

    @property
    def writable(self) -> tuple[memoryview, ...]:
        """The pieces that the device may write, in order; none is empty."""

    @property
    def readable_bytes(self) -> int:
        """How many bytes ``readable`` has in all."""

    @property
    def writable_bytes(self) -> int:
        """How many bytes ``writable`` has in all."""

    def read(self, limit: int) -> bytes:
        """Copy the next readable bytes, ``limit`` at most; fewer only when there are no more."""

    def write(self, data: bytes | bytearray | memoryview) -> int:
        """Write the next bytes; return how many there was room for."""


class RingMemory(Protocol):
    """Guest RAM as a ring in Python needs it."""

    def leading(self, gpa: int, size: int) -> memoryview | None:
        """View the part of a guest range that lies in the region where it begins.

        None when its first byte is not RAM. Both numbers are the guest's.
        """


class ViewChain:
    """A chain made of views; see ``Chain``."""

    def __init__(
        self, head: int, readable: tuple[memoryview, ...], writable: tuple[memoryview, ...]
    ) -> None:
        self.head = head
        self.readable = readable
        self.writable = writable
        self.readable_bytes = sum(map(len, readable))
        self.writable_bytes = sum(map(len, writable))
        self._read_at = 0
        self._write_at = 0

    def read(self, limit: int) -> bytes:
        """Copy the next readable bytes, ``limit`` at most; fewer only when there are no more."""
        data = b"".join(span(self.readable, self._read_at, limit))
        self._read_at += len(data)
        return data

    def write(self, data: bytes | bytearray | memoryview) -> int:
        """Write the next bytes; return how many there was room for."""
        done = 0
        for piece in span(self.writable, self._write_at, len(data)):
            piece[:] = data[done : done + len(piece)]
            done += len(piece)
        self._write_at += done
        return done


def span(pieces: Sequence[memoryview], offset: int, size: int) -> list[memoryview]:
    """The parts of pieces that cover ``size`` bytes from ``offset`` on, as far as there are any."""
    found = []
    for piece in pieces:
        if size <= 0:
            break
        if offset < len(piece):
            part = piece[offset : offset + size]
            found.append(part)
            size -= len(part)
        offset = max(0, offset - len(piece))
    return found


class ChainBuilder:
    """Collects what the descriptors of one chain describe, within the limits.

    ``broken`` records how the guest broke the ring and makes the error to raise. It counts what is
    added, so every walk comes to an end.
    """

    def __init__(
        self, memory: RingMemory, broken: Callable[[str], GuestError], *, has_indirect: bool
    ) -> None:
        self._memory = memory
        self._broken = broken
        self._has_indirect = has_indirect
        self._descriptors = 0
        self._bytes = 0
        self._readable: list[memoryview] = []
        self._writable: list[memoryview] = []
        self._is_in_writable = False

    def add(self, gpa: int, length: int, *, is_writable: bool) -> None:
        """Add one buffer. One without bytes has no address to check; its direction counts.

        Raises: GuestError (guest).
        """
        self._descriptors += 1
        if self._descriptors > CHAIN_MAX:
            raise self._too_long()
        if self._is_in_writable and not is_writable:
            raise self._broken(f"the readable buffer at {gpa:#x} follows a writable one")
        self._is_in_writable = is_writable
        self._bytes += length
        if self._bytes > CHAIN_BYTES_MAX:
            raise self._broken(f"a chain has {self._bytes} bytes; it may have {CHAIN_BYTES_MAX}")
        pieces = self._writable if is_writable else self._readable
        while length:
            piece = self._memory.leading(gpa, length)
            if piece is None:
                raise self._broken(f"a chain uses address {gpa:#x}, which is not RAM")
            if len(self._readable) + len(self._writable) == CHAIN_MAX:
                raise self._too_long()
            pieces.append(piece)
            gpa += len(piece)
            length -= len(piece)

    def table(self, gpa: int, size: int) -> memoryview:
        """Find an indirect table of ``size`` bytes. Raises: GuestError (guest)."""
        if not self._has_indirect:
            raise self._broken(f"the indirect table at {gpa:#x} was not negotiated")
        if size == 0 or size % DESC.size:
            raise self._broken(f"an indirect table has {size} bytes; it must be a multiple of 16")
        table = self._memory.leading(gpa, size)
        if table is None or len(table) < size:
            raise self._broken(f"a chain uses address {gpa:#x}, which is not RAM")
        return table

    def finish(self, head: int) -> ViewChain:
        """Return the chain."""
        return ViewChain(head, tuple(self._readable), tuple(self._writable))

    def _too_long(self) -> GuestError:
        return self._broken(f"a chain has more than {CHAIN_MAX} descriptors or pieces of memory")

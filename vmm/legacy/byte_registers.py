"""Accesses to devices whose registers are one byte wide.

The ISA bus splits a wider access into one byte access a port, the lowest first.
"""

from __future__ import annotations

from collections.abc import Callable

NOBODY = 0xFF
"""What a read of a port that nobody answers gives."""


def read_bytes(read_byte: Callable[[int], int], offset: int, size: int) -> int:
    """Join ``size`` byte reads from ``offset`` on into one little-endian value."""
    return sum(read_byte(offset + at) << 8 * at for at in range(size))


def write_bytes(write_byte: Callable[[int, int], None], offset: int, size: int, value: int) -> None:
    """Split one little-endian value into ``size`` byte writes from ``offset`` on."""
    for at in range(size):
        write_byte(offset + at, value >> 8 * at & 0xFF)

"""The framing of gdb's remote protocol: packets, acknowledgements, and the interrupt byte.

Source: Debugging with GDB, appendix "gdb Remote Serial Protocol", "Overview".
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum
from typing import Final

MOST_BYTES: Final = 1 << 16
"""What a packet may have; one that is longer is dropped."""

ESCAPED: Final = b"#$*}"
ESCAPE: Final = 0x7D
FLIP: Final = 0x20


class Signal(Enum):
    """What comes between packets."""

    ACK = b"+"
    NAK = b"-"
    INTERRUPT = b"\x03"


class Damaged(Enum):
    """What came instead of a packet, and is to be sent again."""

    SUM = "its sum is wrong"
    LENGTH = "it is too long"


class Decoder:
    """Takes bytes as they come and gives whole packets, and what comes between."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes | Signal | Damaged]:
        """Give what is complete now."""
        self._buffer += data
        while self._buffer:
            if self._buffer[0] != ord("$"):
                byte = bytes(self._buffer[:1])
                del self._buffer[0]
                if byte in (each.value for each in Signal):
                    yield Signal(byte)
                continue
            end = self._buffer.find(b"#")
            if end < 0 or len(self._buffer) < end + 3:
                if len(self._buffer) > MOST_BYTES:
                    self._buffer.clear()
                    yield Damaged.LENGTH
                return
            body, digits = bytes(self._buffer[1:end]), bytes(self._buffer[end + 1 : end + 3])
            del self._buffer[: end + 3]
            yield unescape(body) if digits.lower() == _sum(body) else Damaged.SUM


def encode(body: bytes) -> bytes:
    """Make a packet."""
    escaped = escape(body)
    return b"$" + escaped + b"#" + _sum(escaped)


def escape(body: bytes) -> bytes:
    """Write the bytes that mean something to the framing as two."""
    return b"".join(
        bytes((ESCAPE, byte ^ FLIP)) if byte in ESCAPED else bytes((byte,)) for byte in body
    )


def unescape(body: bytes) -> bytes:
    """Undo ``escape``; an escape that nothing follows is left out."""
    if ESCAPE not in body:
        return body
    found, bytes_of = bytearray(), iter(body)
    for byte in bytes_of:
        if byte == ESCAPE:
            found += bytes(each ^ FLIP for each in [next(bytes_of, -1)] if each >= 0)
        else:
            found.append(byte)
    return bytes(found)


def _sum(body: bytes) -> bytes:
    return b"%02x" % (sum(body) & 0xFF)

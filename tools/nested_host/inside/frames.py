"""The protocol between the two sides of the nested host: frames on one byte stream, sans-I/O.

A frame is a header (channel u32, kind u8, payload length u32, all big-endian) and a payload.
Channel 0 carries the session itself; every command has a channel of its own. Both sides of the
virtio-serial port speak it, and so do the clients of a host that stays up.
"""

from __future__ import annotations

import json
import struct
from enum import IntEnum
from typing import Any, NamedTuple

HEADER = struct.Struct("!IBI")
MAX_PAYLOAD_BYTES = 1 << 20
CHUNK_BYTES = 1 << 16
SESSION = 0


class Kind(IntEnum):
    """What a frame says; the comment gives the payload."""

    READY = 0  # agent to host: JSON, facts of the machine inside
    MOUNT = 1  # host to agent: JSON, the shares to mount and the time of day
    MOUNTED = 2  # agent to host: empty
    RUN = 3  # host to agent: JSON, a command
    STDIN = 4  # host to agent: bytes; empty closes it
    STDOUT = 5  # agent to host: bytes
    STDERR = 6  # agent to host: bytes
    SIGNAL = 7  # host to agent: JSON, a signal number
    RESIZE = 8  # host to agent: JSON, [rows, columns]
    EXIT = 9  # agent to host: JSON, an exit code, or minus the signal that killed the command
    FAILED = 10  # either way: JSON, why what was asked cannot be done
    POWER_OFF = 11  # host to agent, or client to a host that stays up: empty
    WAKE = 12  # host to agent: empty; have every processor take its interrupts


class Frame(NamedTuple):
    """One message."""

    channel: int
    kind: Kind
    payload: bytes = b""

    def json(self) -> Any:  # noqa: ANN401 - JSON is whatever it is
        """Return the payload as the JSON value it is."""
        return json.loads(self.payload)


class ProtocolError(ValueError):
    """The peer sent something that is no frame."""


def encode(frame: Frame) -> bytes:
    """Return the bytes of one frame."""
    return HEADER.pack(frame.channel, frame.kind, len(frame.payload)) + frame.payload


def encode_json(channel: int, kind: Kind, value: object) -> bytes:
    """Return the bytes of one frame whose payload is JSON."""
    return encode(Frame(channel, kind, json.dumps(value).encode()))


class FrameDecoder:
    """Turns a byte stream, in whatever pieces it arrives, into frames."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[Frame]:
        """Take bytes and return the frames they complete. Raises ProtocolError: the peer's."""
        self._buffer += data
        frames = []
        while len(self._buffer) >= HEADER.size:
            channel, kind, size = HEADER.unpack_from(self._buffer)
            if size > MAX_PAYLOAD_BYTES:
                raise ProtocolError(f"A frame of {size} bytes is over {MAX_PAYLOAD_BYTES} bytes.")
            end = HEADER.size + size
            if len(self._buffer) < end:
                break
            try:
                frames.append(Frame(channel, Kind(kind), bytes(self._buffer[HEADER.size : end])))
            except ValueError as error:
                raise ProtocolError(f"{kind} is no kind of frame.") from error
            del self._buffer[:end]
        return frames

"""The wire format of a live migration, and what a receiver accepts in which order. Sans-I/O.

The source sends requests of 16 bytes, each with a payload; the destination answers each with a
response of 16 bytes. Numbers are little-endian. The bytes of guest memory that follow a Memory
request's table are not counted in its length.

Spec: Cloud Hypervisor migration protocol, version 0.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from enum import Enum, IntEnum
from typing import NamedTuple

from vmm.errors import PeerError

VERSION = 0
"""What a sender says it speaks, and the newest that a receiver accepts."""

HEADER_BYTES = 16
ROLE_BYTES = 2
RANGE_BYTES = 16
SLOT_BYTES = 4

MOST_RANGES = 1 << 14
"""Entries of one Memory request's table."""
MOST_CHUNK_BYTES = 64 << 20
"""Guest memory that one Memory request of ours brings; others may bring more."""
MOST_CONNECTIONS = 128
"""Sockets beside the first."""

_REQUEST = struct.Struct("<HHIQ")
_RESPONSE = struct.Struct("<HHIQ")


class Command(IntEnum):
    """What a request asks for."""

    INVALID = 0
    START = 1
    CONFIG = 2
    STATE = 3
    MEMORY = 4
    COMPLETE = 5
    ABANDON = 6
    MEMORY_FD = 7
    COMPLETE_PAUSED = 8
    PAGE_FAULT = 9


class Status(IntEnum):
    """What became of a request."""

    INVALID = 0
    OK = 1
    ERROR = 2


class Role(IntEnum):
    """What a socket beside the first is for: the two bytes that it begins with."""

    INVALID = 0
    MEMORY = 1
    FAULT = 2


LENGTHS: Mapping[Command, range] = {
    Command.START: range(1),
    Command.CONFIG: range(1, (16 << 20) + 1),
    Command.STATE: range(1, (64 << 20) + 1),
    Command.MEMORY: range(RANGE_BYTES, RANGE_BYTES * MOST_RANGES + 1, RANGE_BYTES),
    Command.COMPLETE: range(1),
    Command.ABANDON: range(1),
    Command.MEMORY_FD: range(SLOT_BYTES, SLOT_BYTES + 1),
    Command.COMPLETE_PAUSED: range(1),
    Command.PAGE_FAULT: range(RANGE_BYTES, RANGE_BYTES + 1),
}
"""How long, in bytes, the payload of each request may be."""


class Request(NamedTuple):
    """One request's header; ``length`` is that of its payload in bytes."""

    command: Command
    length: int = 0
    version: int = 0

    def encode(self) -> bytes:
        """Give its 16 bytes."""
        return _REQUEST.pack(self.command, self.version, 0, self.length)

    @classmethod
    def decode(cls, data: bytes) -> Request:
        """Read 16 bytes. Raises: PeerError for what cannot be.

        Behind its version, a Start may have anything, as newer senders may; others have zeros.
        """
        number, version, reserved, length = _REQUEST.unpack(data)
        lengths = LENGTHS.get(number)
        if lengths is None:
            raise PeerError(f"The source sent command {number}, which this version does not know")
        command = Command(number)
        if length not in lengths:
            raise PeerError(
                f"The source sent {command.name} with {length} bytes; it may have "
                f"{lengths[0]} to {lengths[-1]}, in steps of {lengths.step}"
            )
        if command is not Command.START and (version or reserved):
            raise PeerError(
                f"The source sent {command.name} with {data[2:8].hex()} where it must have zeros"
            )
        return cls(command, length, version)


class Response(NamedTuple):
    """One response's header; ``length`` is that of what follows it, in bytes."""

    status: Status
    length: int = 0

    def encode(self) -> bytes:
        """Give its 16 bytes."""
        return _RESPONSE.pack(self.status, 0, 0, self.length)

    @classmethod
    def decode(cls, data: bytes) -> Response:
        """Read 16 bytes. Raises: PeerError for what is neither Ok nor Error."""
        number, _, _, length = _RESPONSE.unpack(data)
        if number not in (Status.OK, Status.ERROR):
            raise PeerError(f"The destination answered with status {number}; it may be 1 or 2")
        return cls(Status(number), length)


def encode_role(role: Role) -> bytes:
    """The first bytes of a socket beside the first."""
    return role.to_bytes(ROLE_BYTES, "little")


def decode_role(data: bytes) -> Role:
    """Read them. Raises: PeerError for a role that is none."""
    number = int.from_bytes(data, "little")
    if number not in (Role.MEMORY, Role.FAULT):
        raise PeerError(f"A connection says that its role is {number}; it may be 1 or 2")
    return Role(number)


class Stage(Enum):
    """How far a receiver is."""

    ESTABLISHED = "connected"
    STARTED = "started"
    FDS_RECEIVED = "given memory"
    CONFIGURED = "configured"
    STATE_RECEIVED = "given the state"
    COMPLETED = "completed"
    ABORTED = "aborted"


_NEXT: Mapping[tuple[Stage, Command], Stage] = {
    (Stage.ESTABLISHED, Command.START): Stage.STARTED,
    (Stage.STARTED, Command.MEMORY_FD): Stage.FDS_RECEIVED,
    (Stage.FDS_RECEIVED, Command.MEMORY_FD): Stage.FDS_RECEIVED,
    (Stage.STARTED, Command.CONFIG): Stage.CONFIGURED,
    (Stage.FDS_RECEIVED, Command.CONFIG): Stage.CONFIGURED,
    (Stage.CONFIGURED, Command.MEMORY): Stage.CONFIGURED,
    (Stage.CONFIGURED, Command.STATE): Stage.STATE_RECEIVED,
    (Stage.STATE_RECEIVED, Command.COMPLETE): Stage.COMPLETED,
    (Stage.STATE_RECEIVED, Command.COMPLETE_PAUSED): Stage.COMPLETED,
}


class Receiver:
    """The order of requests on the first connection; those beside it bring memory alone."""

    def __init__(self) -> None:
        self.stage = Stage.ESTABLISHED

    def accept(self, request: Request) -> None:
        """Take a request into account.

        Raises: PeerError when it must not come now, or is of a version not spoken here; nothing is
        accepted any more then.
        """
        stage, self.stage = self.stage, Stage.ABORTED
        if request.command is Command.ABANDON:
            raise PeerError("The source gave the migration up")
        after = _NEXT.get((stage, request.command))
        if after is None:
            raise PeerError(
                f"The source sent {request.command.name} when the migration was {stage.value}"
            )
        if request.command is Command.START and request.version > VERSION:
            raise PeerError(
                f"The source speaks version {request.version} of the migration protocol and this "
                f"VMM up to {VERSION}; use VMMs of the same version"
            )
        self.stage = after

    def accept_beside(self, request: Request) -> None:
        """Take a request of a connection beside the first. Raises: PeerError as ``accept`` does."""
        if request.command is not Command.MEMORY or self.stage is not Stage.CONFIGURED:
            stage, self.stage = self.stage, Stage.ABORTED
            raise PeerError(
                f"A connection beside the first sent {request.command.name} when the migration was "
                f"{stage.value}; it may bring memory after the configuration"
            )

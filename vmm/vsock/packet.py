"""Packets of a vsock device: a header of 44 bytes, and after it the bytes of a stream.

Spec: Virtio 1.2, section 5.10.6.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import Final, NamedTuple

_LAYOUT: Final = struct.Struct("<QQIIIHHIII")
HEADER_BYTES: Final = _LAYOUT.size
PAYLOAD_LIMIT: Final = 64 << 10
"""Bytes of a stream in one packet, at most; what Linux has as its limit."""

HOST_CID: Final = 2
STREAM: Final = 1
"""The one type of socket here, section 5.10.6.2."""


class Op(IntEnum):
    """What a packet is about."""

    REQUEST = 1
    RESPONSE = 2
    RST = 3
    SHUTDOWN = 4
    RW = 5
    CREDIT_UPDATE = 6
    CREDIT_REQUEST = 7


class Closed:
    """Flags of a SHUTDOWN: what its sender will not do any more.

    Plain numbers: every packet asks for some, and an IntFlag takes a microsecond for it.
    """

    RECEIVE: Final = 1
    SEND: Final = 2
    BOTH: Final = 3


class Header(NamedTuple):
    """The header, field by field; any of them may be anything when the guest made it."""

    src_cid: int
    dst_cid: int
    src_port: int
    dst_port: int
    length: int
    type: int
    op: int
    flags: int = 0
    buf_alloc: int = 0
    fwd_cnt: int = 0

    @classmethod
    def decode(cls, data: bytes) -> Header:
        """Read one from exactly its bytes."""
        return cls._make(_LAYOUT.unpack(data))

    def encode(self) -> bytes:
        """Write it as its bytes."""
        return _LAYOUT.pack(*self)

    def refusal(self) -> Header:
        """The RST that answers it."""
        return Header(
            self.dst_cid, self.src_cid, self.dst_port, self.src_port, 0, self.type, Op.RST
        )

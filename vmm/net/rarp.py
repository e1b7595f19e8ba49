"""The packet by which a network learns where a station is now that has moved. Sans-I/O.

A reverse ARP request that nobody answers, from the station's address to all: switches on its way
note the port that it came by. Source: RFC 903.
"""

from __future__ import annotations

import struct
from typing import Final

BROADCAST: Final = b"\xff" * 6
ETHERTYPE: Final = 0x8035
SMALLEST: Final = 60
"""Bytes of an Ethernet frame, without its checksum."""

_REQUEST = struct.Struct(">HHBBH6s4s6s4s")


def announcement(mac: bytes) -> bytes:
    """The frame for a station's address."""
    ask_reverse, no_address = 3, bytes(4)
    request = _REQUEST.pack(1, 0x0800, 6, 4, ask_reverse, mac, no_address, mac, no_address)
    return (BROADCAST + mac + ETHERTYPE.to_bytes(2) + request).ljust(SMALLEST, b"\0")

"""The header that every system description table begins with, and its checksum.

Spec: ACPI 6.5, section 5.2.6.
"""

from __future__ import annotations

import struct

HEADER_SIZE = 36
OEM_ID = b"CLOUDH"

_OEM_REVISION = 1
_CREATOR_ID = b"TVMM"
_CREATOR_REVISION = 1


def checksum(data: bytes | bytearray) -> int:
    """Give the byte that makes the sum of all bytes, with it added, a multiple of 256."""
    return -sum(data) & 0xFF


def sdt(signature: bytes, revision: int, body: bytes, oem_table_id: bytes) -> bytes:
    """Put a header with length and checksum before a table's body.

    ``signature`` has 4 bytes; ``oem_table_id`` up to 8, padded with spaces.
    """
    header = struct.pack(
        "<4sIBB6s8sI4sI",
        signature,
        HEADER_SIZE + len(body),
        revision,
        0,
        OEM_ID,
        oem_table_id.ljust(8),
        _OEM_REVISION,
        _CREATOR_ID,
        _CREATOR_REVISION,
    )
    table = bytearray(header + body)
    table[9] = checksum(table)
    return bytes(table)

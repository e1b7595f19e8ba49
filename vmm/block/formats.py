"""Which format a disk image has, by its content and never by its name.

Sources: the QCOW2, VHD (version 1.0), VHDX (version 1.00) and VMDK (version 5.0) specifications.
"""

from __future__ import annotations

import struct
from enum import StrEnum
from typing import Final

HEAD_BYTES: Final = 512
"""How much of an image's beginning ``detect`` looks at."""

TAIL_BYTES: Final = 512
"""How much of its end."""

_QCOW2 = b"QFI\xfb"
_VHD_COOKIE = b"conectix"
_VHD_TYPE_AT = 60
_VHD_FIXED = 2
_VHDX = b"vhdxfile"
_VMDK = b"# Disk DescriptorFile"


class Format(StrEnum):
    """A format, by the name that ``image_type`` has for it."""

    QCOW2 = "Qcow2"
    FIXED_VHD = "FixedVhd"
    VHDX = "Vhdx"
    FLAT_VMDK = "FlatVmdk"
    RAW = "Raw"


def detect(head: bytes, tail: bytes) -> Format:
    """Tell a format from an image's first and last bytes; what is nothing else is raw."""
    if head.startswith(_QCOW2):
        return Format.QCOW2
    if tail.startswith(_VHD_COOKIE) and len(tail) == TAIL_BYTES:
        (kind,) = struct.unpack_from(">I", tail, _VHD_TYPE_AT)
        if kind == _VHD_FIXED:
            return Format.FIXED_VHD
    if head.startswith(_VHDX):
        return Format.VHDX
    if head.lstrip(b"\n").startswith(_VMDK):
        return Format.FLAT_VMDK
    return Format.RAW

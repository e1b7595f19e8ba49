"""The numbers and structures of the IOMMU device. Spec: Virtio 1.2, section 5.13."""

from __future__ import annotations

import struct
from enum import IntEnum, IntFlag
from typing import Final


class IommuFeature(IntFlag):
    """Section 5.13.3."""

    INPUT_RANGE = 1 << 0
    MAP_UNMAP = 1 << 2
    PROBE = 1 << 4
    BYPASS_CONFIG = 1 << 6


CONFIG: Final = struct.Struct("<QQQIIIB3x")
"""Page sizes, first and last address, first and last domain, bytes of properties, bypass."""
BYPASS_OFFSET: Final = 36


class Request(IntEnum):
    """Types of request, section 5.13.6."""

    ATTACH = 1
    DETACH = 2
    MAP = 3
    UNMAP = 4
    PROBE = 5


ATTACH: Final = struct.Struct("<4xIII4s")
"""The type, then domain, endpoint, flags, reserved."""
DETACH: Final = struct.Struct("<4xII8s")
"""The type, then domain, endpoint, reserved."""
MAP: Final = struct.Struct("<4xIQQQI")
"""The type, then domain, first and last address, the guest's address, flags."""
UNMAP: Final = struct.Struct("<4xIQQ4s")
"""The type, then domain, first and last address, reserved."""
PROBE: Final = struct.Struct("<4xI64s")
"""The type, then endpoint, reserved."""
LAYOUTS: Final[dict[int, struct.Struct]] = {
    Request.ATTACH: ATTACH,
    Request.DETACH: DETACH,
    Request.MAP: MAP,
    Request.UNMAP: UNMAP,
    Request.PROBE: PROBE,
}
TAIL: Final = struct.Struct("<B3x")


class Outcome(IntEnum):
    """The status at the end of an answer, section 5.13.6.1."""

    OK = 0
    UNSUPP = 2
    INVAL = 4
    RANGE = 5
    NOENT = 6
    NOMEM = 8


ATTACH_BYPASS: Final = 1 << 0
"""A flag of ATTACH: the domain has all of memory, and no mappings."""
MAP_READ: Final = 1 << 0
MAP_WRITE: Final = 1 << 1

RESERVED_MEMORY: Final = 1
RESERVED_MSI: Final = 1
PROPERTY: Final = struct.Struct("<HHB3xQQ")
"""A range of reserved memory, section 5.13.6.7.1: type, bytes after the length, kind, range."""
MSI_FIRST: Final = 0xFEE0_0000
MSI_LAST: Final = 0xFEEF_FFFF
"""What a device writes there are interrupts, which are not translated."""


class FaultReason(IntEnum):
    """Section 5.13.6.8."""

    DOMAIN = 1
    MAPPING = 2


FAULT: Final = struct.Struct("<B3xII4xQ")
"""Reason, flags, endpoint, address."""
FAULT_ADDRESS: Final = 1 << 8

"""VIOT: which PCI functions are behind the virtio-iommu, and where that is.

Spec: ACPI 6.5, section 5.2.34.
"""

from __future__ import annotations

import struct

from vmm.acpi.machine import EndpointRange, Iommu
from vmm.acpi.sdt import HEADER_SIZE, sdt

_REVISION = 0
_COUNT = struct.Struct("<HH8x")
_FIRST_NODE = HEADER_SIZE + _COUNT.size
_PCI_RANGE, _PCI_IOMMU = 1, 3


def viot(iommu: Iommu) -> bytes:
    """Build VIOT; all ranges lead to its first node, the IOMMU."""
    own = struct.pack("<BxHHH8x", _PCI_IOMMU, 16, iommu.bdf.segment, int(iommu.bdf))
    nodes = [own, *(_range(each) for each in iommu.ranges)]
    return sdt(
        b"VIOT", _REVISION, _COUNT.pack(len(nodes), _FIRST_NODE) + b"".join(nodes), b"CHVIOT"
    )


def _range(behind: EndpointRange) -> bytes:
    segment, first, last = behind
    return struct.pack(
        "<BxHIHHHHH6x",
        _PCI_RANGE,
        24,
        segment << 16 | first,
        segment,
        segment,
        first,
        last,
        _FIRST_NODE,
    )

"""MCFG: where each PCI segment's configuration space is mapped.

Spec: PCI Firmware Specification 3.3, section 4.1.2.
"""

from __future__ import annotations

import struct

from vmm.acpi.machine import Machine
from vmm.acpi.sdt import sdt

_REVISION = 1


def mcfg(machine: Machine) -> bytes:
    """Build MCFG: one entry a segment, each with bus 0 alone."""
    entries = b"".join(
        struct.pack("<QHBBI", segment.ecam.base, segment.id, 0, 0, 0)
        for segment in machine.segments
    )
    return sdt(b"MCFG", _REVISION, bytes(8) + entries, b"CHMCFG")

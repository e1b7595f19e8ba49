"""SRAT: which memory, processors and devices are near each other.

Spec: ACPI 6.5, section 5.2.16.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from vmm.acpi.machine import Machine, NumaNode
from vmm.acpi.sdt import sdt

_REVISION = 3
_HEADER = struct.pack("<IQ", 1, 0)  # Both reserved; the first has to be 1.
_ENABLED = 1 << 0
_HOT_PLUGGABLE = 1 << 1
_MEMORY, _X2APIC, _GENERIC_INITIATOR = 1, 2, 5
_PCI_HANDLE = 1


def srat(machine: Machine) -> bytes:
    """Build SRAT; the proximity domain of a node is its id."""
    entries = b"".join(entry for node in machine.nodes for entry in _entries(node))
    return sdt(b"SRAT", _REVISION, _HEADER + entries, b"CHSRAT")


def _entries(node: NumaNode) -> Iterator[bytes]:
    for spans, flags in ((node.memory, _ENABLED), (node.room, _ENABLED | _HOT_PLUGGABLE)):
        for base, size in spans:
            yield struct.pack("<BBIHQQIIQ", _MEMORY, 40, node.id, 0, base, size, 0, flags, 0)
    for apic_id in node.apic_ids:
        yield struct.pack("<BBHIIIII", _X2APIC, 24, 0, node.id, apic_id, _ENABLED, 0, 0)
    for bdf in node.initiators:
        handle = struct.pack("<HH12x", bdf.segment, int(bdf))
        yield struct.pack(
            "<BBBBI16sII", _GENERIC_INITIATOR, 32, 0, _PCI_HANDLE, node.id, handle, _ENABLED, 0
        )

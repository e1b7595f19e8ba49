"""SLIT: how far the NUMA nodes are from each other.

Spec: ACPI 6.5, section 5.2.17.
"""

from __future__ import annotations

import struct

from vmm.acpi.machine import Machine
from vmm.acpi.sdt import sdt

LOCAL = 10
"""How far a node is from itself."""
REMOTE = 20
"""How far any two nodes are that nothing was said about."""

_REVISION = 1


def slit(machine: Machine) -> bytes:
    """Build SLIT, a row and a column for each proximity domain up to the highest node's.

    What one node says of another counts in both directions, unless that says something else.
    """
    said = {
        (node.id, other): distance
        for node in machine.nodes
        for other, distance in node.distances.items()
    }
    count = 1 + max(node.id for node in machine.nodes)
    matrix = bytes(
        LOCAL if row == column else said.get((row, column), said.get((column, row), REMOTE))
        for row in range(count)
        for column in range(count)
    )
    return sdt(b"SLIT", _REVISION, struct.pack("<Q", count) + matrix, b"CHSLIT")

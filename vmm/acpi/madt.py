"""APIC, the interrupt controllers: one x2APIC a possible vCPU, one I/O APIC.

Spec: ACPI 6.5, section 5.2.12.
"""

from __future__ import annotations

import struct

from vmm.acpi.machine import COM1_IRQ, Machine
from vmm.acpi.sdt import sdt

LOCAL_APIC_ADDRESS = 0xFEE0_0000
IO_APIC_ADDRESS = 0xFEC0_0000

_REVISION = 5
ENABLED = 1 << 0
_ONLINE_CAPABLE = 1 << 1


def madt(machine: Machine) -> bytes:
    """Build APIC."""
    entries = b"".join(
        x2apic(index, apic_id, _ONLINE_CAPABLE | (ENABLED if index < machine.boot_vcpus else 0))
        for index, apic_id in enumerate(machine.apic_ids)
    )
    body = struct.pack("<II", LOCAL_APIC_ADDRESS, 0) + entries + _io_apic() + _override()
    return sdt(b"APIC", _REVISION, body, b"CHMADT")


def x2apic(index: int, apic_id: int, flags: int) -> bytes:
    """Build the entry of one vCPU."""
    return struct.pack("<BBHIII", 9, 16, 0, apic_id, flags, index)


def _io_apic() -> bytes:
    identifier = first_gsi = 0
    return struct.pack("<BBBBII", 1, 12, identifier, 0, IO_APIC_ADDRESS, first_gsi)


def _override() -> bytes:
    isa_bus = conforming = 0
    return struct.pack("<BBBBIH", 2, 10, isa_bus, COM1_IRQ, COM1_IRQ, conforming)

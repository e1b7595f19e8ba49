"""All ACPI tables of a machine as one block of bytes, from the RSDP on.

The tables follow each other without gaps: RSDP, DSDT, FACP, APIC, MCFG, SRAT, SLIT, VIOT, XSDT. A
new table is one line in ``_described``.

Spec: ACPI 6.5, sections 5.2.5 (RSDP) and 5.2.8 (XSDT).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from vmm.acpi.dsdt import dsdt
from vmm.acpi.fadt import fadt
from vmm.acpi.machine import Machine
from vmm.acpi.madt import madt
from vmm.acpi.mcfg import mcfg
from vmm.acpi.sdt import OEM_ID, checksum, sdt
from vmm.errors import ConfigError

RSDP_ADDRESS = 0xA0000
LIMIT_ADDRESS = 0xF0000
"""The first address that is not for ACPI: SMBIOS begins here."""

_RSDP_SIZE = 36
_RSDP_V1_SIZE = 20


def build(machine: Machine) -> bytes:
    """Build what goes to guest memory at ``RSDP_ADDRESS``.

    Raises: ConfigError when a machine this large has no room for its description.
    """
    dsdt_address = RSDP_ADDRESS + _RSDP_SIZE
    tables = dsdt(machine)
    addresses = []
    for table in _described(machine, dsdt_address):
        addresses.append(dsdt_address + len(tables))
        tables += table
    xsdt = sdt(b"XSDT", 1, struct.pack(f"<{len(addresses)}Q", *addresses), b"CHXSDT")
    block = _rsdp(xsdt_address=dsdt_address + len(tables)) + tables + xsdt
    room = LIMIT_ADDRESS - RSDP_ADDRESS
    if len(block) > room:
        raise ConfigError(
            f"The ACPI tables take {len(block)} bytes of the {room} there are; "
            "give the VM fewer vCPUs or PCI segments"
        )
    return block


def _described(machine: Machine, dsdt_address: int) -> Iterator[bytes]:
    """Yield the tables that the XSDT lists, in their order in memory."""
    yield fadt(machine, dsdt_address)
    yield madt(machine)
    yield mcfg(machine)
    if machine.nodes:
        from vmm.acpi.slit import slit  # Only now: a VM without nodes starts sooner.
        from vmm.acpi.srat import srat

        yield srat(machine)
        yield slit(machine)
    if machine.iommu is not None:
        from vmm.acpi.viot import viot

        yield viot(machine.iommu)


def _rsdp(xsdt_address: int) -> bytes:
    rsdp = bytearray(
        struct.pack("<8sB6sBIIQB3x", b"RSD PTR ", 0, OEM_ID, 2, 0, _RSDP_SIZE, xsdt_address, 0)
    )
    rsdp[8] = checksum(rsdp[:_RSDP_V1_SIZE])
    rsdp[32] = checksum(rsdp)
    return bytes(rsdp)

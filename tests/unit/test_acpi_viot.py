"""VIOT: where the IOMMU is, and what is behind it."""

from __future__ import annotations

import struct

import pytest

from tests.unit.test_acpi_tables import MACHINE, table
from vmm.acpi.machine import EndpointRange, Iommu
from vmm.pci.bdf import Bdf

IOMMU = Iommu(Bdf(0, 0, 7, 0), (EndpointRange(1, 0, 0xFF), EndpointRange(0, 0x18, 0x18)))
WITH_IOMMU = MACHINE._replace(iommu=IOMMU)


def test_machine_without_an_iommu_has_no_viot() -> None:
    with pytest.raises(KeyError):
        table(MACHINE, "VIOT")


def test_viot_leads_every_range_to_the_iommu() -> None:
    data = table(WITH_IOMMU, "VIOT")

    assert (data[8], data[16:24]) == (0, b"CHVIOT  ")
    assert struct.unpack_from("<HH8x", data, 36) == (3, 48)
    assert struct.unpack_from("<BBHHH8x", data, 48) == (3, 0, 16, 0, 0x38)
    assert [struct.unpack_from("<BBHIHHHHH6x", data, at) for at in (64, 88)] == [
        (1, 0, 24, 0x1_0000, 1, 1, 0, 0xFF, 48),
        (1, 0, 24, 0x18, 0, 0, 0x18, 0x18, 48),
    ]
    assert len(data) == 112

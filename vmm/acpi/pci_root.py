"""AML of the PCI root bridges, and of the motherboard that reserves their configuration windows.

Spec: PCI Firmware Specification 3.3, section 4; ACPI 6.5, section 6.2.13 (_PRT).
"""

from __future__ import annotations

from collections.abc import Iterator

from vmm.acpi import aml
from vmm.acpi import resources as res
from vmm.acpi.machine import Machine, PciSegment
from vmm.acpi.pci_hotplug import SLOTS, slots

_PIN_A = 0
_ANY_FUNCTION = 0xFFFF
_CONFIG_PORTS = (0xCF8, 8)

_PCI_DSM = "e5c937d0-3553-4d7a-9117-ea4d19c3434d"
_KEEP_FIRMWARE_RESOURCES = 5
_SUPPORTED = bytes((1 << _KEEP_FIRMWARE_RESOURCES | 1,))


def root_bridge(segment: PciSegment) -> bytes:
    """Describe one segment's root bridge as ``PCxx``, xx being the segment in hexadecimal."""
    return aml.device(
        f"PC{segment.id:02X}",
        aml.name("_HID", aml.eisa_id("PNP0A08")),
        aml.name("_CID", aml.eisa_id("PNP0A03")),
        aml.name("_SEG", segment.id),
        aml.name("_UID", segment.id),
        aml.name("_CCA", 1),
        *(() if segment.node is None else (aml.name("_PXM", segment.node),)),
        _device_specific_method(),
        aml.name("_CRS", res.resource_template(*_windows(segment))),
        aml.name("_PRT", aml.package(*_interrupt_routes(segment))),
        *slots(segment),
    )


def motherboard(machine: Machine) -> bytes:
    """Reserve the ECAM windows: an operating system trusts MCFG only where they are."""
    windows = (res.memory32_fixed(*segment.ecam) for segment in machine.segments)
    return aml.device(
        "MBRD",
        aml.name("_HID", aml.eisa_id("PNP0C02")),
        aml.name("_UID", 0),
        aml.name("_CRS", res.resource_template(*windows)),
    )


def _windows(segment: PciSegment) -> Iterator[bytes]:
    yield res.bus_numbers(0, 0)
    yield res.memory32_fixed(*segment.ecam)
    if segment.mmio32.size:
        yield res.dword_memory(segment.mmio32.base, segment.mmio32.end - 1)
    if segment.mmio64.size:
        yield res.qword_memory(segment.mmio64.base, segment.mmio64.end - 1)
    if segment.id == 0:
        first, count = _CONFIG_PORTS
        yield res.io_ports(first, count)
        yield res.word_io(0, first - 1)
        yield res.word_io(first + count, 0xFFFF)


def _interrupt_routes(segment: PciSegment) -> Iterator[bytes]:
    """Yield where pin A of each slot goes; nothing here has another pin."""
    for slot in range(SLOTS):
        irq = segment.irqs[slot % len(segment.irqs)]
        yield aml.package(slot << 16 | _ANY_FUNCTION, _PIN_A, 0, irq)


def _device_specific_method() -> bytes:
    """Ask the operating system to keep the BARs as they were placed at start."""
    function = aml.argument(2)
    return aml.method(
        "_DSM",
        4,
        aml.if_(
            aml.equal(aml.argument(0), aml.uuid(_PCI_DSM)),
            aml.if_(aml.equal(function, 0), aml.return_(aml.buffer(_SUPPORTED))),
            aml.if_(aml.equal(function, _KEEP_FIRMWARE_RESOURCES), aml.return_(0)),
        ),
        aml.return_(aml.buffer(b"\x00")),
    )

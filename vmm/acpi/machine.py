"""What the ACPI tables have to know of a machine, as plain values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from vmm.pci.allocator import Span
from vmm.pci.bdf import Bdf

PCI_IRQS = tuple(range(5, 13))
"""The interrupts that slots share for their legacy pin: slot i has the (i mod 8)th."""

GED_IRQ = 13
COM1_IRQ = 4
FW_CFG_PORT, FW_CFG_PORTS = 0x510, 12
"""Where the firmware configuration device is, if there is one."""


class PciSegment(NamedTuple):
    """One PCI segment: a root bridge with a single bus.

    ``mmio32`` and ``mmio64`` are where its devices' memory lies; a window of size 0 is left out.
    ``node`` is the NUMA node that it is near, if there are any.
    """

    id: int
    ecam: Span
    mmio32: Span
    mmio64: Span
    irqs: tuple[int, ...] = PCI_IRQS
    node: int | None = None


class NumaNode(NamedTuple):
    """One NUMA node: what is near it, and how far other nodes are as far as it says.

    ``initiators`` are devices that access memory and are no processors; ``room`` is where memory
    near it may come later.
    """

    id: int
    memory: tuple[Span, ...] = ()
    apic_ids: tuple[int, ...] = ()
    initiators: tuple[Bdf, ...] = ()
    distances: Mapping[int, int] = {}
    room: tuple[Span, ...] = ()


class EndpointRange(NamedTuple):
    """Functions of a segment behind the IOMMU, by the first and last of their requester ids.

    Their endpoint numbers are these ids, with the segment above them.
    """

    segment: int
    first: int
    last: int


class Iommu(NamedTuple):
    """The IOMMU, a PCI function itself, and what is behind it."""

    bdf: Bdf
    ranges: tuple[EndpointRange, ...]


class Machine(NamedTuple):
    """A machine as its firmware describes it to the operating system.

    ``apic_ids`` has one entry a possible vCPU, by index; the first ``boot_vcpus`` are there at
    start. ``ged_address`` is where the event register is, ``pci_hotplug_address`` and
    ``cpu_hotplug_address`` where those of hot plug are, ``memory_hotplug_address`` where those for
    memory are, if any may come. ``has_pm1_blocks`` advertises the PM1 registers that Hyper-V asks
    for, though nothing answers there.
    """

    apic_ids: tuple[int, ...]
    boot_vcpus: int
    segments: tuple[PciSegment, ...]
    ged_address: int
    pci_hotplug_address: int
    cpu_hotplug_address: int
    memory_hotplug_address: int | None = None
    ged_irq: int = GED_IRQ
    has_serial: bool = True
    has_fw_cfg: bool = False
    has_pm1_blocks: bool = False
    nodes: tuple[NumaNode, ...] = ()
    iommu: Iommu | None = None

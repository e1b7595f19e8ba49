"""NUMA nodes as the tables describe them, from the configuration and the memory as it was laid out.

What the configuration gives to no node is in node 0, so that the guest finds all of its memory and
all of its processors in the tables: Linux ignores them otherwise.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from vmm.acpi.machine import NumaNode
from vmm.acpi.slit import LOCAL
from vmm.config.rules.slots import pci_devices
from vmm.errors import ConfigError
from vmm.pci.allocator import Span
from vmm.pci.bdf import Bdf

if TYPE_CHECKING:
    from vmm.config.numa import NumaConfig
    from vmm.config.vm import VmConfig
    from vmm.machine.memory import Region

DEFAULT_NODE = 0

logger = logging.getLogger(__name__)


def nodes_of(
    config: VmConfig,
    regions: Sequence[Region],
    apic_ids: Sequence[int],
    room: Sequence[Span] = (),
) -> tuple[NumaNode, ...]:
    """Describe the nodes, node 0 first; none if the configuration has none.

    ``room`` is where memory may come later that is in no zone.
    Raises: ConfigError (caller) for a generic initiator whose place is not known.
    """
    given = {node.guest_numa_id: node for node in config.numa or ()}
    if not given:
        return ()
    node_of_cpu = {cpu: id for id, node in given.items() for cpu in node.cpus or ()}
    return tuple(
        NumaNode(
            id,
            memory=tuple(
                Span(region.gpa, region.size)
                for region in regions
                if region.blocks is None and node_of_zone(config, region.zone.id) == id
            ),
            apic_ids=tuple(
                apic_id
                for cpu, apic_id in enumerate(apic_ids)
                if node_of_cpu.get(cpu, DEFAULT_NODE) == id
            ),
            initiators=tuple(_initiators(config, given.get(id))),
            distances=_distances(given.get(id)),
            room=tuple(
                Span(region.gpa, region.size)
                for region in regions
                if region.blocks is not None and node_of_zone(config, region.zone.id) == id
            )
            + (tuple(room) if id == DEFAULT_NODE else ()),
        )
        for id in sorted({DEFAULT_NODE, *given})
    )


def _distances(node: NumaConfig | None) -> Mapping[int, int]:
    said = {} if node is None else {e.destination: e.distance for e in node.distances or ()}
    if node is not None and said.pop(node.guest_numa_id, LOCAL) != LOCAL:
        logger.warning(
            "NUMA node %d is not %d from itself in the configuration; the guest is told so",
            node.guest_numa_id,
            LOCAL,
        )
    return said


def node_of_zone(config: VmConfig, zone: str) -> int | None:
    """The node a memory zone is near; None where there are no nodes."""
    if not config.numa:
        return None
    for node in config.numa:
        if zone in (node.memory_zones or ()):
            return node.guest_numa_id
    return DEFAULT_NODE


def node_of_segment(config: VmConfig, segment: int) -> int | None:
    """The node a PCI segment is near; None where there are no nodes."""
    if not config.numa:
        return None
    for node in config.numa:
        if segment in (node.pci_segments or ()):
            return node.guest_numa_id
    return DEFAULT_NODE


def _initiators(config: VmConfig, node: NumaConfig | None) -> Iterator[Bdf]:
    """Find the device of a node that has one. Raises: ConfigError (caller)."""
    if node is None or node.device_id is None:
        return
    for path, device in pci_devices(config):
        if device.id != node.device_id:
            continue
        if device.pci_device_id is None:
            raise ConfigError(
                f"numa[].device_id (--numa device_id=) is {node.device_id}: the tables name a "
                f"device by its slot, and {path} may get any; give it pci_device_id"
            )
        yield Bdf(device.pci_segment, 0, device.pci_device_id, 0)
        return
    raise ConfigError(
        f"numa[].device_id (--numa device_id=) is {node.device_id}, the id of no PCI device; "
        "give the id of one"
    )

"""Rules for NUMA nodes: what a node must have, and what only one node may have."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from vmm.config.platform import DEFAULT_PLATFORM
from vmm.config.rules.problem import Problem, at
from vmm.config.vm import VmConfig

if TYPE_CHECKING:
    from vmm.config.numa import NumaConfig


def problems(config: VmConfig) -> Iterator[Problem]:
    """Yield what is wrong with the NUMA nodes."""
    segments = (config.platform or DEFAULT_PLATFORM).num_pci_segments
    owner_of_zone: dict[str, int] = {}
    owner_of_segment: dict[int, int] = {}
    for index, node in enumerate(config.numa or ()):
        path = f"numa[{index}]"
        yield from _content(path, node)
        for zone in node.memory_zones or ():
            if owner_of_zone.setdefault(zone, node.guest_numa_id) != node.guest_numa_id:
                yield Problem(
                    f"{at(path, node, 'memory_zones')}: Memory zone {zone} belongs to multiple "
                    f"NUMA nodes ({owner_of_zone[zone]} and {node.guest_numa_id}); "
                    "leave it with one"
                )
        for segment in node.pci_segments or ():
            yield from _segment(path, node, segment, segments)
            if owner_of_segment.setdefault(segment, node.guest_numa_id) != node.guest_numa_id:
                yield Problem(
                    f"{at(path, node, 'pci_segments')}: PCI segment {segment} belongs to multiple "
                    f"NUMA nodes ({owner_of_segment[segment]} and {node.guest_numa_id}); "
                    "leave it with one"
                )


def _content(path: str, node: NumaConfig) -> Iterator[Problem]:
    populated = bool(node.cpus or node.memory_zones)
    if populated and node.device_id is not None:
        yield Problem(
            f"{at(path, node, 'device_id')} is {node.device_id} beside cpus or memory_zones; "
            "a generic initiator has neither, leave one side out"
        )
    if not populated and node.device_id is None:
        yield Problem(
            f"{at(path, node, 'guest_numa_id')}: NUMA node {node.guest_numa_id} has no content; "
            "give cpus, memory_zones or device_id"
        )


def _segment(path: str, node: NumaConfig, segment: int, segments: int) -> Iterator[Problem]:
    if segment >= segments:
        yield Problem(
            f"{at(path, node, 'pci_segments')}: Invalid PCI segment id: {segment}; "
            f"give one below platform.num_pci_segments ({segments})"
        )
    if segment == 0 and node.guest_numa_id != 0:
        yield Problem(
            f"{at(path, node, 'pci_segments')}: Default PCI segment assigned to non-zero NUMA "
            f"node {node.guest_numa_id}; leave segment 0 with node 0"
        )

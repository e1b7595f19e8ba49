"""Rules for NUMA nodes: what a node must have, and what only one node may have."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from vmm.config.platform import DEFAULT_PLATFORM
from vmm.config.rules.problem import Problem, at
from vmm.config.vm import VmConfig

if TYPE_CHECKING:
    from vmm.config.numa import NumaConfig


LAST_NODE = 255
"""The table of distances has a row and a column for each number up to the highest."""
LOCAL = 10
"""How far a node is from itself."""


def problems(config: VmConfig) -> Iterator[Problem]:
    """Yield what is wrong with the NUMA nodes."""
    yield from _places(config)
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


def _places(config: VmConfig) -> Iterator[Problem]:
    """Yield what names a node, zone or CPU that is not there, or names one twice."""
    zones = {zone.id for zone in config.memory.zones or ()}
    ids = [node.guest_numa_id for node in config.numa or ()]
    owner_of_cpu: dict[int, int] = {}
    for index, node in enumerate(config.numa or ()):
        path = f"numa[{index}]"
        id = node.guest_numa_id
        if id > LAST_NODE:
            yield Problem(
                f"{at(path, node, 'guest_numa_id')} is {id}: Invalid NUMA configuration; "
                f"give a number up to {LAST_NODE}"
            )
        if id in ids[:index]:
            yield Problem(
                f"{at(path, node, 'guest_numa_id')} is {id}, which another node has: Invalid NUMA "
                "configuration; give each node a number of its own",
                is_duplicate=True,
            )
        for zone in node.memory_zones or ():
            if zone not in zones:
                yield Problem(
                    f"{at(path, node, 'memory_zones')}: Invalid NUMA configuration: there is no "
                    f"memory zone {zone}; give the id of one of memory.zones (--memory-zone)"
                )
        yield from _cpus(path, node, config.cpus.max_vcpus, owner_of_cpu)
        yield from _distances(path, node, ids)


def _cpus(
    path: str, node: NumaConfig, max_vcpus: int, owner_of_cpu: dict[int, int]
) -> Iterator[Problem]:
    for cpu in node.cpus or ():
        if cpu >= max_vcpus:
            yield Problem(
                f"{at(path, node, 'cpus')}: Invalid NUMA configuration: there is no vCPU {cpu}; "
                f"give numbers below cpus.max_vcpus ({max_vcpus})"
            )
        if owner_of_cpu.setdefault(cpu, node.guest_numa_id) != node.guest_numa_id:
            yield Problem(
                f"{at(path, node, 'cpus')}: vCPU {cpu} belongs to multiple NUMA nodes "
                f"({owner_of_cpu[cpu]} and {node.guest_numa_id}); leave it with one"
            )


def _distances(path: str, node: NumaConfig, ids: list[int]) -> Iterator[Problem]:
    said: set[int] = set()
    for each in node.distances or ():
        if each.destination not in ids:
            yield Problem(
                f"{at(path, node, 'distances')}: Invalid NUMA configuration: there is no node "
                f"{each.destination}; give the guest_numa_id of another node"
            )
        if each.destination in said:
            yield Problem(
                f"{at(path, node, 'distances')}: Invalid NUMA configuration: node "
                f"{each.destination} has two distances; give one"
            )
        said.add(each.destination)
        # What a node says of itself is not used: see vmm.machine.numa.
        if each.destination != node.guest_numa_id and each.distance <= LOCAL:
            yield Problem(
                f"{at(path, node, 'distances')}: node {each.destination} is {each.distance} away; "
                f"give {LOCAL + 1} or more, {LOCAL} is a node's own"
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

"""From the configuration's nodes and the memory's regions to the nodes of the tables."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import cast

import pytest

from vmm.acpi.machine import NumaNode
from vmm.config.vm import VmConfig
from vmm.errors import ConfigError
from vmm.machine.memory import Region
from vmm.machine.numa import node_of_segment, node_of_zone, nodes_of
from vmm.pci.allocator import Span
from vmm.pci.bdf import Bdf

GIB = 1 << 30
ZONES = [{"id": "a", "size": GIB}, {"id": "b", "size": GIB}, {"id": "rest", "size": GIB}]
REGIONS = [
    cast(
        Region,
        SimpleNamespace(gpa=at * GIB, size=GIB, zone=SimpleNamespace(id=zone), blocks=blocks),
    )
    for at, (zone, blocks) in enumerate(
        [("a", None), ("b", None), ("rest", None), ("b", object()), ("rest", object())]
    )
]
APIC_IDS = (0, 1, 8, 9)


def config(*nodes: dict[str, object], **sections: object) -> VmConfig:
    return VmConfig.model_validate(
        {"memory": {"size": 0, "zones": ZONES}, "numa": list(nodes), **sections}
    )


def nodes(*given: dict[str, object], **sections: object) -> tuple[NumaNode, ...]:
    return nodes_of(config(*given, **sections), REGIONS, APIC_IDS)


def test_configuration_without_nodes_gives_none() -> None:
    assert nodes() == ()
    assert node_of_segment(config(), 0) is None


def test_zones_and_cpus_are_in_their_node_and_the_rest_in_node_0() -> None:
    first, second = nodes(
        {"guest_numa_id": 0, "memory_zones": ["a"]},
        {"guest_numa_id": 1, "memory_zones": ["b"], "cpus": [2, 3]},
    )

    assert first.memory == (Span(0, GIB), Span(2 * GIB, GIB))
    assert first.apic_ids == (0, 1)
    assert second.memory == (Span(GIB, GIB),)
    assert second.apic_ids == (8, 9)


def test_room_to_grow_is_in_the_node_of_its_zone() -> None:
    given = config({"guest_numa_id": 1, "memory_zones": ["b"]})

    first, second = nodes_of(given, REGIONS, APIC_IDS, [Span(9 * GIB, GIB)])

    assert first.room == (Span(4 * GIB, GIB), Span(9 * GIB, GIB))
    assert second.room == (Span(3 * GIB, GIB),)
    assert [node_of_zone(given, zone) for zone in ("a", "b", "mem0")] == [0, 1, 0]
    assert node_of_zone(config(), "a") is None


def test_node_0_is_there_for_the_rest_though_nobody_configured_it() -> None:
    rest, one = nodes({"guest_numa_id": 1, "memory_zones": ["a", "b", "rest"]})

    assert (rest.id, rest.memory, rest.apic_ids) == (0, (), APIC_IDS)
    assert (one.id, one.apic_ids) == (1, ())


def test_distance_to_itself_is_left_out_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    here = [{"destination": 0, "distance": 12}, {"destination": 1, "distance": 33}]
    with caplog.at_level(logging.WARNING):
        first, _ = nodes(
            {"guest_numa_id": 0, "cpus": [0], "distances": here},
            {"guest_numa_id": 1, "cpus": [1]},
        )

    assert first.distances == {1: 33}
    assert "not 10 from itself" in caplog.text


def test_segment_is_near_the_node_that_lists_it() -> None:
    numa = config(
        {"guest_numa_id": 0, "cpus": [0]}, {"guest_numa_id": 2, "cpus": [1], "pci_segments": [3]}
    )

    assert [node_of_segment(numa, segment) for segment in (0, 3)] == [0, 2]


def test_generic_initiator_is_found_by_its_devices_slot() -> None:
    disk = {"id": "d", "path": "/d", "pci_segment": 1, "pci_device_id": 4}
    _, far = nodes({"guest_numa_id": 1, "device_id": "d"}, disks=[disk])

    assert far.initiators == (Bdf(1, 0, 4, 0),)


@pytest.mark.parametrize(
    ("disk", "message"),
    [
        ({"id": "d", "path": "/d"}, "may get any; give it pci_device_id"),
        ({"id": "other", "path": "/d"}, "the id of no PCI device"),
    ],
)
def test_generic_initiator_without_a_known_slot_is_refused(
    disk: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        nodes({"guest_numa_id": 1, "device_id": "d"}, disks=[disk])

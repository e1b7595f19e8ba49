"""Each rule for the machine and its slots: what breaks it, and what is said."""

from __future__ import annotations

import pytest

from tests.unit.test_config_validation import LIMITER, config_of, cpus, problems


def topology(threads: int, cores: int, dies: int, packages: int) -> dict[str, int]:
    return {
        "threads_per_core": threads,
        "cores_per_die": cores,
        "dies_per_package": dies,
        "packages": packages,
    }


GIB = 1 << 30


def growing_zone(**fields: object) -> dict[str, object]:
    zone = {"id": "near", "size": GIB, "hotplug_size": GIB, **fields}
    return {"size": 0, "hotplug_method": "VirtioMem", "zones": [zone]}


REFUSED: list[tuple[dict[str, object], str, str]] = [
    ({"payload": None}, "payload (--kernel", "Payload configuration is not bootable"),
    (
        {"payload": {"cmdline": "x"}},
        "payload (--kernel",
        "No bootitem provided: neither firmware nor kernel",
    ),
    (
        {"payload": {"kernel": "/k", "firmware": "/f"}},
        "payload.kernel (--kernel) is /k",
        "Specifying a kernel is not supported when a firmware is provided",
    ),
    (
        {"memory": {"size": GIB, "hotplug_method": "VirtioMem", "hotplug_size": GIB + 1}},
        "memory.hotplug_size (--memory hotplug_size=) is 1073741825",
        "no multiple of 134217728",
    ),
    (
        {"memory": {"size": 0, "hotplug_method": "VirtioMem", "hotplug_size": GIB}},
        "memory.hotplug_size (--memory hotplug_size=) is 1073741824, and memory.size is 0",
        "give the zone that is to grow a hotplug_size",
    ),
    (
        {"memory": {"size": GIB, "hotplug_size": GIB, "hotplugged_size": 2 << 20}},
        "memory.hotplugged_size (--memory hotplugged_size=) is 2097152",
        "for virtio-mem alone",
    ),
    (
        {"memory": {"size": GIB, "hotplug_method": "VirtioMem", "hotplugged_size": 2 << 20}},
        "memory.hotplugged_size (--memory hotplugged_size=) is 2097152",
        "more than hotplug_size, 0",
    ),
    (
        {"memory": growing_zone(hotplugged_size=4096)},
        "memory.zones[0].hotplugged_size (--memory-zone hotplugged_size=) is 4096",
        "no multiple of 2097152, the bytes of a block",
    ),
    (
        {"memory": growing_zone(hugepages=True, hugepage_size=GIB, hotplug_size=128 << 20)},
        "memory.zones[0].hotplug_size (--memory-zone hotplug_size=) is 134217728",
        "no multiple of 1073741824",
    ),
    (
        {"memory": growing_zone() | {"hotplug_method": "Acpi"}},
        "memory.zones[0].hotplug_size (--memory-zone hotplug_size=) is 1073741824",
        "grows by virtio-mem alone",
    ),
    ({"payload": {"igvm": "/i", "firmware": "/f"}}, "payload.igvm (--igvm) is /i", "give one"),
    (
        {"payload": {"igvm": "/i", "host_data": "0" * 63}},
        "payload.host_data (--host-data) has 63",
        "exactly 64 hexadecimal digits",
    ),
    ({"payload": {"igvm": "/i", "host_data": "z" * 64}}, "payload.host_data", "exactly 64"),
    (
        {"serial": {"mode": "File"}},
        "serial.file (--serial file=)",
        "Path missing when using file console mode",
    ),
    ({"console": {"mode": "File"}}, "console.file (--console file=)", "Path missing"),
    (
        {"debug_console": {"mode": "File"}},
        "debug_console.file (--debug-console file=)",
        "Path missing",
    ),
    ({"serial": {"mode": "Socket"}}, "serial.socket (--serial socket=)", "Path missing"),
    (
        {"console": {"mode": "Socket", "socket": "/s"}},
        "console.mode",
        "No socket option support for console device",
    ),
    ({"debug_console": {"mode": "Socket"}}, "debug_console.mode", "No socket option support"),
    (
        {"cpus": cpus(4, 2)},
        "cpus.max_vcpus (--cpus max=)",
        "Max CPUs (2) lower than boot CPUs (4)",
    ),
    (
        {"cpus": cpus(1, 8193)},
        "cpus.max_vcpus",
        "Too many CPUs: specified 8193 but 8192 is the limit",
    ),
    (
        {"cpus": cpus(2, topology=topology(1, 1, 1, 1))},
        "cpus.topology (--cpus topology=)",
        "product of the topology (1) must equal max_vcpus (2)",
    ),
    ({"cpus": cpus(4, topology=topology(4, 1, 1, 1))}, "cpus.topology", "threads per core: s"),
    (
        {"memory": {"size": 1 << 30, "hugepage_size": 2 << 20}},
        "memory.hugepage_size (--memory hugepage_size=)",
        "huge pages not enabled",
    ),
    (
        {"memory": {"size": 1 << 30, "hugepages": True, "hugepage_size": 3 << 20}},
        "memory.hugepage_size",
        "not power of 2: 3145728",
    ),
    (
        {"memory": {"size": 1 << 30, "hugepages": True, "hugepage_size": 0}},
        "memory.hugepage_size",
        "not power of 2: 0",
    ),
    (
        {"memory": {"size": 1 << 30, "mergeable": True, "shared": True}},
        "memory.mergeable (--memory mergeable=)",
        "both mergeable and shared",
    ),
    (
        {"memory": {"size": 1, "zones": [{"id": "a", "size": 1, "hugepage_size": 2 << 20}]}},
        "memory.zones[0].hugepage_size (--memory-zone hugepage_size=)",
        "huge pages not enabled",
    ),
    (
        {"balloon": {"size": 512 << 20}},
        "balloon.size (--balloon size=)",
        "Balloon size (536870912) greater than RAM (536870912)",
    ),
    (
        {"rate_limit_groups": [{"id": "g", "rate_limiter_config": {}}]},
        "rate_limit_groups[0].rate_limiter_config",
        "Invalid rate-limiter group",
    ),
    (
        {"pmem": [{"file": "/p"}, {"file": "/p", "size": 0}]},
        "pmem[1].size (--pmem size=) is 0",
        "must be a positive multiple of 2097152 bytes; round it up",
    ),
    ({"pmem": [{"file": "/p", "size": 3 << 20}]}, "pmem[0].size", "is 3145728"),
    (
        {"ivshmem": {"path": "/s", "size": 3 << 20}},
        "ivshmem.size (--ivshmem size=) is 3145728",
        "must be a power of two of at least 4096 bytes; round it up",
    ),
    ({"ivshmem": {"path": "/s", "size": 2048}}, "ivshmem.size", "is 2048"),
    ({"ivshmem": {"path": "/s", "size": 0}}, "ivshmem.size", "is 0"),
    (
        {"ivshmem": {"path": "/s", "iommu": True}},
        "ivshmem.iommu is true",
        "Device does not support being placed behind IOMMU",
    ),
    (
        {"rate_limit_groups": [{"id": "", "rate_limiter_config": LIMITER}]},
        "rate_limit_groups[0].id (--rate-limit-group id=)",
        "Invalid rate-limiter group",
    ),
    ({"numa": [{"guest_numa_id": 0}]}, "numa[0].guest_numa_id (--numa", "has no content"),
    ({"numa": [{"guest_numa_id": 0, "cpus": []}]}, "numa[0].guest_numa_id", "has no content"),
    (
        {"numa": [{"guest_numa_id": 0, "cpus": [0], "device_id": "d"}]},
        "numa[0].device_id (--numa device_id=) is d",
        "leave one side out",
    ),
    (
        {
            "memory": {"size": 0, "zones": [{"id": "z", "size": 1 << 30}]},
            "numa": [
                {"guest_numa_id": 0, "memory_zones": ["z"]},
                {"guest_numa_id": 1, "memory_zones": ["z"]},
            ],
        },
        "numa[1].memory_zones (--numa memory_zones=)",
        "Memory zone z belongs to multiple NUMA nodes (0 and 1)",
    ),
    (
        {"numa": [{"guest_numa_id": 0, "cpus": [0], "pci_segments": [1]}]},
        "numa[0].pci_segments (--numa pci_segments=)",
        "Invalid PCI segment id: 1",
    ),
    (
        {"numa": [{"guest_numa_id": 1, "cpus": [0], "pci_segments": [0]}]},
        "numa[0].pci_segments",
        "Default PCI segment assigned to non-zero NUMA node 1",
    ),
    (
        {
            "cpus": {"boot_vcpus": 2, "max_vcpus": 2},
            "platform": {"num_pci_segments": 2},
            "numa": [
                {"guest_numa_id": 1, "cpus": [0], "pci_segments": [1]},
                {"guest_numa_id": 2, "cpus": [1], "pci_segments": [1]},
            ],
        },
        "numa[1].pci_segments",
        "PCI segment 1 belongs to multiple NUMA nodes (1 and 2)",
    ),
    (
        {"numa": [{"guest_numa_id": 0, "memory_zones": ["z"]}]},
        "numa[0].memory_zones (--numa memory_zones=)",
        "there is no memory zone z; give the id of one of memory.zones (--memory-zone)",
    ),
    (
        {"numa": [{"guest_numa_id": 256, "cpus": [0]}]},
        "numa[0].guest_numa_id (--numa guest_numa_id=) is 256",
        "give a number up to 255",
    ),
    (
        {"numa": [{"guest_numa_id": 0, "cpus": [0]}, {"guest_numa_id": 0, "cpus": [0]}]},
        "numa[1].guest_numa_id (--numa guest_numa_id=) is 0",
        "give each node a number of its own",
    ),
    (
        {"numa": [{"guest_numa_id": 0, "cpus": [1]}]},
        "numa[0].cpus (--numa cpus=)",
        "there is no vCPU 1; give numbers below cpus.max_vcpus (1)",
    ),
    (
        {"numa": [{"guest_numa_id": 0, "cpus": [0]}, {"guest_numa_id": 1, "cpus": [0]}]},
        "numa[1].cpus",
        "vCPU 0 belongs to multiple NUMA nodes (0 and 1)",
    ),
    (
        {
            "numa": [
                {
                    "guest_numa_id": 0,
                    "cpus": [0],
                    "distances": [{"destination": 1, "distance": 20}],
                }
            ]
        },
        "numa[0].distances (--numa distances=)",
        "there is no node 1",
    ),
    (
        {
            "numa": [
                {
                    "guest_numa_id": 0,
                    "cpus": [0],
                    "distances": [{"destination": 0, "distance": 10}] * 2,
                }
            ]
        },
        "numa[0].distances",
        "node 0 has two distances",
    ),
    ({"pci_segments": [{"pci_segment": 1}]}, "pci_segments[0].pci_segment", "segment id: 1"),
    (
        {"pci_segments": [{"pci_segment": 0, "mmio64_aperture_weight": 0}]},
        "pci_segments[0].mmio64_aperture_weight (--pci-segment mmio64_aperture_weight=)",
        "give 1 or more",
    ),
    (
        {"platform": {"num_pci_segments": 97}},
        "platform.num_pci_segments (--platform num_pci_segments=)",
        "Number of PCI segments (97) not in range; give 1 to 96",
    ),
    ({"platform": {"iommu_segments": [1]}}, "platform.iommu_segments", "PCI segment id: 1"),
    (
        {"platform": {"iommu_address_width_bits": 65}},
        "platform.iommu_address_width_bits (--platform iommu_address_width=)",
        "at most 64",
    ),
    ({"platform": {"iommufd_fd": 8}}, "platform.iommufd_fd", "turn iommufd on"),
    ({"landlock_rules": [{"path": "/x", "access": ""}]}, "landlock_rules[0].access", "r, w or rw"),
    ({"landlock_rules": [{"path": "/x", "access": "rx"}]}, "landlock_rules[0].access", "r, w or"),
    ({"landlock_rules": [{"path": "/x", "access": "R"}]}, "landlock_rules[0].access", "r, w or"),
    (
        {"disks": [{"path": "/d", "pci_segment": 1}]},
        "disks[0].pci_segment (--disk pci_segment=)",
        "Invalid PCI segment id: 1",
    ),
    (
        {
            "platform": {"num_pci_segments": 2, "iommu_segments": [1]},
            "disks": [{"path": "/d", "pci_segment": 1}],
        },
        "disks[0].pci_segment",
        "Device is on an IOMMU PCI segment (1) but not placed behind IOMMU",
    ),
    (
        {"vdpa": [{"path": "/v", "pci_device_id": 32}]},
        "vdpa[0].pci_device_id (--vdpa pci_device_id=)",
        "give one below 32",
    ),
    ({"rtc": {"pci_device_id": 0}}, "rtc.pci_device_id (--rtc", "reserved"),
    ({"rng": {"src": "/r", "pci_segment": 1}}, "rng.pci_segment (--rng", "PCI segment id: 1"),
    ({"rtc": {"pci_segment": 1}}, "rtc.pci_segment (--rtc", "Invalid PCI segment id: 1"),
    ({"console": {"mode": "Off", "pci_segment": 1}}, "console.pci_segment", "PCI segment id: 1"),
    ({"balloon": {"size": 0, "pci_segment": 1}}, "balloon.pci_segment", "PCI segment id: 1"),
    ({"net": [{"pci_segment": 1}]}, "net[0].pci_segment (--net", "Invalid PCI segment id: 1"),
    ({"pmem": [{"file": "/p", "pci_segment": 1}]}, "pmem[0].pci_segment", "PCI segment id: 1"),
    (
        {"vsock": {"cid": 3, "socket": "/s", "pci_segment": 1}},
        "vsock.pci_segment (--vsock",
        "Invalid PCI segment id: 1",
    ),
    (
        {"vdpa": [{"path": "/v", "pci_segment": 1}]},
        "vdpa[0].pci_segment (--vdpa",
        "Invalid PCI segment id: 1",
    ),
    ({"pmem": [{"file": "/p", "id": "__rng"}]}, "pmem[0].id (--pmem id=)", "begins with __"),
]


@pytest.mark.parametrize(("sections", "place", "words"), REFUSED)
def test_validate_broken_rule_is_the_one_problem_named(
    sections: dict[str, object], place: str, words: str
) -> None:
    (problem,) = problems(config_of(**sections))
    assert problem.startswith(place)
    assert words in problem


def test_validate_topology_with_a_zero_names_it() -> None:
    found = problems(config_of(cpus=cpus(2, topology=topology(1, 2, 0, 1))))
    assert "No part of the topology may be zero, given 1:2:0:1" in found[0]


def test_validate_no_segments_at_all_is_out_of_range() -> None:
    found = problems(config_of(platform={"num_pci_segments": 0}))
    assert "Number of PCI segments (0) not in range" in found[0]

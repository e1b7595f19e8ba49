"""Cloud Hypervisor's rules between fields, each with the test that breaks it here.

A rule names words that a refusal says; they must stand in what a test of this folder expects. Rules
whose device is not in this version are checked all the same, so that a configuration is refused
for what is wrong with it.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest

from tests.unit import test_config_rules_devices as devices
from tests.unit import test_config_rules_machine as machine
from tests.unit import test_config_rules_restore as restore

HERE = Path(__file__).parent


class Rule(NamedTuple):
    """A rule; ``breaks`` is the place that a refusal names, ``says`` its words.

    ``test`` is the function that shows it, if it is none of the tables' tests; ``why`` is said of
    a rule that is not checked.
    """

    number: int
    rule: str
    breaks: str
    says: str = ""
    test: str = ""
    why: str = ""


DEVICES_IN_SLOTS = ("disks", "net", "fs", "pmem", "rng", "rtc", "console", "balloon", "vsock")

RULES = [
    Rule(1, "a payload", "payload", "No bootitem provided"),
    Rule(1, "a payload that boots", "payload", "Payload configuration is not bootable"),
    Rule(1, "firmware or kernel", "payload.kernel", "Specifying a kernel is not supported when a"),
    Rule(1, "firmware or IGVM", "payload.igvm", "give one"),
    Rule(
        1,
        "firmware takes no command line",
        "payload",
        test="test_settle_firmware_drops_what_it_does_not_take",
    ),
    Rule(2, "a file for the serial port", "serial.file", "Path missing when using file console"),
    Rule(2, "a file for the console", "console.file", "Path missing"),
    Rule(2, "one terminal", "serial", test="test_validate_shared_terminal_only_warns"),
    Rule(3, "as many CPUs as boot", "cpus.max_vcpus", "Max CPUs (2) lower than boot CPUs (4)"),
    Rule(3, "at most 8192 CPUs", "cpus.max_vcpus", "Too many CPUs: specified 8193 but 8192 is"),
    Rule(4, "a name of a group", "rate_limit_groups[0].id", "Invalid rate-limiter group"),
    Rule(4, "a limit of a group", "rate_limit_groups[0].rate_l", "Invalid rate-limiter group"),
    Rule(4, "groups by name", "id", test="test_validate_taken_identifier_is_a_duplicate"),
    Rule(5, "path or socket", "disks[0].path", "Disk path and vhost socket both provided"),
    Rule(5, "shared memory", "disks[0].vhost_user", "Using vhost-user requires using shared mem"),
    Rule(5, "a socket", "disks[0].vhost_socket", "No socket provided when using vhost-user"),
    Rule(5, "no limits there", "disks[0].vhost_user", "Rate limiting is not supported with vhost"),
    Rule(5, "a group that exists", "disks[0].rate_limit_group", "Rate limit group g does not exi"),
    Rule(
        5, "queues for vCPUs", "disks[0].num_queues", "Queue count (2) must not exceed boot vCPUs"
    ),
    Rule(5, "a size of a queue", "disks[0].queue_size", "Queue size must be a power of 2 no great"),
    Rule(5, "a long queue", "disks[0].queue_size", "Block queue size must be greater than 2: 2"),
    Rule(5, "no IOMMU there", "disks[0].iommu", "Device does not support being placed behind IO"),
    Rule(5, "limiter or group", "disks[0].rate_limit_group", "give one of them"),
    Rule(5, "a short serial", "disks[0].serial", "Block device serial length (22) exceeds maximum"),
    Rule(6, "shared memory", "net[0].vhost_user", "Using vhost-user requires using shared memory"),
    Rule(6, "a socket", "net[0].vhost_socket", "No socket provided"),
    Rule(6, "no limits there", "net[0].vhost_user", "Rate limiting is not supported with vhost-us"),
    Rule(
        6, "a pair of queues", "net[0].num_queues", "Number of queues (1) to virtio_net should be"
    ),
    Rule(6, "descriptors for queues", "net[0].fds", "does not match the number of FDs (4)"),
    Rule(6, "no standard stream", "net[0].fds", "Reserved fd number (<= 2): 2"),
    Rule(6, "pairs for vCPUs", "net[0].num_queues", "Queue count (2) must not exceed boot vCPUs"),
    Rule(6, "a size of a queue", "net[0].queue_size", "power of 2 no greater than 32768: 3"),
    Rule(6, "an MTU", "net[0].mtu", "Provided MTU 1279 is lower than 1280"),
    Rule(6, "checksums for TSO", "net[0].offload_tso", "csum"),
    Rule(6, "checksums for UFO", "net[0].offload_ufo", "csum"),
    Rule(6, "a mask for an address", "net[0].ip", "without mask"),
    Rule(6, "an address for a mask", "net[0].mask", "without ip"),
    Rule(7, "shared memory", "fs[0].socket", "shared memory"),
    Rule(7, "queues for vCPUs", "fs[0].num_queues", "Queue count (2) must not exceed boot vCPUs"),
    Rule(7, "a size of a queue", "fs[0].queue_s", ": 0;"),
    Rule(7, "no IOMMU", "fs[0].iommu", "Device does not support being placed behind IOMMU"),
    Rule(7, "a short tag", "fs[0].tag", "37 bytes"),
    Rule(8, "shared memory", "generic_vhost_user[0].socket", "shared memory"),
    Rule(8, "no IOMMU", "generic_vhost_user[0].iommu", "Device does not support being placed beh"),
    Rule(8, "sizes of queues", "generic_vhost_user[0].queue_sizes", "power of 2 no greater than"),
    *(Rule(9, f"a segment for {name}", name, "PCI segment id: 1") for name in DEVICES_IN_SLOTS),
    Rule(
        10,
        "no zero in a topology",
        "cpus.topology",
        test="test_validate_topology_with_a_zero_names_it",
    ),
    Rule(10, "two threads a core", "cpus.topology", "threads per core"),
    Rule(10, "a topology of all", "cpus.topology", "product of the topology (1) must equal max_vc"),
    Rule(11, "huge pages", "memory.hugepage_size", "huge pages not enabled"),
    Rule(11, "a power of two", "memory.hugepage_size", "not power of 2"),
    Rule(11, "mergeable or shared", "memory.mergeable", "both mergeable and shared"),
    Rule(11, "in zones too", "memory.zones[0].hugepage_size", "huge pages not enabled"),
    Rule(12, "shared memory", "user_devices[0].socket", "Using user devices requires using shared"),
    Rule(12, "no IOMMU", "user_devices[0].i", "behind"),
    Rule(13, "a slot", "vdpa[0].pci_device_id", "give one below 32"),
    Rule(14, "a CID", "vsock.cid", test="test_parse_wrong_value_names_place_value_and_fix"),
    Rule(15, "less than the RAM", "balloon.size", "Balloon size (536870912) greater than RAM"),
    Rule(16, "a device once", "devices", test="test_validate_taken_device_path_is_a_duplicate"),
    Rule(
        16, "path or descriptor", "devices[0].path (--device path=) is missing", "give one of the"
    ),
    Rule(16, "not both", "devices[0].path (--device path=) is /d beside fd 9", "give one of them"),
    Rule(16, "an iommufd for it", "devices[0].fd", "platform.iommufd_fd"),
    Rule(16, "peers for a clique", "devices[0].x_nv_gpudirect_clique", "platform.vfio_p2p_dma"),
    Rule(16, "a BAR", "devices[0].x_exclude_mmap_bars", "has 6; BARs are 0 to 5"),
    Rule(17, "a node of something", "numa[0].guest_numa_id", "has no content"),
    Rule(17, "an initiator alone", "numa[0].device_id", "leave one side out"),
    Rule(
        17, "a zone of one node", "numa[1].memory_zones", "Memory zone z belongs to multiple NUMA"
    ),
    Rule(17, "a segment", "numa[0].pci_segments", "Invalid PCI segment id: 1"),
    Rule(
        17, "segment 0 at node 0", "numa[0].pci_segments", "Default PCI segment assigned to non-z"
    ),
    Rule(17, "a segment of one node", "numa[1].pci_segments", "PCI segment 1 belongs to multiple"),
    Rule(18, "zones by name", "id", test="test_validate_taken_identifier_is_a_duplicate"),
    Rule(19, "a segment", "pci_segments[0].pci_segment", "segment id: 1"),
    Rule(19, "weights", "pci_segments[0].mmio64_aperture_weight", "give 1 or more"),
    Rule(20, "1 to 96 segments", "platform.num_pci_segments", "Number of PCI segments (97) not in"),
    Rule(20, "segments", "platform.iommu_segments", "PCI segment id: 1"),
    Rule(20, "64 bits", "platform.iommu_address_width_bits", "at most 64"),
    Rule(20, "iommufd for its descriptor", "platform.iommufd_fd", "turn iommufd on"),
    Rule(
        21,
        "a path that exists",
        "landlock_rules[0].path",
        test="test_validate_landlock_paths_are_looked_up_on_the_host_if_asked",
    ),
    Rule(21, "r and w", "landlock_rules[0].access", "r, w or rw"),
    Rule(22, "a power of two", "ivshmem.size", "must be a power of two"),
    Rule(
        22,
        "a file that has as much",
        "ivshmem.path",
        test="test_file_that_is_shorter_is_refused_and_not_lengthened",
    ),
    Rule(
        22,
        "a file that is there",
        "ivshmem.path",
        test="test_file_that_is_not_there_is_refused_and_not_made",
    ),
    Rule(23, "a slot of an IOMMU segment", "disks[0].pci_segment", "Device is on an IOMMU PCI seg"),
    Rule(23, "below 32", "vdpa[0].pci_device_id", "give one below 32"),
    Rule(23, "not the bridge's slot", "rtc.pci_device_id", "reserved"),
    Rule(24, "no name of the machine's", "pmem[0].id", "begins with __"),
    Rule(24, "names once", "id", test="test_validate_taken_identifier_is_a_duplicate"),
    Rule(25, "prefault or on demand", "restore.prefault", "on demand reads none; give one"),
    Rule(25, "networks once", "restore.net_fds", "Identifier lan is not unique"),
    Rule(
        25,
        "descriptors for whom they were",
        "restore.net_fds",
        test="test_network_with_descriptors_needs_as_many_new_ones",
    ),
    Rule(
        25,
        "others are warned of",
        "restore.net_fds",
        test="test_descriptors_for_other_networks_are_warned_of",
    ),
    Rule(25, "zones once", "restore.zone_updates", "Identifier z is not unique"),
    Rule(25, "some zone", "restore.zone_updates (--restore zone_updates=) is empty", "leave it"),
]
"""In the order in which the original checks; 23 are the rules of every PCI device, 24 those of
identifiers, 25 those of a restore."""

BROKEN = [
    (place, words) for table in (machine, devices, restore) for _, place, words in table.REFUSED
]
TESTS = "".join(path.read_text() for path in HERE.glob("test_*.py"))


def test_all_numbers_are_there() -> None:
    assert {rule.number for rule in RULES} == set(range(1, 26))


@pytest.mark.parametrize(
    "rule", [rule for rule in RULES if not rule.why], ids=lambda rule: f"{rule.number} {rule.rule}"
)
def test_rule_is_broken_by_a_test(rule: Rule) -> None:
    if rule.test:
        assert f"def {rule.test}(" in TESTS
        return
    said = [words for place, words in BROKEN if place.startswith(rule.breaks)]
    assert any(rule.says in words for words in said), said

"""Each rule for one kind of device: what breaks it, and what is said."""

from __future__ import annotations

import pytest

from tests.unit.test_config_validation import LIMITER, SHARED, config_of, problems

VHOST_DISK = {"vhost_user": True, "vhost_socket": "/s"}

REFUSED: list[tuple[dict[str, object], str, str]] = [
    (
        {**SHARED, "disks": [{**VHOST_DISK, "path": "/d"}]},
        "disks[0].path (--disk path=)",
        "Disk path and vhost socket both provided",
    ),
    ({"disks": [{}]}, "disks[0].path (--disk path=)", "is missing"),
    (
        {"disks": [VHOST_DISK]},
        "disks[0].vhost_user (--disk vhost_user=)",
        "Using vhost-user requires using shared memory or huge pages",
    ),
    (
        {**SHARED, "disks": [{"vhost_user": True}]},
        "disks[0].vhost_socket (--disk socket=)",
        "No socket provided when using vhost-user",
    ),
    (
        {**SHARED, "disks": [{**VHOST_DISK, "rate_limiter_config": LIMITER}]},
        "disks[0].vhost_user",
        "Rate limiting is not supported with vhost-user",
    ),
    (
        {
            **SHARED,
            "rate_limit_groups": [{"id": "g", "rate_limiter_config": LIMITER}],
            "disks": [{**VHOST_DISK, "rate_limit_group": "g"}],
        },
        "disks[0].vhost_user",
        "Rate limiting is not supported with vhost-user",
    ),
    (
        {**SHARED, "disks": [{**VHOST_DISK, "iommu": True}]},
        "disks[0].iommu (--disk iommu=)",
        "Device does not support being placed behind IOMMU",
    ),
    (
        {"disks": [{"path": "/d", "rate_limit_group": "g"}]},
        "disks[0].rate_limit_group (--disk rate_limit_group=)",
        "Rate limit group g does not exist",
    ),
    (
        {
            "rate_limit_groups": [{"id": "g", "rate_limiter_config": LIMITER}],
            "disks": [{"path": "/d", "rate_limit_group": "g", "rate_limiter_config": LIMITER}],
        },
        "disks[0].rate_limit_group",
        "give one of them",
    ),
    (
        {"disks": [{"path": "/d", "num_queues": 2}]},
        "disks[0].num_queues (--disk num_queues=)",
        "Queue count (2) must not exceed boot vCPUs (1)",
    ),
    (
        {"disks": [{"path": "/d", "queue_size": 6}]},
        "disks[0].queue_size (--disk queue_size=)",
        "Queue size must be a power of 2 no greater than 32768: 6",
    ),
    ({"disks": [{"path": "/d", "queue_size": 33000}]}, "disks[0].queue_size", "32768: 33000"),
    (
        {"disks": [{"path": "/d", "queue_size": 2}]},
        "disks[0].queue_size",
        "Block queue size must be greater than 2: 2",
    ),
    (
        {"disks": [{"path": "/d", "serial": "é" * 11}]},
        "disks[0].serial (--disk serial=)",
        "Block device serial length (22) exceeds maximum allowed length (20)",
    ),
    (
        {"net": [{"vhost_user": True, "vhost_socket": "/s"}]},
        "net[0].vhost_user",
        "Using vhost-user requires using shared memory or huge pages",
    ),
    ({**SHARED, "net": [{"vhost_user": True}]}, "net[0].vhost_socket", "No socket provided"),
    (
        {**SHARED, "net": [{**VHOST_DISK, "rate_limiter_config": LIMITER}]},
        "net[0].vhost_user",
        "Rate limiting is not supported with vhost-user",
    ),
    (
        {"net": [{"num_queues": 1}]},
        "net[0].num_queues (--net num_queues=)",
        "Number of queues (1) to virtio_net should be higher than 2",
    ),
    (
        {"net": [{"fds": [3, 4]}]},
        "net[0].fds (--net fd=)",
        "Number of queues (2) does not match the number of FDs (4)",
    ),
    ({"net": [{"fds": [2]}]}, "net[0].fds", "Reserved fd number (<= 2): 2"),
    (
        {"net": [{"num_queues": 4}]},
        "net[0].num_queues",
        "Queue count (2) must not exceed boot vCPUs (1)",
    ),
    ({"net": [{"queue_size": 3}]}, "net[0].queue_size", "power of 2 no greater than 32768: 3"),
    (
        {"net": [{"mtu": 1279}]},
        "net[0].mtu (--net mtu=)",
        "Provided MTU 1279 is lower than 1280 (expected by VIRTIO specification)",
    ),
    ({"net": [{"offload_csum": False, "offload_ufo": False}]}, "net[0].offload_tso", "csum"),
    ({"net": [{"offload_csum": False, "offload_tso": False}]}, "net[0].offload_ufo", "csum"),
    ({"net": [{"ip": "10.0.0.1"}]}, "net[0].ip (--net ip=) is 10.0.0.1", "without mask"),
    ({"net": [{"mask": "255.0.0.0"}]}, "net[0].mask", "without ip"),
    ({"fs": [{"tag": "t", "socket": "/s"}]}, "fs[0].socket (--fs socket=)", "shared memory"),
    (
        {**SHARED, "fs": [{"tag": "t", "socket": "/s", "num_queues": 2}]},
        "fs[0].num_queues",
        "Queue count (2) must not exceed boot vCPUs (1)",
    ),
    ({**SHARED, "fs": [{"tag": "t", "socket": "/s", "queue_size": 0}]}, "fs[0].queue_s", ": 0;"),
    ({**SHARED, "fs": [{"tag": "t" * 37, "socket": "/s"}]}, "fs[0].tag (--fs tag=)", "37 bytes"),
    (
        {**SHARED, "fs": [{"tag": "t", "socket": "/s", "iommu": True}]},
        "fs[0].iommu",
        "Device does not support being placed behind IOMMU",
    ),
    (
        {"generic-vhost-user": [{"socket": "/s", "queue_sizes": [2], "device_type": 26}]},
        "generic_vhost_user[0].socket (--generic-vhost-user socket=)",
        "shared memory",
    ),
    (
        {**SHARED, "generic-vhost-user": [{"socket": "/", "queue_sizes": [3], "device_type": 1}]},
        "generic_vhost_user[0].queue_sizes",
        "power of 2 no greater than 32768: 3",
    ),
    (
        {
            **SHARED,
            "generic-vhost-user": [
                {"socket": "/", "queue_sizes": [2], "device_type": 1, "iommu": True}
            ],
        },
        "generic_vhost_user[0].iommu",
        "Device does not support being placed behind IOMMU",
    ),
    (
        {**SHARED, "fs": [{"tag": "t", "socket": "/s", "pci_segment": 1}]},
        "fs[0].pci_segment (--fs",
        "Invalid PCI segment id: 1",
    ),
    (
        {**SHARED, "generic-vhost-user": [{"socket": "/", "queue_sizes": [2], "device_type": 23}]},
        "generic_vhost_user[0].device_type (--generic-vhost-user device_type=)",
        "23 (iommu), which is not supported",
    ),
    (
        {**SHARED, "generic-vhost-user": [{"socket": "/", "queue_sizes": [2], "device_type": 35}]},
        "generic_vhost_user[0].device_type",
        "35 (watchdog), which is not supported",
    ),
    (
        {"user_devices": [{"socket": "/s"}]},
        "user_devices[0].socket (--user-device socket=)",
        "Using user devices requires using shared memory or huge pages",
    ),
    ({**SHARED, "user_devices": [{"socket": "/s", "iommu": True}]}, "user_devices[0].i", "behind"),
    ({"devices": [{}]}, "devices[0].path (--device path=) is missing", "give one of them"),
    (
        {"platform": {"iommufd": True, "iommufd_fd": 8}, "devices": [{"path": "/d", "fd": 9}]},
        "devices[0].path (--device path=) is /d beside fd 9",
        "give one of them",
    ),
    ({"devices": [{"fd": 9}]}, "devices[0].fd (--device fd=) is 9", "platform.iommufd_fd"),
    (
        {
            "platform": {"vfio_p2p_dma": False},
            "devices": [{"path": "/d", "x_nv_gpudirect_clique": 1}],
        },
        "devices[0].x_nv_gpudirect_clique",
        "platform.vfio_p2p_dma",
    ),
    (
        {"devices": [{"path": "/d", "x_exclude_mmap_bars": [6]}]},
        "devices[0].x_exclude_mmap_bars",
        "has 6; BARs are 0 to 5",
    ),
]


@pytest.mark.parametrize(("sections", "place", "words"), REFUSED)
def test_validate_broken_rule_is_the_one_problem_named(
    sections: dict[str, object], place: str, words: str
) -> None:
    (problem,) = problems(config_of(**sections))
    assert problem.startswith(place)
    assert words in problem

"""Validation as a whole: what passes, how several problems and duplicates are reported."""

from __future__ import annotations

import logging

import pytest

from vmm.config.validation import settle, validate
from vmm.config.vm import VmConfig, validate_config
from vmm.errors import ConfigError, DuplicateError

KERNEL = {"payload": {"kernel": "/k"}}
SHARED = {"memory": {"size": 1 << 30, "shared": True}}


def config_of(**sections: object) -> VmConfig:
    """A configuration with a kernel and what a test adds or replaces."""
    return VmConfig.model_validate({**KERNEL, **sections})


def cpus(boot: int, maximum: int | None = None, **rest: object) -> dict[str, object]:
    return {"boot_vcpus": boot, "max_vcpus": boot if maximum is None else maximum, **rest}


def problems(config: VmConfig) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        validate(config)
    return caught.value.problems


ACCEPTED: dict[str, dict[str, object]] = {
    "a kernel alone": {},
    "firmware": {"payload": {"firmware": "/f"}},
    "igvm": {"payload": {"igvm": "/i", "host_data": "0a" * 32}},
    "files": {
        "serial": {"mode": "File", "file": "/l"},
        "console": {"mode": "File", "file": "/c"},
        "debug_console": {"mode": "File", "file": "/d"},
    },
    "serial socket": {"serial": {"mode": "Socket", "socket": "/s"}},
    "most vcpus": {"cpus": cpus(1, 8192)},
    "topology": {
        "cpus": cpus(
            4,
            8,
            topology={
                "threads_per_core": 2,
                "cores_per_die": 2,
                "dies_per_package": 1,
                "packages": 2,
            },
        )
    },
    "hugepages": {"memory": {"size": 1 << 30, "hugepages": True, "hugepage_size": 2 << 20}},
    "zones": {"memory": {"size": 0, "zones": [{"id": "a", "size": 1 << 30}]}},
    "balloon": {"balloon": {"size": (512 << 20) - 1}},
    "a disk": {"disks": [{"path": "/d", "queue_size": 4, "serial": "s" * 20}]},
    "largest queue": {"disks": [{"path": "/d", "queue_size": 32768}]},
    "grouped disk": {
        "rate_limit_groups": [
            {"id": "g", "rate_limiter_config": {"ops": {"size": 1, "refill_time": 1}}}
        ],
        "disks": [{"path": "/d", "rate_limit_group": "g"}],
    },
    "vhost-user": {
        **SHARED,
        "disks": [{"vhost_user": True, "vhost_socket": "/s"}],
        "net": [{"vhost_user": True, "vhost_socket": "/s"}],
        "fs": [{"tag": "t" * 36, "socket": "/s"}],
        "generic-vhost-user": [{"socket": "/s", "queue_sizes": [2, 1], "device_type": 26}],
        "user_devices": [{"socket": "/s"}],
    },
    "tap pairs": {"cpus": cpus(2), "net": [{"fds": [3, 4], "num_queues": 4, "mtu": 1280}]},
    "net address": {"net": [{"ip": "10.0.0.1", "mask": "255.0.0.0"}]},
    "net without offloads": {
        "net": [{"offload_tso": False, "offload_ufo": False, "offload_csum": False}]
    },
    "segments": {
        "platform": {"num_pci_segments": 96, "iommu_segments": [95]},
        "disks": [{"path": "/d", "pci_segment": 95, "iommu": True, "pci_device_id": 0}],
        "pci_segments": [{"pci_segment": 95}],
    },
    "numa": {
        "memory": {"size": 0, "zones": [{"id": "a", "size": 1}, {"id": "b", "size": 1}]},
        "platform": {"num_pci_segments": 2},
        "numa": [
            {"guest_numa_id": 0, "cpus": [0], "memory_zones": ["a"], "pci_segments": [0]},
            {"guest_numa_id": 1, "memory_zones": ["b"], "pci_segments": [1]},
            {"guest_numa_id": 2, "device_id": "gpu"},
        ],
    },
    "landlock": {"landlock_rules": [{"path": "/x", "access": "rw"}]},
    "vfio": {"devices": [{"path": "/d", "x_nv_gpudirect_clique": 1, "x_exclude_mmap_bars": [5]}]},
    "vfio descriptor": {
        "platform": {"iommufd": True, "iommufd_fd": 8},
        "devices": [{"fd": 9}],
    },
}


@pytest.mark.parametrize("sections", ACCEPTED.values(), ids=ACCEPTED)
def test_validate_good_configuration_passes(sections: dict[str, object]) -> None:
    validate_config(config_of(**sections))


LIMITER = {"ops": {"size": 1, "refill_time": 1}}


@pytest.mark.parametrize(
    "sections",
    [
        {"disks": [{"path": "/a", "id": "x"}, {"path": "/b", "id": "x"}]},
        {"rng": {"src": "/r", "id": "x"}, "net": [{"id": "x"}]},
        {"memory": {"size": 0, "zones": [{"id": "x", "size": 1}]}, "rtc": {"id": "x"}},
        {
            "rate_limit_groups": [{"id": "x", "rate_limiter_config": LIMITER}],
            "vdpa": [{"path": "/v", "id": "x"}],
        },
    ],
)
def test_validate_taken_identifier_is_a_duplicate(sections: dict[str, object]) -> None:
    with pytest.raises(DuplicateError, match="Identifier x is not unique"):
        validate(config_of(**sections))


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        (
            {
                "disks": [{"path": "/a", "pci_device_id": 5}],
                "net": [{}, {"pci_device_id": 5}],
            },
            r"net\[1\]\.pci_device_id \(--net pci_device_id=\): PCI device id 5 of segment 0 is "
            r"not unique, disks\[0\] has it",
        ),
        (
            {
                "platform": {"num_pci_segments": 2},
                "rng": {"src": "/r", "pci_segment": 1, "pci_device_id": 0},
                "balloon": {"size": 0, "pci_segment": 1, "pci_device_id": 0},
            },
            "PCI device id 0 of segment 1 is not unique",
        ),
        (
            {"pci_segments": [{"pci_segment": 0}, {"pci_segment": 0}]},
            r"pci_segments\[1\].* PCI segment 0 is described twice",
        ),
    ],
)
def test_validate_taken_slot_or_segment_is_a_duplicate(
    sections: dict[str, object], words: str
) -> None:
    with pytest.raises(DuplicateError, match=words):
        validate(config_of(**sections))


def test_validate_same_slot_of_two_segments_is_two_slots() -> None:
    disks = [{"path": "/a", "pci_device_id": 5, "pci_segment": segment} for segment in (0, 1)]
    validate(config_of(platform={"num_pci_segments": 2}, disks=disks))


def test_validate_taken_device_path_is_a_duplicate() -> None:
    with pytest.raises(DuplicateError, match="Device path /d is not unique, devices"):
        validate(config_of(devices=[{"path": "/d"}, {"path": "/d"}]))


def test_validate_reports_all_problems_and_not_as_duplicates_alone() -> None:
    config = config_of(
        payload=None, disks=[{"path": "/a", "id": "x", "num_queues": 9}, {"path": "/b", "id": "x"}]
    )
    with pytest.raises(ConfigError) as caught:
        validate(config)
    assert not isinstance(caught.value, DuplicateError)
    assert len(caught.value.problems) == 3


def test_validate_landlock_paths_are_looked_up_on_the_host_if_asked() -> None:
    config = config_of(landlock_rules=[{"path": "/gone", "access": "r"}])
    validate(config, path_exists=lambda path: path == "/gone")
    with pytest.raises(ConfigError, match=r"landlock_rules\[0\].path .* is /gone, which does not"):
        validate(config, path_exists=lambda _: False)


def test_validate_firmware_with_command_line_only_warns(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "vmm.config"):
        validate(config_of(payload={"firmware": "/f", "cmdline": "x"}))
    assert "does not take payload.cmdline" in caplog.text


def test_validate_shared_terminal_only_warns(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "vmm.config"):
        validate(config_of(serial={"mode": "Tty"}, console={"mode": "Tty"}))
    assert "Several consoles share the terminal: serial, console" in caplog.text


def test_validate_terminal_that_was_not_asked_for_twice_is_silent(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING, "vmm.config"):
        validate(config_of(serial={"mode": "Tty"}))
    assert caplog.text == ""


def test_settle_firmware_drops_what_it_does_not_take() -> None:
    settled = settle(config_of(payload={"firmware": "/f", "cmdline": "x", "initramfs": "/i"}))
    assert settled.to_json()["payload"] == {"firmware": "/f"}


@pytest.mark.parametrize(
    "sections",
    [
        {"disks": [{"path": "/d", "iommu": True}]},
        {"platform": {"num_pci_segments": 2, "iommu_segments": [1]}},
    ],
)
def test_settle_device_behind_the_iommu_turns_it_on(sections: dict[str, object]) -> None:
    assert settle(config_of(**sections)).iommu
    assert not settle(config_of()).iommu

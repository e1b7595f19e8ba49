"""Every object, field, default and limit of the API document is in the models."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from vmm.config.balloon import BalloonConfig
from vmm.config.console import ConsoleConfig, ConsoleMode, DebugConsoleConfig, SerialConfig
from vmm.config.cpus import CoreSchedulingMode, CpuAffinity, CpuFeatures, CpusConfig, CpuTopology
from vmm.config.device import DeviceConfig, UserDeviceConfig, VdpaConfig
from vmm.config.disk import DiskConfig, ImageType, LockGranularity, VirtQueueAffinity
from vmm.config.fs import FsConfig
from vmm.config.generic_vhost_user import GenericVhostUserConfig
from vmm.config.info import DeviceNode, PciDeviceInfo, VmInfo, VmmPingResponse, VmState
from vmm.config.landlock import LandlockConfig
from vmm.config.memory import HotplugMethod, MemoryConfig, MemoryZoneConfig
from vmm.config.model import ConfigModel
from vmm.config.net import NetConfig, VhostMode
from vmm.config.numa import NumaConfig, NumaDistance
from vmm.config.payload import PayloadConfig
from vmm.config.pci import PciSegmentConfig
from vmm.config.platform import PlatformConfig
from vmm.config.pmem import PmemConfig
from vmm.config.rate_limit import RateLimiterConfig, RateLimitGroupConfig, TokenBucket
from vmm.config.requests import (
    MemoryRestoreMode,
    ReceiveMigrationData,
    RestoreConfig,
    SendMigrationData,
    TimeoutStrategy,
    VmCoredumpData,
    VmRemoveDevice,
    VmResize,
    VmResizeDisk,
    VmResizeZone,
    VmSnapshotConfig,
)
from vmm.config.rng import RngConfig, RtcConfig
from vmm.config.tpm import TpmConfig
from vmm.config.vm import VmConfig
from vmm.config.vsock import VsockConfig

PROPERTIES: dict[type[ConfigModel], str] = {
    VmmPingResponse: "build_version version pid features",
    VmInfo: "config state memory_actual_size device_tree",
    DeviceNode: "id resources children pci_bdf",
    PciDeviceInfo: "id bdf",
    PayloadConfig: "firmware kernel cmdline initramfs igvm host_data",
    VmConfig: (
        "cpus memory payload rate_limit_groups disks net rng balloon fs generic-vhost-user "
        "pmem serial console debug_console devices user_devices vdpa vsock numa iommu "
        "watchdog rtc pvpanic pci_segments platform tpm landlock_enable landlock_rules"
    ),
    CpuAffinity: "vcpu host_cpus",
    CpuFeatures: "amx",
    CpuTopology: "threads_per_core cores_per_die dies_per_package packages",
    CpusConfig: (
        "boot_vcpus max_vcpus topology kvm_hyperv max_phys_bits nested affinity features "
        "core_scheduling"
    ),
    PciSegmentConfig: "pci_segment mmio32_aperture_weight mmio64_aperture_weight",
    PlatformConfig: (
        "num_pci_segments iommu_segments iommu_address_width_bits system_serial_number "
        "serial_number system_uuid uuid oem_strings system_manufacturer system_product_name "
        "system_version system_family system_sku_number chassis_asset_tag tdx sev_snp iommufd "
        "vfio_p2p_dma"
    ),
    MemoryZoneConfig: (
        "id size file mergeable shared hugepages hugepage_size host_numa_node hotplug_size "
        "hotplugged_size prefault"
    ),
    MemoryConfig: (
        "size hotplug_size hotplugged_size mergeable hotplug_method shared hugepages "
        "hugepage_size prefault thp zones"
    ),
    TokenBucket: "size one_time_burst refill_time",
    RateLimiterConfig: "bandwidth ops",
    RateLimitGroupConfig: "id rate_limiter_config",
    VirtQueueAffinity: "queue_index host_cpus",
    DiskConfig: (
        "path readonly direct iommu num_queues queue_size vhost_user vhost_socket "
        "rate_limiter_config pci_segment pci_device_id id serial rate_limit_group "
        "queue_affinity backing_files sparse image_type lock_granularity"
    ),
    NetConfig: (
        "tap ip mask mac host_mac mtu iommu num_queues queue_size vhost_user vhost_socket "
        "vhost_mode id pci_segment pci_device_id rate_limiter_config offload_tso offload_ufo "
        "offload_csum"
    ),
    RngConfig: "id pci_segment pci_device_id iommu src",
    RtcConfig: "id pci_segment pci_device_id iommu",
    BalloonConfig: ("id pci_segment pci_device_id iommu size deflate_on_oom free_page_reporting"),
    FsConfig: "tag socket num_queues queue_size pci_segment pci_device_id id",
    GenericVhostUserConfig: "socket queue_size pci_segment pci_device_id virtio_id",
    PmemConfig: "file size iommu discard_writes pci_segment pci_device_id id",
    ConsoleConfig: "file socket mode iommu id pci_segment pci_device_id",
    SerialConfig: "file socket mode",
    DebugConsoleConfig: "file mode iobase",
    DeviceConfig: (
        "path iommu pci_segment pci_device_id id x_nv_gpudirect_clique x_exclude_mmap_bars"
    ),
    UserDeviceConfig: "socket id pci_segment pci_device_id",
    TpmConfig: "socket",
    VdpaConfig: "path num_queues iommu pci_segment pci_device_id id",
    VsockConfig: "cid socket iommu pci_segment pci_device_id id",
    NumaDistance: "destination distance",
    NumaConfig: "guest_numa_id cpus distances memory_zones pci_segments device_id",
    VmResize: "desired_vcpus desired_ram desired_balloon",
    VmResizeDisk: "id desired_size",
    VmResizeZone: "id desired_ram",
    VmRemoveDevice: "id",
    VmSnapshotConfig: "destination_url",
    VmCoredumpData: "destination_url",
    RestoreConfig: "source_url prefault memory_restore_mode resume",
    ReceiveMigrationData: "receiver_url",
    SendMigrationData: ("destination_url local downtime_ms timeout_s timeout_strategy connections"),
    LandlockConfig: "path access",
}

DEFAULTS: list[tuple[type[ConfigModel], str, object]] = [
    (VmConfig, "iommu", False),
    (VmConfig, "watchdog", False),
    (VmConfig, "pvpanic", False),
    (VmConfig, "landlock_enable", False),
    (CpusConfig, "kvm_hyperv", False),
    (CpusConfig, "nested", True),
    (PlatformConfig, "tdx", False),
    (PlatformConfig, "sev_snp", False),
    (PlatformConfig, "iommufd", False),
    (PlatformConfig, "vfio_p2p_dma", True),
    (MemoryZoneConfig, "mergeable", False),
    (MemoryZoneConfig, "shared", False),
    (MemoryZoneConfig, "hugepages", False),
    (MemoryZoneConfig, "prefault", False),
    (MemoryConfig, "mergeable", False),
    (MemoryConfig, "hotplug_method", "Acpi"),
    (MemoryConfig, "shared", False),
    (MemoryConfig, "hugepages", False),
    (MemoryConfig, "prefault", False),
    (MemoryConfig, "thp", True),
    (DiskConfig, "readonly", False),
    (DiskConfig, "direct", False),
    (DiskConfig, "iommu", False),
    (DiskConfig, "num_queues", 1),
    (DiskConfig, "queue_size", 128),
    (DiskConfig, "vhost_user", False),
    (DiskConfig, "backing_files", False),
    (DiskConfig, "sparse", True),
    (NetConfig, "iommu", False),
    (NetConfig, "num_queues", 2),
    (NetConfig, "queue_size", 256),
    (NetConfig, "vhost_user", False),
    (NetConfig, "vhost_mode", "Client"),
    (NetConfig, "offload_tso", True),
    (NetConfig, "offload_ufo", True),
    (NetConfig, "offload_csum", True),
    (RngConfig, "iommu", False),
    (RtcConfig, "iommu", False),
    (BalloonConfig, "iommu", False),
    (BalloonConfig, "deflate_on_oom", False),
    (BalloonConfig, "free_page_reporting", False),
    (FsConfig, "num_queues", 1),
    (FsConfig, "queue_size", 1024),
    (PmemConfig, "iommu", False),
    (PmemConfig, "discard_writes", False),
    (ConsoleConfig, "iommu", False),
    (DeviceConfig, "iommu", False),
    (VdpaConfig, "num_queues", 1),
    (VdpaConfig, "iommu", False),
    (VsockConfig, "iommu", False),
    (SendMigrationData, "downtime_ms", 300),
    (SendMigrationData, "timeout_s", 3600),
    (SendMigrationData, "connections", 1),
    (CpusConfig, "core_scheduling", "Vm"),
    (DiskConfig, "lock_granularity", "ByteRange"),
    (RestoreConfig, "memory_restore_mode", "Copy"),
    (SendMigrationData, "timeout_strategy", "Cancel"),
    (NetConfig, "ip", None),
    (NetConfig, "mask", None),
]


@pytest.mark.parametrize("model", PROPERTIES, ids=lambda model: model.__name__)
def test_model_has_every_property_of_the_document(model: type[ConfigModel]) -> None:
    known = set(model.model_fields) | set(model.SPELLINGS)
    assert set(PROPERTIES[model].split()) <= known


@pytest.mark.parametrize(("model", "name", "default"), DEFAULTS)
def test_model_has_the_default_of_the_document(
    model: type[ConfigModel], name: str, default: object
) -> None:
    assert model.model_fields[name].get_default() == default


def test_config_of_nothing_has_the_documented_machine() -> None:
    shown = VmConfig().to_json()
    assert shown["cpus"] == {
        "boot_vcpus": 1,
        "max_vcpus": 1,
        "kvm_hyperv": False,
        "max_phys_bits": 46,
        "nested": True,
        "features": {"amx": False},
        "core_scheduling": "Vm",
        "profile": "Host",
    }
    assert shown["rng"] == {"src": "/dev/urandom", "pci_segment": 0}
    assert shown["serial"] == {"mode": "Null"}
    assert shown["console"] == {"mode": "Tty", "pci_segment": 0}
    assert shown["debug_console"] == {"mode": "Off", "iobase": 233}
    assert VmConfig().total_memory() == 512 << 20


def test_defaults_of_absent_sections_are_valid() -> None:
    # They are made without validators; this is where they are checked.
    config = VmConfig()
    assert VmConfig.model_validate(config.to_json()) == config


ENUMERATIONS = [
    (VmState, ["Created", "Running", "Shutdown", "Paused"]),
    (CoreSchedulingMode, ["Vm", "Vcpu", "Off"]),
    (ImageType, ["FixedVhd", "Qcow2", "Raw", "Vhdx", "Unknown", "FlatVmdk"]),
    (LockGranularity, ["ByteRange", "Full"]),
    (ConsoleMode, ["Off", "Pty", "Tty", "File", "Socket", "Null"]),
    (MemoryRestoreMode, ["Copy", "OnDemand"]),
    (TimeoutStrategy, ["Cancel", "Ignore"]),
    (HotplugMethod, ["Acpi", "VirtioMem"]),
    (VhostMode, ["Client", "Server"]),
]


@pytest.mark.parametrize(("choice", "words"), ENUMERATIONS)
def test_enumeration_has_the_words_of_the_document(choice: Any, words: list[str]) -> None:  # noqa: ANN401
    assert {each.value for each in choice} == set(words)


LIMITS: list[tuple[type[ConfigModel], dict[str, object], str, int, int]] = [
    (CpusConfig, {"boot_vcpus": 1, "max_vcpus": 1}, "boot_vcpus", 1, 2**32 - 1),
    (CpusConfig, {"boot_vcpus": 1, "max_vcpus": 1}, "max_phys_bits", 0, 255),
    (CpuTopology, {}, "packages", 0, 65535),
    (MemoryConfig, {}, "size", 0, 2**64 - 1),
    (MemoryZoneConfig, {"id": "z", "size": 0}, "host_numa_node", 0, 2**32 - 1),
    (DiskConfig, {}, "queue_size", 0, 65535),
    (DiskConfig, {}, "pci_segment", 0, 65535),
    (DiskConfig, {}, "pci_device_id", 0, 255),
    (NetConfig, {}, "mtu", 0, 65535),
    (PlatformConfig, {}, "iommu_address_width_bits", 0, 255),
    (PciSegmentConfig, {}, "mmio32_aperture_weight", 0, 2**32 - 1),
    (DebugConsoleConfig, {"mode": "Off"}, "iobase", 0, 65535),
    (VsockConfig, {"socket": "/s"}, "cid", 3, 2**32 - 2),
    (NumaDistance, {"destination": 1}, "distance", 0, 255),
    (GenericVhostUserConfig, {"socket": "/s", "queue_sizes": []}, "device_type", 0, 2**32 - 1),
    (VmResize, {}, "desired_vcpus", 1, 2**32 - 1),
    (SendMigrationData, {"destination_url": "u"}, "connections", 1, 128),
    (SendMigrationData, {"destination_url": "u"}, "downtime_ms", 1, 2**64 - 1),
]


@pytest.mark.parametrize(("model", "rest", "name", "low", "high"), LIMITS)
def test_integer_at_its_limits_is_taken_and_beyond_refused(
    model: type[ConfigModel], rest: dict[str, object], name: str, low: int, high: int
) -> None:
    for value in (low, high):
        assert getattr(model.model_validate(rest | {name: value}), name) == value
    for value in (low - 1, high + 1):
        with pytest.raises(ValidationError):
            model.model_validate(rest | {name: value})


def test_model_is_frozen() -> None:
    with pytest.raises(ValidationError):
        VmConfig().iommu = True


def test_memory_facts_count_zones() -> None:
    zones = (
        MemoryZoneConfig(id="a", size=1 << 30, shared=True),
        MemoryZoneConfig(id="b", size=1 << 30, hugepages=True),
    )
    assert MemoryConfig(size=0, zones=zones).total_size == 2 << 30
    assert MemoryConfig(size=0, zones=zones).is_shareable
    assert not MemoryConfig(size=1, zones=zones).is_shareable
    assert MemoryConfig(size=1, shared=True).is_shareable
    assert not MemoryConfig(size=0).is_shareable
    plain = MemoryZoneConfig(id="c", size=1)
    assert not MemoryConfig(size=0, zones=(*zones, plain)).is_shareable

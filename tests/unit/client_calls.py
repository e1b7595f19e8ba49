"""Every method of a client with arguments for it, and what it has to send."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from vmm.config.device import DeviceConfig, UserDeviceConfig, VdpaConfig
from vmm.config.disk import DiskConfig
from vmm.config.fs import FsConfig
from vmm.config.generic_vhost_user import GenericVhostUserConfig
from vmm.config.model import ConfigModel
from vmm.config.net import NetConfig
from vmm.config.payload import PayloadConfig
from vmm.config.pmem import PmemConfig
from vmm.config.requests import (
    ReceiveMigrationData,
    RestoreConfig,
    SendMigrationData,
    VmCoredumpData,
    VmRemoveDevice,
    VmResize,
    VmResizeDisk,
    VmResizeZone,
    VmSnapshotConfig,
)
from vmm.config.vm import VmConfig
from vmm.config.vsock import VsockConfig

CONFIG = VmConfig(payload=PayloadConfig(kernel="/boot/vmlinuz"))


@dataclass(frozen=True)
class Case:
    """A method, its arguments, and the request they make."""

    method: str
    request: str
    model: ConfigModel | None = None
    arguments: tuple[Any, ...] = ()
    keywords: dict[str, Any] = field(default_factory=dict)


def _takes(method: str, request: str, model: ConfigModel) -> Case:
    return Case(method, request, model, (model,))


CASES = (
    Case("ping", "GET /vmm.ping"),
    Case("shutdown_vmm", "PUT /vmm.shutdown"),
    Case("info", "GET /vm.info"),
    Case("counters", "GET /vm.counters"),
    _takes("create", "PUT /vm.create", CONFIG),
    Case("delete", "PUT /vm.delete"),
    Case("boot", "PUT /vm.boot"),
    Case("pause", "PUT /vm.pause"),
    Case("resume", "PUT /vm.resume"),
    Case("shutdown", "PUT /vm.shutdown"),
    Case("reboot", "PUT /vm.reboot"),
    Case("power_button", "PUT /vm.power-button"),
    Case("nmi", "PUT /vm.nmi"),
    Case(
        "resize",
        "PUT /vm.resize",
        VmResize(desired_vcpus=2, desired_ram=1 << 30),
        keywords={"desired_vcpus": 2, "desired_ram": 1 << 30},
    ),
    Case("resize_disk", "PUT /vm.resize-disk", VmResizeDisk(id="a", desired_size=512), ("a", 512)),
    Case("resize_zone", "PUT /vm.resize-zone", VmResizeZone(id="a", desired_ram=512), ("a", 512)),
    _takes("add_device", "PUT /vm.add-device", DeviceConfig(path="/sys/a")),
    _takes("add_disk", "PUT /vm.add-disk", DiskConfig(path="/a.raw", readonly=True)),
    _takes("add_fs", "PUT /vm.add-fs", FsConfig(tag="a", socket="/a")),
    _takes(
        "add_generic_vhost_user",
        "PUT /vm.add-generic-vhost-user",
        GenericVhostUserConfig(socket="/a", queue_sizes=(64,), device_type=26),
    ),
    _takes("add_net", "PUT /vm.add-net", NetConfig(tap="tap0")),
    _takes("add_pmem", "PUT /vm.add-pmem", PmemConfig(file="/a")),
    _takes("add_user_device", "PUT /vm.add-user-device", UserDeviceConfig(socket="/a")),
    _takes("add_vdpa", "PUT /vm.add-vdpa", VdpaConfig(path="/dev/a")),
    _takes("add_vsock", "PUT /vm.add-vsock", VsockConfig(cid=3, socket="/a")),
    Case("remove_device", "PUT /vm.remove-device", VmRemoveDevice(id="a"), ("a",)),
    Case(
        "snapshot",
        "PUT /vm.snapshot",
        VmSnapshotConfig(destination_url="file:///a"),
        ("file:///a",),
    ),
    Case(
        "coredump", "PUT /vm.coredump", VmCoredumpData(destination_url="file:///a"), ("file:///a",)
    ),
    _takes("restore", "PUT /vm.restore", RestoreConfig(source_url="file:///a")),
    _takes(
        "receive_migration",
        "PUT /vm.receive-migration",
        ReceiveMigrationData(receiver_url="unix:/a"),
    ),
    _takes(
        "send_migration", "PUT /vm.send-migration", SendMigrationData(destination_url="unix:/a")
    ),
    Case("migration", "GET /vm.migration"),
    Case("migration_cancel", "PUT /vm.migration-cancel"),
)

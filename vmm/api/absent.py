"""Requests of the API document that this version cannot serve: refused by name, never unknown."""

from __future__ import annotations

from vmm.api.routes import Answer, Route, Service
from vmm.config.device import DeviceConfig, UserDeviceConfig, VdpaConfig
from vmm.config.disk import DiskConfig
from vmm.config.fs import FsConfig
from vmm.config.generic_vhost_user import GenericVhostUserConfig
from vmm.config.info import PciDeviceInfo
from vmm.config.model import ConfigModel
from vmm.config.net import NetConfig
from vmm.config.pmem import PmemConfig
from vmm.config.requests import (
    ReceiveMigrationData,
    RestoreConfig,
    SendMigrationData,
    VmCoredumpData,
    VmRemoveDevice,
    VmResize,
    VmResizeZone,
    VmSnapshotConfig,
)
from vmm.config.vsock import VsockConfig
from vmm.errors import UnsupportedError

SUMMARY = "Not in this version, which refuses it by name."


def _absent(path: str, model: type[ConfigModel], action: str, answer: object = None) -> Route:
    async def refuse(service: Service, _body: bytes) -> Answer:
        raise UnsupportedError(
            f"{path} is part of the API, but version {service.about.version} of this VMM"
            " does not have it: use a later version"
        )

    return Route(path, "PUT", action, frozenset({UnsupportedError}), model, answer, SUMMARY, refuse)


def _add(name: str, model: type[ConfigModel], what: str) -> Route:
    action = f"The {what} could not be added to the VM"
    return _absent(f"/vm.add-{name}", model, action, PciDeviceInfo | None)


ROUTES = (
    _absent("/vm.resize", VmResize, "The VM could not be resized"),
    _absent("/vm.resize-zone", VmResizeZone, "The memory zone could not be resized"),
    _add("device", DeviceConfig, "device"),
    _absent("/vm.remove-device", VmRemoveDevice, "The device could not be removed from the VM"),
    _add("disk", DiskConfig, "disk"),
    _add("fs", FsConfig, "fs"),
    _add("generic-vhost-user", GenericVhostUserConfig, "generic vhost-user device"),
    _add("pmem", PmemConfig, "pmem device"),
    _add("net", NetConfig, "network device"),
    _add("vsock", VsockConfig, "vsock device"),
    _add("vdpa", VdpaConfig, "vDPA device"),
    _add("user-device", UserDeviceConfig, "user device"),
    _absent("/vm.snapshot", VmSnapshotConfig, "The VM could not be snapshotted"),
    _absent("/vm.coredump", VmCoredumpData, "The VM could not be coredumped"),
    _absent("/vm.restore", RestoreConfig, "The VM could not be restored"),
    _absent("/vm.receive-migration", ReceiveMigrationData, "Error receiving migration"),
    _absent("/vm.send-migration", SendMigrationData, "Error dispatching the migration worker"),
)

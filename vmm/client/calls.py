"""Every request of the API, as what it sends and the type of what it answers. Sans-I/O.

One function a path; ``Client`` and ``AsyncClient`` have a method of the same name for each.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from pydantic import TypeAdapter, ValidationError

from vmm.client.descriptors import descriptors_of, without_descriptors
from vmm.client.errors import ApiError, NoVmmError
from vmm.client.http import Reply
from vmm.config.device import DeviceConfig, UserDeviceConfig, VdpaConfig
from vmm.config.disk import DiskConfig
from vmm.config.fs import FsConfig
from vmm.config.generic_vhost_user import GenericVhostUserConfig
from vmm.config.info import MigrationInfo, PciDeviceInfo, VmCounters, VmInfo, VmmPingResponse
from vmm.config.model import ConfigModel
from vmm.config.net import NetConfig
from vmm.config.pmem import PmemConfig
from vmm.config.refusal import refusals
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
from vmm.errors import ConfigError

A_co = TypeVar("A_co", covariant=True)
M = TypeVar("M", bound=ConfigModel)

BAD_REQUEST = 400
"""The first status that says no."""


@dataclass(frozen=True, slots=True)
class Call(Generic[A_co]):
    """One request: what is sent, and how its answer is read.

    ``descriptors`` stay the caller's: the VMM gets duplicates of them.
    """

    method: str
    path: str
    read: Callable[[bytes], A_co]
    body: bytes | None = None
    descriptors: tuple[int, ...] = ()

    def result(self, reply: Reply) -> A_co:
        """Read the answer.

        Raises: ApiError for a refusal; NoVmmError (peer) for an answer that is not the documented
        one.
        """
        if reply.status >= BAD_REQUEST:
            raise _refusal(self.path.removeprefix("/"), reply)
        try:
            return self.read(reply.body)
        except ValueError as error:
            raise NoVmmError(
                f"The answer to {self.path} is not what the API documents: {error}"
            ) from error


def _refusal(request: str, reply: Reply) -> ApiError:
    try:
        texts = json.loads(reply.body)
    except ValueError:
        texts = None
    if isinstance(texts, list) and all(isinstance(each, str) for each in texts):
        return ApiError(request, reply.status, tuple(texts))
    text = reply.body.decode(errors="replace").strip()
    return ApiError(request, reply.status, (text,) if text else (), is_chain=False)


def _nothing(_body: bytes) -> None:
    """Read the answer of a request that has none; what else stands there is ignored."""


def _added(body: bytes) -> PciDeviceInfo | None:
    return _reads(PciDeviceInfo)(body) if body else None


def _counted(body: bytes) -> VmCounters:
    return TypeAdapter(VmCounters).validate_json(body, strict=True)


def _reads(model: type[M]) -> Callable[[bytes], M]:
    """Read a model as the server shows it: with its descriptors, and maybe with newer fields."""

    def read(body: bytes) -> M:
        try:
            return model.model_validate(json.loads(body))
        except ValidationError as error:
            raise ValueError("; ".join(refusals(error))) from None

    return read


def _put(action: str, model: ConfigModel | None = None) -> Call[None]:
    if model is None:
        return Call("PUT", f"/vm.{action}", _nothing)
    return Call("PUT", f"/vm.{action}", _nothing, _json(model), tuple(descriptors_of(model)))


def _add(kind: str, config: ConfigModel) -> Call[PciDeviceInfo | None]:
    path = f"/vm.add-{kind}"
    return Call("PUT", path, _added, _json(config), tuple(descriptors_of(config)))


def _json(model: ConfigModel) -> bytes:
    return json.dumps(without_descriptors(model), separators=(",", ":")).encode()


def ping() -> Call[VmmPingResponse]:
    """Ask which program answers."""
    return Call("GET", "/vmm.ping", _reads(VmmPingResponse))


def shutdown_vmm() -> Call[None]:
    """Delete the VM and end the VMM's process."""
    return Call("PUT", "/vmm.shutdown", _nothing)


def info() -> Call[VmInfo]:
    """Ask for the VM's configuration, state, memory and devices."""
    return Call("GET", "/vm.info", _reads(VmInfo))


def counters() -> Call[VmCounters]:
    """Ask what each device has counted."""
    return Call("GET", "/vm.counters", _counted)


def create(config: VmConfig | bytes) -> Call[None]:
    """Store the configuration of a VM, which is not booted; bytes are sent as they are.

    Raises: ConfigError (caller) for open files, which this request cannot carry: use ``add_net``.
    """
    if isinstance(config, bytes):
        return Call("PUT", "/vm.create", _nothing, config)
    if any(True for _ in descriptors_of(config)):
        raise ConfigError("vm.create carries no open files: create the VM, then use vm.add-net")
    return _put("create", config)


def delete() -> Call[None]:
    """Stop the VM if it runs, and forget it."""
    return _put("delete")


def boot() -> Call[None]:
    """Build the machine that was created, and start it."""
    return _put("boot")


def pause() -> Call[None]:
    """Stop every vCPU."""
    return _put("pause")


def resume() -> Call[None]:
    """Let a paused VM run on."""
    return _put("resume")


def shutdown() -> Call[None]:
    """Stop the VM at once; it stays created."""
    return _put("shutdown")


def reboot() -> Call[None]:
    """Build the machine anew and start it."""
    return _put("reboot")


def power_button() -> Call[None]:
    """Press the ACPI power button."""
    return _put("power-button")


def nmi() -> Call[None]:
    """Send every vCPU a non-maskable interrupt."""
    return _put("nmi")


def resize(
    *,
    desired_vcpus: int | None = None,
    desired_ram: int | None = None,
    desired_balloon: int | None = None,
) -> Call[None]:
    """Give the VM other amounts of vCPUs and RAM, in bytes; what is absent stays as it is."""
    given = VmResize(
        desired_vcpus=desired_vcpus, desired_ram=desired_ram, desired_balloon=desired_balloon
    )
    return _put("resize", given)


def resize_disk(id: str, desired_size: int) -> Call[None]:
    """Give a disk another size in bytes."""
    return _put("resize-disk", VmResizeDisk(id=id, desired_size=desired_size))


def resize_zone(id: str, desired_ram: int) -> Call[None]:
    """Give a memory zone another size in bytes."""
    return _put("resize-zone", VmResizeZone(id=id, desired_ram=desired_ram))


def add_device(config: DeviceConfig) -> Call[PciDeviceInfo | None]:
    """Pass a device of the host through; ``fd`` is sent along. None if the VM does not run."""
    return _add("device", config)


def add_disk(config: DiskConfig) -> Call[PciDeviceInfo | None]:
    """Add a disk. None if the VM does not run."""
    return _add("disk", config)


def add_fs(config: FsConfig) -> Call[PciDeviceInfo | None]:
    """Add a shared file system. None if the VM does not run."""
    return _add("fs", config)


def add_generic_vhost_user(config: GenericVhostUserConfig) -> Call[PciDeviceInfo | None]:
    """Add a device that a vhost-user back end implements. None if the VM does not run."""
    return _add("generic-vhost-user", config)


def add_net(config: NetConfig) -> Call[PciDeviceInfo | None]:
    """Add a network device; the taps in ``fds`` are sent along. None if the VM does not run."""
    return _add("net", config)


def add_pmem(config: PmemConfig) -> Call[PciDeviceInfo | None]:
    """Add persistent memory. None if the VM does not run."""
    return _add("pmem", config)


def add_user_device(config: UserDeviceConfig) -> Call[PciDeviceInfo | None]:
    """Add a device that a vfio-user process implements. None if the VM does not run."""
    return _add("user-device", config)


def add_vdpa(config: VdpaConfig) -> Call[PciDeviceInfo | None]:
    """Add a vDPA device of the host. None if the VM does not run."""
    return _add("vdpa", config)


def add_vsock(config: VsockConfig) -> Call[PciDeviceInfo | None]:
    """Add a vsock device. None if the VM does not run."""
    return _add("vsock", config)


def remove_device(id: str) -> Call[None]:
    """Ask the guest to give a device up, and take it away."""
    return _put("remove-device", VmRemoveDevice(id=id))


def snapshot(destination_url: str) -> Call[None]:
    """Write the paused VM's state where the URL says."""
    return _put("snapshot", VmSnapshotConfig(destination_url=destination_url))


def coredump(destination_url: str) -> Call[None]:
    """Write the guest's memory as a core dump where the URL says."""
    return _put("coredump", VmCoredumpData(destination_url=destination_url))


def restore(config: RestoreConfig) -> Call[None]:
    """Restore a VM from a snapshot; the open files that replace its own are sent along."""
    return _put("restore", config)


def receive_migration(config: ReceiveMigrationData) -> Call[None]:
    """Wait for a VM and take it in; the open files that replace its own are sent along."""
    return _put("receive-migration", config)


def send_migration(config: SendMigrationData) -> Call[None]:
    """Move the VM to another VMM; answered when it has gone."""
    return _put("send-migration", config)


def migration() -> Call[MigrationInfo]:
    """Ask how far a migration is, or how the last one ended."""
    return Call("GET", "/vm.migration", _reads(MigrationInfo))


def migration_cancel() -> Call[None]:
    """Stop the migration that is under way; the VM stays where it is."""
    return _put("migration-cancel")

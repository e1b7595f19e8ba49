"""Requests that change what a VM has: devices, and how much of them."""

from __future__ import annotations

from vmm.api.descriptors import Descriptors
from vmm.api.routes import Route, Service, put_model, put_model_and_descriptors
from vmm.config.device import DeviceConfig, UserDeviceConfig, VdpaConfig
from vmm.config.disk import DiskConfig
from vmm.config.fs import FsConfig
from vmm.config.generic_vhost_user import GenericVhostUserConfig
from vmm.config.info import PciDeviceInfo
from vmm.config.net import NetConfig
from vmm.config.pci import PciSlot
from vmm.config.pmem import PmemConfig
from vmm.config.requests import VmRemoveDevice, VmResize, VmResizeDisk, VmResizeZone
from vmm.config.vsock import VsockConfig
from vmm.errors import (
    DuplicateError,
    NotCreatedError,
    NotFoundError,
    PendingError,
    StateError,
    UnsupportedError,
)
from vmm.machine.commands import AddDevice, RemoveDevice, Resize, ResizeDisk

ADDED: tuple[tuple[str, str, type[PciSlot], str], ...] = (
    ("device", "devices", DeviceConfig, "device"),
    ("disk", "disks", DiskConfig, "disk"),
    ("fs", "fs", FsConfig, "fs"),
    (
        "generic-vhost-user",
        "generic_vhost_user",
        GenericVhostUserConfig,
        "generic vhost-user device",
    ),
    ("pmem", "pmem", PmemConfig, "pmem device"),
    ("user-device", "user_devices", UserDeviceConfig, "user device"),
    ("vdpa", "vdpa", VdpaConfig, "vDPA device"),
    ("vsock", "vsock", VsockConfig, "vsock device"),
)
"""Of each request that adds a device, but a network: the end of its address, the section that the
device goes to, the model of its body, and what the errors call it."""


REFUSALS = (DuplicateError, UnsupportedError, NotCreatedError, StateError)


def _add(address: str, section: str, model: type[PciSlot], name: str) -> Route:
    @put_model(f"/vm.add-{address}", model, f"The {name} could not be added to the VM", *REFUSALS)
    async def add(service: Service, entry: PciSlot) -> PciDeviceInfo | None:
        """Add a device; a running VM answers with its place."""
        return await service.owner.submit(AddDevice(section, entry))

    return add


@put_model_and_descriptors(
    "/vm.add-net", NetConfig, "The network device could not be added to the VM", *REFUSALS
)
async def add_net(
    service: Service, net: NetConfig, descriptors: Descriptors
) -> PciDeviceInfo | None:
    """Add a network, on the queues of a tap that come as descriptors if any do."""
    fds = descriptors.take()
    if fds:
        net = net.model_copy(update={"fds": fds})
    return await service.owner.submit(AddDevice("net", net, fds))


@put_model(
    "/vm.remove-device",
    VmRemoveDevice,
    "The device could not be removed from the VM",
    NotCreatedError,
    NotFoundError,
    StateError,
)
async def remove_device(service: Service, removed: VmRemoveDevice) -> None:
    """Take a device from the VM; a running guest gives it back when it has let go of it."""
    await service.owner.submit(RemoveDevice(removed.id))


@put_model(
    "/vm.resize",
    VmResize,
    "The VM could not be resized",
    UnsupportedError,
    NotCreatedError,
    PendingError,
    StateError,
)
async def resize(service: Service, sizes: VmResize) -> None:
    """Give the VM another amount of vCPUs, RAM and balloon."""
    await service.owner.submit(Resize(sizes))


@put_model(
    "/vm.resize-disk",
    VmResizeDisk,
    "The disk could not be resized",
    NotCreatedError,
    NotFoundError,
    StateError,
)
async def resize_disk(service: Service, disk: VmResizeDisk) -> None:
    """Give a disk another size; the guest hears of it at once."""
    await service.owner.submit(ResizeDisk(disk.id, disk.desired_size))


@put_model(
    "/vm.resize-zone",
    VmResizeZone,
    "The memory zone could not be resized",
    NotCreatedError,
    NotFoundError,
    StateError,
)
async def resize_zone(service: Service, zone: VmResizeZone) -> None:
    """Give a memory zone another size; the guest is asked for it."""
    await service.owner.submit(Resize(zone))


ROUTES = (
    *(_add(*each) for each in ADDED),
    add_net,
    remove_device,
    resize,
    resize_disk,
    resize_zone,
)

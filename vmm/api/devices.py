"""Requests that change the devices of a VM."""

from __future__ import annotations

from vmm.api.routes import Service, put_model
from vmm.config.requests import VmResizeDisk
from vmm.errors import NotCreatedError, NotFoundError, StateError
from vmm.machine.commands import ResizeDisk


@put_model(
    "/vm.resize-disk",
    VmResizeDisk,
    "The disk could not be resized",
    NotCreatedError,
    NotFoundError,
    StateError,
)
async def resize_disk(service: Service, resize: VmResizeDisk) -> None:
    """Give a disk another size; the guest hears of it at once."""
    await service.owner.submit(ResizeDisk(resize.id, resize.desired_size))


ROUTES = (resize_disk,)

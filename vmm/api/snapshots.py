"""Requests that write a VM to a directory and bring it back."""

from __future__ import annotations

from vmm.api.descriptors import Descriptors
from vmm.api.routes import Service, put_model, put_model_and_descriptors
from vmm.config.requests import RestoreConfig, VmSnapshotConfig
from vmm.errors import (
    AlreadyCreatedError,
    DuplicateError,
    NotCreatedError,
    StateError,
    UnsupportedError,
)
from vmm.machine.commands import Restore, Snapshot


@put_model(
    "/vm.snapshot",
    VmSnapshotConfig,
    "The VM could not be snapshotted",
    NotCreatedError,
    StateError,
)
async def snapshot(service: Service, data: VmSnapshotConfig) -> None:
    """Write the paused VM to an existing directory, from which it can be restored."""
    await service.owner.submit(Snapshot(data.destination_url))


@put_model_and_descriptors(
    "/vm.restore",
    RestoreConfig,
    "The VM could not be restored",
    AlreadyCreatedError,
    DuplicateError,
    UnsupportedError,
    StateError,
)
async def restore(service: Service, request: RestoreConfig, descriptors: Descriptors) -> None:
    """Bring a VM back from a snapshot; it is paused, unless it is to be resumed."""
    await service.owner.submit(Restore(request, descriptors.take()))


ROUTES = (snapshot, restore)

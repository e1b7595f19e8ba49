"""Requests that move a VM to another VMM, and show how far that is."""

from __future__ import annotations

from vmm.api.descriptors import Descriptors
from vmm.api.routes import Service, get, put, put_model, put_model_and_descriptors
from vmm.config.info import MigrationInfo
from vmm.config.requests import ReceiveMigrationData, SendMigrationData
from vmm.errors import NotCreatedError, NotFoundError, StateError, UnsupportedError
from vmm.machine.commands import CancelMigration, ReceiveMigration, SendMigration


@put_model_and_descriptors(
    "/vm.receive-migration",
    ReceiveMigrationData,
    "Error receiving migration",
    UnsupportedError,
    StateError,
)
async def receive(service: Service, data: ReceiveMigrationData, descriptors: Descriptors) -> None:
    """Wait for a VM and take it in; answered when it is here."""
    await service.owner.submit(ReceiveMigration(data, descriptors.take()))


@put_model(
    "/vm.send-migration",
    SendMigrationData,
    "Error dispatching the migration worker",
    UnsupportedError,
    NotCreatedError,
    StateError,
)
async def send(service: Service, data: SendMigrationData) -> None:
    """Move the VM to another VMM; answered when it has gone."""
    await service.owner.submit(SendMigration(data))


@put("/vm.migration-cancel", "The migration could not be cancelled", StateError)
async def cancel(service: Service) -> None:
    """Stop the migration that is under way; the VM stays where it is."""
    await service.owner.submit(CancelMigration())


@get("/vm.migration", "No migration can be shown", NotFoundError)
async def show(service: Service) -> MigrationInfo:
    """Show how far the migration is that is under way, or how the last one ended."""
    return service.owner.migration()


ROUTES = (receive, send, cancel, show)

"""Requests of the API document that this version cannot serve: refused by name, never unknown."""

from __future__ import annotations

from vmm.api.routes import Answer, Route, Sent, Service
from vmm.config.model import ConfigModel
from vmm.config.requests import (
    ReceiveMigrationData,
    SendMigrationData,
)
from vmm.errors import UnsupportedError

SUMMARY = "Not in this version, which refuses it by name."


def _absent(path: str, model: type[ConfigModel], action: str) -> Route:
    async def refuse(service: Service, _sent: Sent) -> Answer:
        raise UnsupportedError(
            f"{path} is part of the API, but version {service.about.version} of this VMM"
            " does not have it: use a later version"
        )

    return Route(path, "PUT", action, frozenset({UnsupportedError}), model, None, SUMMARY, refuse)


ROUTES = (
    _absent("/vm.receive-migration", ReceiveMigrationData, "Error receiving migration"),
    _absent("/vm.send-migration", SendMigrationData, "Error dispatching the migration worker"),
)

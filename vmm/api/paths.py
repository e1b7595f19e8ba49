"""Every request of the API document, as one table."""

from __future__ import annotations

from vmm.api import devices, inspect, lifecycle, migration, snapshots, vmm
from vmm.api.routes import Route

ROUTES: tuple[Route, ...] = (
    vmm.ROUTES
    + lifecycle.ROUTES
    + snapshots.ROUTES
    + migration.ROUTES
    + inspect.ROUTES
    + devices.ROUTES
)

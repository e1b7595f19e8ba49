"""Every request of the API document, as one table."""

from __future__ import annotations

from vmm.api import absent, devices, inspect, lifecycle, snapshots, vmm
from vmm.api.routes import Route

ROUTES: tuple[Route, ...] = (
    vmm.ROUTES
    + lifecycle.ROUTES
    + snapshots.ROUTES
    + inspect.ROUTES
    + devices.ROUTES
    + absent.ROUTES
)

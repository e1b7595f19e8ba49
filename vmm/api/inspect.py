"""Requests that only look. They never wait for a command in progress."""

from __future__ import annotations

from vmm.api.routes import Answer, Service, get
from vmm.errors import NotCreatedError, StateError


@get("/vm.info", "The VM info is not available", NotCreatedError)
async def info(service: Service) -> Answer:
    """Describe the VM: its configuration, state, memory and devices."""
    return service.owner.info().to_json()


@get("/vm.counters", "The VM info is not available", NotCreatedError, StateError)
async def counters(service: Service) -> Answer:
    """Count what the devices did."""
    return service.owner.counters()


ROUTES = (info, counters)

"""Requests that only look. They never wait for a command in progress."""

from __future__ import annotations

from vmm.api.routes import Service, get
from vmm.config.info import VmCounters, VmInfo
from vmm.errors import NotCreatedError, StateError


@get("/vm.info", "The VM info is not available", NotCreatedError)
async def info(service: Service) -> VmInfo:
    """Describe the VM: its configuration, state, memory and devices."""
    return service.owner.info()


@get("/vm.counters", "The VM info is not available", NotCreatedError, StateError)
async def counters(service: Service) -> VmCounters:
    """Count what the devices did."""
    return service.owner.counters()


ROUTES = (info, counters)

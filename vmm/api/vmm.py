"""Requests to the VMM itself."""

from __future__ import annotations

from vmm.api.routes import Service, get, put
from vmm.config.info import VmmPingResponse
from vmm.machine.commands import ShutdownVmm


@get("/vmm.ping", "The VMM could not answer")
async def ping(service: Service) -> VmmPingResponse:
    """Say that the API is there, and of which program."""
    return service.about


@put("/vmm.shutdown", "The VMM could not shutdown")
async def shutdown(service: Service) -> None:
    """Delete the VM and end the process."""
    await service.owner.submit(ShutdownVmm())


ROUTES = (ping, shutdown)

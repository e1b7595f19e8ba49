"""Requests that create, run and end the VM."""

from __future__ import annotations

from dataclasses import replace

from vmm.api.routes import Service, put, put_model
from vmm.config.requests import VmCoredumpData
from vmm.config.vm import VmConfig
from vmm.errors import (
    ConfigError,
    DuplicateError,
    NotCreatedError,
    StateError,
    UnsupportedError,
)
from vmm.machine.commands import (
    Boot,
    Coredump,
    Create,
    Delete,
    Nmi,
    Pause,
    PowerButton,
    Reboot,
    Resume,
    Shutdown,
)


@put_model(
    "/vm.create",
    VmConfig,
    "The VM could not be created",
    DuplicateError,
    UnsupportedError,
    StateError,
)
async def create(service: Service, config: VmConfig) -> None:
    """Store the configuration of a VM; it is not booted."""
    await service.owner.submit(Create(config))


@put("/vm.delete", "The VM could not be deleted", StateError)
async def delete(service: Service) -> None:
    """Forget the VM, stopping it first if it runs; without a VM, do nothing."""
    await service.owner.submit(Delete())


@put(
    "/vm.boot",
    "The VM could not boot",
    ConfigError,
    DuplicateError,
    UnsupportedError,
    NotCreatedError,
    StateError,
)
async def boot(service: Service) -> None:
    """Build the machine that was created, and start it."""
    await service.owner.submit(Boot())


@put("/vm.pause", "The VM could not be paused", NotCreatedError, StateError)
async def pause(service: Service) -> None:
    """Stop every vCPU."""
    await service.owner.submit(Pause())


@put("/vm.resume", "The VM could not resume", NotCreatedError, StateError)
async def resume(service: Service) -> None:
    """Let a paused VM run on."""
    await service.owner.submit(Resume())


@put("/vm.shutdown", "The VM could not shutdown", NotCreatedError, StateError)
async def shutdown(service: Service) -> None:
    """Stop the VM at once; it stays created."""
    await service.owner.submit(Shutdown())


@put(
    "/vm.reboot",
    "The VM could not reboot",
    ConfigError,
    UnsupportedError,
    NotCreatedError,
    StateError,
)
async def reboot(service: Service) -> None:
    """Build the machine anew and start it."""
    await service.owner.submit(Reboot())


@put_model(
    "/vm.coredump",
    VmCoredumpData,
    "The VM could not be coredumped",
    NotCreatedError,
    StateError,
)
async def coredump(service: Service, data: VmCoredumpData) -> None:
    """Write a core file of the guest; a running VM stands still meanwhile."""
    await service.owner.submit(Coredump(data.destination_url))


@put("/vm.power-button", "Error triggering power button", NotCreatedError, StateError)
async def power_button(service: Service) -> None:
    """Press the ACPI power button."""
    await service.owner.submit(PowerButton())


@put("/vm.nmi", "Error triggering NMI", NotCreatedError, StateError)
async def nmi(service: Service) -> None:
    """Send every vCPU a non-maskable interrupt."""
    await service.owner.submit(Nmi())


# The document has the address /vmm.nmi, Cloud Hypervisor's binary and its clients have /vm.nmi.
ROUTES = (
    create,
    delete,
    boot,
    pause,
    resume,
    shutdown,
    reboot,
    coredump,
    power_button,
    nmi,
    replace(nmi, path="/vmm.nmi"),
)

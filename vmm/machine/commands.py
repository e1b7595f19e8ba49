"""What may be asked of the VM owner: one frozen dataclass a command."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vmm.config.vm import VmConfig


@dataclass(frozen=True, slots=True)
class Create:
    """Store a configuration and open its consoles; nothing is booted."""

    config: VmConfig


@dataclass(frozen=True, slots=True)
class Delete:
    """Forget the configuration, after stopping the VM if it runs."""


@dataclass(frozen=True, slots=True)
class Boot:
    """Build the machine of the stored configuration and start it."""


@dataclass(frozen=True, slots=True)
class Pause:
    """Stop every vCPU between two instructions."""


@dataclass(frozen=True, slots=True)
class Resume:
    """Let the vCPUs of a paused VM run on."""


@dataclass(frozen=True, slots=True)
class Shutdown:
    """Stop the machine at once and keep its configuration."""


@dataclass(frozen=True, slots=True)
class Reboot:
    """Stop the machine and build a new one from the same configuration."""


@dataclass(frozen=True, slots=True)
class PowerButton:
    """Press the ACPI power button."""


@dataclass(frozen=True, slots=True)
class Nmi:
    """Send a non-maskable interrupt to every vCPU."""


@dataclass(frozen=True, slots=True)
class ShutdownVmm:
    """Delete the VM and end the process with exit code 0."""


Command = (
    Create | Delete | Boot | Pause | Resume | Shutdown | Reboot | PowerButton | Nmi | ShutdownVmm
)

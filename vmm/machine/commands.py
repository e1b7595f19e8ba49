"""What may be asked of the VM owner: one class a command."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vmm.config.pci import PciSlot
    from vmm.config.requests import (
        ReceiveMigrationData,
        RestoreConfig,
        SendMigrationData,
        VmResize,
        VmResizeZone,
    )
    from vmm.config.vm import VmConfig


class Command:
    """Something to ask of the VM owner; two are equal when their kind and content are.

    Not a dataclass: making one takes a third of a millisecond, ten are on every VM's way to its
    first instruction.
    """

    __slots__: tuple[str, ...] = ()

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and all(
            getattr(self, name) == getattr(other, name) for name in self.__slots__
        )

    def __hash__(self) -> int:
        return hash(type(self))

    def __repr__(self) -> str:
        content = ", ".join(f"{name}={getattr(self, name)!r}" for name in self.__slots__)
        return f"{type(self).__name__}({content})"

    def release(self) -> None:
        """Give back what the command brought and nobody took."""


class Create(Command):
    """Store a configuration and open its consoles; nothing is booted."""

    __slots__ = ("config",)
    __match_args__ = ("config",)

    def __init__(self, config: VmConfig) -> None:
        self.config = config


class Delete(Command):
    """Forget the configuration, after stopping the VM if it runs."""

    __slots__: tuple[str, ...] = ()


class Boot(Command):
    """Build the machine of the stored configuration and start it."""

    __slots__: tuple[str, ...] = ()


class Pause(Command):
    """Stop every vCPU between two instructions."""

    __slots__: tuple[str, ...] = ()


class Resume(Command):
    """Let the vCPUs of a paused VM run on."""

    __slots__: tuple[str, ...] = ()


class Shutdown(Command):
    """Stop the machine at once and keep its configuration."""

    __slots__: tuple[str, ...] = ()


class Reboot(Command):
    """Stop the machine and build a new one from the same configuration."""

    __slots__: tuple[str, ...] = ()


class WithDescriptors(Command):
    """A command that brings ``descriptors``, which its sender gives away."""

    __slots__ = ("descriptors",)

    def __init__(self, descriptors: tuple[int, ...]) -> None:
        self.descriptors = descriptors

    def take_descriptors(self) -> tuple[int, ...]:
        """Give the descriptors; who takes them closes them."""
        taken, self.descriptors = self.descriptors, ()
        return taken

    def release(self) -> None:
        """Close what nobody took."""
        for fd in self.take_descriptors():
            os.close(fd)


class AddDevice(WithDescriptors):
    """Add an entry to a section of the configuration; gives its device's place if the VM runs.

    The descriptors are those that the entry names.
    """

    __slots__ = ("entry", "section")

    def __init__(self, section: str, entry: PciSlot, descriptors: tuple[int, ...] = ()) -> None:
        super().__init__(descriptors)
        self.section = section
        self.entry = entry


class RemoveDevice(Command):
    """Take a device out of the configuration; a running guest is asked to let go of it."""

    __slots__ = ("id",)
    __match_args__ = ("id",)

    def __init__(self, id: str) -> None:
        self.id = id


class Resize(Command):
    """Give the VM, or a zone of its memory, other amounts of what it has."""

    __slots__ = ("sizes",)
    __match_args__ = ("sizes",)

    def __init__(self, sizes: VmResize | VmResizeZone) -> None:
        self.sizes = sizes


class Coredump(Command):
    """Write a core file of the guest to a ``file://`` URL."""

    __slots__ = ("url",)
    __match_args__ = ("url",)

    def __init__(self, url: str) -> None:
        self.url = url


class Snapshot(Command):
    """Write the paused VM to a directory, given by a ``file://`` URL."""

    __slots__ = ("url",)
    __match_args__ = ("url",)

    def __init__(self, url: str) -> None:
        self.url = url


class Restore(WithDescriptors):
    """Bring a VM back from a snapshot; the descriptors are those that the request names."""

    __slots__ = ("request",)
    __match_args__ = ("request",)

    def __init__(self, request: RestoreConfig, descriptors: tuple[int, ...] = ()) -> None:
        super().__init__(descriptors)
        self.request = request


class ResizeDisk(Command):
    """Give a disk of the running VM another size in bytes."""

    __slots__ = ("desired_size", "id")
    __match_args__ = ("id", "desired_size")

    def __init__(self, id: str, desired_size: int) -> None:
        self.id = id
        self.desired_size = desired_size


class PowerButton(Command):
    """Press the ACPI power button."""

    __slots__: tuple[str, ...] = ()


class Nmi(Command):
    """Send a non-maskable interrupt to every vCPU."""

    __slots__: tuple[str, ...] = ()


class ShutdownVmm(Command):
    """Delete the VM and end the process with exit code 0."""

    __slots__: tuple[str, ...] = ()


class SendMigration(Command):
    """Move the VM to another VMM; other commands go on meanwhile."""

    __slots__ = ("data",)
    __match_args__ = ("data",)

    def __init__(self, data: SendMigrationData) -> None:
        self.data = data


class ReceiveMigration(WithDescriptors):
    """Wait for a VM and take it in; other commands go on meanwhile.

    The descriptors are those that the request names.
    """

    __slots__ = ("data",)

    def __init__(self, data: ReceiveMigrationData, descriptors: tuple[int, ...] = ()) -> None:
        super().__init__(descriptors)
        self.data = data


class CancelMigration(Command):
    """Stop the migration that is under way; the VM stays where it is."""

    __slots__: tuple[str, ...] = ()

"""The rules between fields, checked before a VM is built and before a device is added.

Creating a VM does not check them, as the original does not: a configuration may become whole by
later requests. All broken rules are reported at once.
"""

from collections.abc import Callable

from vmm.config.pci import PciSlot
from vmm.config.rules import host, machine, memory, numa, queues, slots
from vmm.config.vm import VmConfig
from vmm.errors import ConfigError, DuplicateError


def validate(config: VmConfig, *, path_exists: Callable[[str], bool] | None = None) -> None:
    """Check every rule; ``path_exists`` looks at the host for the paths of Landlock rules.

    Raises: ConfigError (caller) with one sentence a broken rule; DuplicateError if all of them are
    about names that are taken.
    """
    problems = [
        *machine.problems(config),
        *memory.problems(config.memory),
        *queues.problems(config),
        *host.problems(config, path_exists),
        *numa.problems(config),
        *slots.problems(config),
    ]
    if problems:
        kind = DuplicateError if all(each.is_duplicate for each in problems) else ConfigError
        raise kind(*(each.text for each in problems))


def settle(config: VmConfig) -> VmConfig:
    """Give the configuration with what follows from it.

    A firmware takes neither command line nor initramfs; the virtual IOMMU is there as soon as a
    device or a segment is behind it.
    """
    changes: dict[str, object] = {}
    if config.payload is not None and config.payload.firmware:
        changes["payload"] = config.payload.model_copy(update={"cmdline": None, "initramfs": None})
    if not config.iommu and _needs_iommu(config):
        changes["iommu"] = True
    return config.model_copy(update=changes) if changes else config


def _needs_iommu(config: VmConfig) -> bool:
    if config.platform is not None and config.platform.iommu_segments:
        return True
    devices: list[PciSlot] = [device for _, device in slots.pci_devices(config)]
    return any(device.iommu for device in devices)

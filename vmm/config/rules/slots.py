"""Rules that hold for every PCI device, and for every identifier."""

from collections.abc import Iterator

from vmm.config.model import ConfigModel
from vmm.config.pci import PciDevice, PciSlot
from vmm.config.platform import DEFAULT_PLATFORM, PlatformConfig
from vmm.config.rules.problem import Problem, at
from vmm.config.vm import VmConfig

DEVICES_ON_A_BUS = 32
RESERVED_PREFIX = "__"


def problems(config: VmConfig) -> Iterator[Problem]:
    """Yield what is wrong with slots and identifiers."""
    platform = config.platform or DEFAULT_PLATFORM
    for path, device in pci_devices(config):
        yield from _slot(path, device, platform)
    yield from _shared_slots(config)
    yield from _identifiers(config)


def pci_devices(config: VmConfig) -> Iterator[tuple[str, PciSlot]]:
    """Yield every PCI device of a configuration with its JSON path."""
    for name in VmConfig.model_fields:
        value = getattr(config, name)
        if isinstance(value, PciSlot):
            yield name, value
        elif isinstance(value, tuple):
            for index, each in enumerate(value):
                if isinstance(each, PciSlot):
                    yield f"{name}[{index}]", each


def _slot(path: str, device: PciSlot, platform: PlatformConfig) -> Iterator[Problem]:
    segment = device.pci_segment
    if segment >= platform.num_pci_segments:
        yield Problem(
            f"{at(path, device, 'pci_segment')}: Invalid PCI segment id: {segment}; "
            f"give one below platform.num_pci_segments ({platform.num_pci_segments})"
        )
    can_translate = isinstance(device, PciDevice)
    if segment in (platform.iommu_segments or ()) and not device.iommu:
        yield Problem(
            f"{at(path, device, 'pci_segment')}: Device is on an IOMMU PCI segment ({segment}) "
            f"but not placed behind IOMMU; {'turn iommu on or ' * can_translate}use a segment "
            "that platform.iommu_segments does not list"
        )
    if device.iommu and not can_translate:
        yield Problem(
            f"{path}.iommu is true: Device does not support being placed behind IOMMU; "
            "leave iommu out"
        )
    number = device.pci_device_id
    if number is not None and number >= DEVICES_ON_A_BUS:
        yield Problem(
            f"{at(path, device, 'pci_device_id')}: Invalid PCI device id: {number}; "
            f"give one below {DEVICES_ON_A_BUS}"
        )
    if number == 0 and segment == 0:
        yield Problem(
            f"{at(path, device, 'pci_device_id')}: PCI device id 0 on segment 0 is reserved for "
            "the root complex; give 1 or more"
        )


def _shared_slots(config: VmConfig) -> Iterator[Problem]:
    taken: dict[tuple[int, int], str] = {}
    for path, device in pci_devices(config):
        number, segment = device.pci_device_id, device.pci_segment
        if number is None:
            continue
        if (segment, number) in taken:
            yield Problem(
                f"{at(path, device, 'pci_device_id')}: PCI device id {number} of segment {segment} "
                f"is not unique, {taken[segment, number]} has it; choose another",
                is_duplicate=True,
            )
        taken.setdefault((segment, number), path)


def _named(config: VmConfig) -> Iterator[tuple[str, ConfigModel, str]]:
    for index, group in enumerate(config.rate_limit_groups or ()):
        yield f"rate_limit_groups[{index}]", group, group.id
    for path, device in pci_devices(config):
        if device.id is not None:
            yield path, device, device.id
    for index, zone in enumerate(config.memory.zones or ()):
        yield f"memory.zones[{index}]", zone, zone.id


def _identifiers(config: VmConfig) -> Iterator[Problem]:
    taken: dict[str, str] = {}
    for path, model, identifier in _named(config):
        if identifier.startswith(RESERVED_PREFIX):
            yield Problem(
                f"{at(path, model, 'id')}: Identifier {identifier} begins with {RESERVED_PREFIX}, "
                "which is kept for the machine's own devices; choose another"
            )
        if identifier in taken:
            yield Problem(
                f"{at(path, model, 'id')}: Identifier {identifier} is not unique, "
                f"{taken[identifier]} has it; choose another",
                is_duplicate=True,
            )
        taken.setdefault(identifier, path)

"""What every PCI device has, and ``PciSegmentConfig``."""

from typing import Annotated, ClassVar

from vmm.config.model import ConfigModel
from vmm.config.units import U8, U16, U32, Text
from vmm.config.values import Cli


class PciSlot(ConfigModel):
    """A PCI device that cannot be behind the virtual IOMMU: its option has no such key."""

    id: Text | None = None
    iommu: Annotated[bool, Cli(hidden=True)] = False
    pci_segment: U16 = 0
    pci_device_id: U8 | None = None

    def shows(self, name: str, value: object) -> bool:
        """As the original: ``iommu`` is left out while it is off, unless the user gave it."""
        if name == "iommu":
            return bool(value) or name in self.model_fields_set
        return super().shows(name, value)


class PciDevice(PciSlot):
    """A PCI device that may be placed behind the virtual IOMMU."""

    iommu: bool = False


class PciSegmentConfig(ConfigModel):
    """A PCI segment's share of the guest's address space."""

    FLAG: ClassVar[str] = "--pci-segment"

    pci_segment: U16 = 0
    mmio32_aperture_weight: U32 = 1
    mmio64_aperture_weight: U32 = 1

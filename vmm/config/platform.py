"""``PlatformConfig``: segments, IOMMU, SMBIOS identity, confidential computing."""

from collections.abc import Mapping
from typing import Annotated, ClassVar

from pydantic import model_validator

from vmm.config.model import ConfigModel, join_spellings
from vmm.config.units import U8, U16, Array, Descriptor, Text
from vmm.config.values import Cli


class PlatformConfig(ConfigModel):
    """The machine's buses and the identity that SMBIOS shows."""

    FLAG: ClassVar[str] = "--platform"
    SPELLINGS: ClassVar[Mapping[str, str]] = {
        "serial_number": "system_serial_number",
        "uuid": "system_uuid",
    }

    num_pci_segments: U16 = 1
    iommu_segments: Array[U16] | None = None
    iommu_address_width_bits: Annotated[U8, Cli("iommu_address_width")] = 64
    system_serial_number: Annotated[Text | None, Cli(also=("serial_number",))] = None
    system_uuid: Annotated[Text | None, Cli(also=("uuid",))] = None
    oem_strings: Array[Text] | None = None
    system_manufacturer: Text | None = None
    system_product_name: Text | None = None
    system_version: Text | None = None
    system_family: Text | None = None
    system_sku_number: Text | None = None
    chassis_asset_tag: Text | None = None
    tdx: bool = False
    sev_snp: bool = False
    iommufd: bool = False
    iommufd_fd: Descriptor | None = None
    vfio_p2p_dma: bool = True

    @model_validator(mode="before")
    @classmethod
    def _join_spellings(cls, given: object) -> object:
        return join_spellings(cls, given)


DEFAULT_PLATFORM = PlatformConfig.model_construct()
"""What a configuration without a platform has; made without a validator, which takes time."""

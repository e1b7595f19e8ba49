"""``IvshmemConfig``: a file of the host as memory that VMs share."""

from typing import ClassVar, Final

from vmm.config.pci import PciSlot
from vmm.config.units import KIB, MIB, ByteSize, HostPath

DEFAULT_SIZE: Final = 128 * MIB
LEAST_SIZE: Final = 4 * KIB
"""A page: KVM shows a guest nothing smaller."""


class IvshmemConfig(PciSlot):
    """Memory shared with other VMs; ``size`` in bytes, a power of two that the file has."""

    FLAG: ClassVar[str] = "--ivshmem"

    path: HostPath
    size: ByteSize = DEFAULT_SIZE

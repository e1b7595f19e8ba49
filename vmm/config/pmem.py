"""``PmemConfig``: a file of the host as persistent memory."""

from typing import ClassVar, Final

from vmm.config.pci import PciDevice
from vmm.config.units import MIB, ByteSize, HostPath

ALIGNMENT_BYTES: Final = 2 * MIB
"""What its size is a multiple of, and its address: a large page of the guest's."""


class PmemConfig(PciDevice):
    """Persistent memory; ``size`` in bytes, the file's own if it is not given."""

    FLAG: ClassVar[str] = "--pmem"

    file: HostPath
    size: ByteSize | None = None
    discard_writes: bool = False

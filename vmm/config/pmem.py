"""``PmemConfig``: a file of the host as persistent memory."""

from typing import ClassVar

from vmm.config.pci import PciDevice
from vmm.config.units import ByteSize, HostPath


class PmemConfig(PciDevice):
    """Persistent memory; ``size`` in bytes, the file's own if it is not given."""

    FLAG: ClassVar[str] = "--pmem"

    file: HostPath
    size: ByteSize | None = None
    discard_writes: bool = False

"""``FsConfig``: a file system that a vhost-user back end serves."""

from typing import ClassVar

from vmm.config.pci import PciSlot
from vmm.config.units import U16, U64, HostPath, Text


class FsConfig(PciSlot):
    """A file system shared by a vhost-user back end."""

    FLAG: ClassVar[str] = "--fs"

    tag: Text
    socket: HostPath
    num_queues: U64 = 1
    queue_size: U16 = 1024

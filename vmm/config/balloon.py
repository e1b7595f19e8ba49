"""``BalloonConfig``: a device through which the guest gives RAM back."""

from typing import ClassVar

from vmm.config.pci import PciDevice
from vmm.config.units import ByteSize


class BalloonConfig(PciDevice):
    """The balloon, through which the guest gives RAM back; ``size`` in bytes."""

    FLAG: ClassVar[str] = "--balloon"

    size: ByteSize
    deflate_on_oom: bool = False
    free_page_reporting: bool = False

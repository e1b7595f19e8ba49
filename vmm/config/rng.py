"""``RngConfig`` and ``RtcConfig``: the entropy device and the virtio clock."""

from typing import Annotated, ClassVar, Final

from vmm.config.pci import PciDevice
from vmm.config.units import HostPath
from vmm.config.values import Cli

DEFAULT_SOURCE: Final = "/dev/urandom"


class RngConfig(PciDevice):
    """The entropy device and the file it reads."""

    FLAG: ClassVar[str] = "--rng"

    src: Annotated[HostPath, Cli(default=DEFAULT_SOURCE)]


class RtcConfig(PciDevice):
    """The virtio clock."""

    FLAG: ClassVar[str] = "--rtc"

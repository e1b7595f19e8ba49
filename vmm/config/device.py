"""``DeviceConfig``, ``UserDeviceConfig``, ``VdpaConfig``: devices that others implement."""

from typing import ClassVar

from vmm.config.pci import PciDevice, PciSlot
from vmm.config.units import U8, U64, Array, Descriptor, HostPath


class DeviceConfig(PciDevice):
    """A device of the host, passed through by VFIO."""

    FLAG: ClassVar[str] = "--device"

    path: HostPath | None = None
    fd: Descriptor | None = None
    x_nv_gpudirect_clique: U8 | None = None
    x_exclude_mmap_bars: Array[U64] = ()


class UserDeviceConfig(PciSlot):
    """A device that another process implements by vfio-user."""

    FLAG: ClassVar[str] = "--user-device"

    socket: HostPath


class VdpaConfig(PciDevice):
    """A vDPA device of the host."""

    FLAG: ClassVar[str] = "--vdpa"

    path: HostPath
    num_queues: U64 = 1

"""How devices are behind the IOMMU: one by one, or all of a PCI segment.

The number of an endpoint is its segment, 16 bits, above its requester id.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from vmm.acpi.machine import EndpointRange
from vmm.config.platform import DEFAULT_PLATFORM
from vmm.errors import ConfigError, InternalError
from vmm.kvm_cffi import IommuEndpoint
from vmm.pci.bdf import Bdf
from vmm.pci.segment import SLOTS

if TYPE_CHECKING:
    from vmm.config.pci import PciSlot
    from vmm.config.vm import VmConfig
    from vmm.virtio.iommu import Iommu


class BehindIommu:
    """One device behind the IOMMU: what its queues translate by, and whom it reports to."""

    def __init__(self, iommu: Iommu) -> None:
        self.endpoint = IommuEndpoint()
        self._iommu = iommu
        self._number: int | None = None

    @contextmanager
    def joined(self, bdf: Bdf) -> Iterator[None]:
        """Be known to the IOMMU by a place, until the scope is left."""
        self._number = bdf.segment << 16 | int(bdf)
        with self._iommu.joined(self._number, self.endpoint):
            yield

    def report_fault(self) -> None:
        """Tell the IOMMU of an access that it refused, if there was one."""
        fault = self.endpoint.take_fault()
        if fault is None:
            return
        if self._number is None:
            raise InternalError("A device had a fault before it was on its bus")
        self._iommu.report(self._number, fault)


def open_iommu(config: VmConfig) -> Iommu | None:
    """The IOMMU of a configuration, if it has one; it becomes a device like any other."""
    if not config.iommu:
        return None
    from vmm.virtio.iommu import Iommu  # Only now: a VM without it starts sooner.

    platform = config.platform or DEFAULT_PLATFORM
    return Iommu("__iommu", platform.iommu_address_width_bits)


def iommu_segments(config: VmConfig) -> tuple[int, ...]:
    """The segments all of whose devices are behind the IOMMU."""
    return () if config.platform is None else tuple(config.platform.iommu_segments or ())


def ranges_behind(config: VmConfig, iommu: Iommu) -> tuple[EndpointRange, ...]:
    """What the tables say is behind it: whole segments, and devices of others that are there."""
    segments = sorted(set(iommu_segments(config)))
    whole = [EndpointRange(segment, 0, int(Bdf(0, 0, SLOTS - 1, 7))) for segment in segments]
    single = [
        EndpointRange(number >> 16, number & 0xFFFF, number & 0xFFFF)
        for number in iommu.endpoints
        if number >> 16 not in segments
    ]
    return (*whole, *single)


def check_may_come(entry: PciSlot, segments: Sequence[int]) -> None:
    """Refuse a new device that the guest would not find behind the IOMMU: its tables are made.

    Raises: ConfigError (caller).
    """
    if entry.iommu and entry.pci_segment not in segments:
        known = ", ".join(map(str, segments)) or "none"
        raise ConfigError(
            f"iommu is on for a device on PCI segment {entry.pci_segment}: while the VM runs, "
            "devices are added behind the IOMMU on segments of platform.iommu_segments alone "
            f"({known}); put it on one, or leave iommu off"
        )


def check_may_go(name: str, bdf: Bdf, segments: Sequence[int]) -> None:
    """Refuse to take a device away that the tables say is behind the IOMMU, where it is alone.

    Raises: ConfigError (caller).
    """
    if bdf.segment not in segments:
        raise ConfigError(
            f"Device {name} is behind the IOMMU on PCI segment {bdf.segment}, which "
            "platform.iommu_segments does not list, and cannot be removed; put such devices on one "
            "that it lists"
        )

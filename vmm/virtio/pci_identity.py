"""What a virtio device's PCI function says of itself: its identity and its capabilities.

Spec: Virtio 1.2, sections 4.1.2 and 4.1.4.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from vmm.pci.configuration import Identity
from vmm.virtio import spec

if TYPE_CHECKING:
    from vmm.virtio.device import VirtioDevice
    from vmm.virtio.spec import PciCapability

BAR_INDEX = 0
"""The BAR that holds all parts of a device."""


def identity_of(device: VirtioDevice) -> Identity:
    """What the PCI function of a device says that it is, section 4.1.2."""
    class_code, subclass = device.PCI_CLASS
    number = spec.PCI_DEVICE_BASE + device.DEVICE_ID
    return Identity(
        vendor=spec.PCI_VENDOR,
        device=number,
        class_code=class_code,
        subclass=subclass,
        revision=spec.PCI_REVISION,
        subsystem_vendor=spec.PCI_VENDOR,
        subsystem=number,
    )


def capability(kind: PciCapability, offset: int, length: int, more: bytes = b"") -> bytes:
    """Encode a virtio capability after PCI's id and link, section 4.1.4."""
    size = 16 + len(more)
    return struct.pack("<BBBBxxII", size, kind, BAR_INDEX, 0, offset, length) + more

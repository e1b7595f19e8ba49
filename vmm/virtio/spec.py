"""The numbers of the virtio specification, each with the section it comes from, and nothing else.

Source: Virtual I/O Device (VIRTIO) Version 1.2, OASIS Committee Specification 01.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag
from typing import Final


class DeviceId(IntEnum):
    """Device types, section 5."""

    NET = 1
    BLOCK = 2
    CONSOLE = 3
    RNG = 4
    BALLOON = 5
    CLOCK = 17
    """Reserved in 1.2, described by later versions."""
    VSOCK = 19
    IOMMU = 23
    MEM = 24
    FS = 26
    PMEM = 27
    WATCHDOG = 35
    """Not the specification's: Cloud Hypervisor's own number."""


class Status(IntFlag):
    """Bits of the device status field, section 2.1."""

    ACKNOWLEDGE = 1
    DRIVER = 2
    DRIVER_OK = 4
    FEATURES_OK = 8
    NEEDS_RESET = 64
    FAILED = 128


class Feature(IntFlag):
    """Feature bits that are no single device type's, section 6."""

    RING_INDIRECT_DESC = 1 << 28
    RING_EVENT_IDX = 1 << 29
    VERSION_1 = 1 << 32
    ACCESS_PLATFORM = 1 << 33
    RING_PACKED = 1 << 34
    IN_ORDER = 1 << 35
    RING_RESET = 1 << 40


FEATURE_PAGES: Final = 2
"""Windows of 32 feature bits that have any; the driver selects one, section 4.1.4.3."""

MAX_QUEUE_SIZE: Final = 32768
"""Section 2.7."""

# Virtio over PCI, section 4.1.

PCI_VENDOR: Final = 0x1AF4
"""Section 4.1.2."""
PCI_DEVICE_BASE: Final = 0x1040
"""Section 4.1.2.1: the PCI device id is this plus the device type."""
PCI_REVISION: Final = 1
"""Section 4.1.2.1: without the transitional interface."""

CAPABILITY_VENDOR: Final = 0x09
"""PCI's id of a vendor-specific capability, section 4.1.4."""


class PciCapability(IntEnum):
    """What a virtio capability points at (cfg_type), section 4.1.4."""

    COMMON = 1
    NOTIFY = 2
    ISR = 3
    DEVICE = 4
    PCI = 5
    SHARED_MEMORY = 8


NO_VECTOR: Final = 0xFFFF
"""VIRTIO_MSI_NO_VECTOR, section 4.1.5.1.2."""


class Isr(IntFlag):
    """Bits of the ISR status byte, section 4.1.4.5."""

    QUEUE = 1
    CONFIG = 2


COMMON_CONFIG_SIZE: Final = 56
"""Bytes of the common configuration without the optional fields, section 4.1.4.3."""
COMMON_CONFIG_SIZE_WITH_RESET: Final = 60
"""With queue_notif_config_data and queue_reset, section 4.1.4.3."""


class Common(IntEnum):
    """Offsets of the common configuration's fields, section 4.1.4.3."""

    DEVICE_FEATURE_SELECT = 0
    DEVICE_FEATURE = 4
    DRIVER_FEATURE_SELECT = 8
    DRIVER_FEATURE = 12
    CONFIG_VECTOR = 16
    NUM_QUEUES = 18
    DEVICE_STATUS = 20
    CONFIG_GENERATION = 21
    QUEUE_SELECT = 22
    QUEUE_SIZE = 24
    QUEUE_VECTOR = 26
    QUEUE_ENABLE = 28
    QUEUE_NOTIFY_OFF = 30
    QUEUE_DESC = 32
    QUEUE_DRIVER = 40
    QUEUE_DEVICE = 48
    QUEUE_NOTIFY_DATA = 56
    QUEUE_RESET = 58

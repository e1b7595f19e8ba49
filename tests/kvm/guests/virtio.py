"""A virtio driver in assembly: it finds its device at BAR and has queue 0 in fixed places."""

from __future__ import annotations

from vmm.virtio.pci_transport import NOTIFY
from vmm.virtio.spec import Common, Feature, Status

BAR = 0xC000_0000
DESC, AVAIL, USED, BUFFER = 0x21_0000, 0x21_1000, 0x21_2000, 0x21_3000


def configure_space(device: int, register: int, value: int) -> str:
    """Write four bytes of a function's configuration space."""
    address = 0x8000_0000 | device << 11 | register
    return f"""
        mov ${address:#x}, %eax; mov $0xcf8, %dx; out %eax, %dx
        mov ${value:#x}, %eax; mov $0xcfc, %dx; out %eax, %dx
    """


def move_bar(device: int) -> str:
    """Move a 64-bit BAR 0 to where 32-bit code reaches it."""
    return (
        configure_space(device, 4, 0)
        + configure_space(device, 0x10, BAR)
        + configure_space(device, 0x14, 0)
        + configure_space(device, 4, 6)
    )


def set_up(queue_size: int = 8, features: int = Feature.VERSION_1) -> str:
    """Reset, negotiate, program queue 0, and say that the driver is ready.

    ``features`` are of the upper 32; bits below are left.
    """
    found = Status.ACKNOWLEDGE | Status.DRIVER
    agreed = found | Status.FEATURES_OK
    return f"""
        movb $0, {BAR + Common.DEVICE_STATUS:#x}
        movb ${found:d}, {BAR + Common.DEVICE_STATUS:#x}
        movl $1, {BAR + Common.DRIVER_FEATURE_SELECT:#x}
        movl ${features >> 32:#x}, {BAR + Common.DRIVER_FEATURE:#x}
        movb ${agreed:d}, {BAR + Common.DEVICE_STATUS:#x}
        {enable_queue(queue_size)}
        movb ${agreed | Status.DRIVER_OK:d}, {BAR + Common.DEVICE_STATUS:#x}
    """


def enable_queue(queue_size: int = 8) -> str:
    """Program queue 0 and hand it over."""
    return f"""
        movw $0, {BAR + Common.QUEUE_SELECT:#x}
        movw ${queue_size}, {BAR + Common.QUEUE_SIZE:#x}
        movl ${DESC:#x}, {BAR + Common.QUEUE_DESC:#x}
        movl ${AVAIL:#x}, {BAR + Common.QUEUE_DRIVER:#x}
        movl ${USED:#x}, {BAR + Common.QUEUE_DEVICE:#x}
        movw $1, {BAR + Common.QUEUE_ENABLE:#x}
    """


def reset_queue() -> str:
    """Take queue 0 back, and wait until it is the driver's."""
    return f"""
        movw $0, {BAR + Common.QUEUE_SELECT:#x}
        movw $1, {BAR + Common.QUEUE_RESET:#x}
    4:  cmpw $0, {BAR + Common.QUEUE_RESET:#x}
        jne 4b
    """


def descriptor(index: int, gpa: int, size: int, flags: int, link: int = 0) -> str:
    """Fill in a descriptor of queue 0."""
    at = DESC + 16 * index
    return f"""
        movl ${gpa:#x}, {at:#x}
        movl ${size}, {at + 8:#x}
        movw ${flags}, {at + 12:#x}
        movw ${link}, {at + 14:#x}
    """


def submit_and_poll() -> str:
    """Make the chain at descriptor 0 available as the first one, and wait until it is used."""
    return f"""
        movw $1, {AVAIL + 2:#x}
        movw $0, {BAR + NOTIFY:#x}
    1:  cmpw $1, {USED + 2:#x}
        jne 1b
    """

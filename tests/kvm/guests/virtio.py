"""A virtio driver in assembly: it finds its device at BAR and has queue 0 in fixed places."""

from __future__ import annotations

from vmm.virtio.pci_transport import NOTIFY
from vmm.virtio.spec import Common, Status

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


def set_up(queue_size: int = 8) -> str:
    """Reset, negotiate VERSION_1, program queue 0, and say that the driver is ready."""
    found = Status.ACKNOWLEDGE | Status.DRIVER
    agreed = found | Status.FEATURES_OK
    return f"""
        movb $0, {BAR + Common.DEVICE_STATUS:#x}
        movb ${found:d}, {BAR + Common.DEVICE_STATUS:#x}
        movl $1, {BAR + Common.DRIVER_FEATURE_SELECT:#x}
        movl $1, {BAR + Common.DRIVER_FEATURE:#x}
        movb ${agreed:d}, {BAR + Common.DEVICE_STATUS:#x}
        movw $0, {BAR + Common.QUEUE_SELECT:#x}
        movw ${queue_size}, {BAR + Common.QUEUE_SIZE:#x}
        movl ${DESC:#x}, {BAR + Common.QUEUE_DESC:#x}
        movl ${AVAIL:#x}, {BAR + Common.QUEUE_DRIVER:#x}
        movl ${USED:#x}, {BAR + Common.QUEUE_DEVICE:#x}
        movw $1, {BAR + Common.QUEUE_ENABLE:#x}
        movb ${agreed | Status.DRIVER_OK:d}, {BAR + Common.DEVICE_STATUS:#x}
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

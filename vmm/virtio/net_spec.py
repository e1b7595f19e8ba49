"""The numbers of the network device. Spec: Virtio 1.2, section 5.1."""

from __future__ import annotations

from enum import Enum, IntEnum, IntFlag
from typing import Final


class NetFeature(IntFlag):
    """Section 5.1.3. HOST_… is what the driver may leave undone, GUEST_… what the device may."""

    CSUM = 1 << 0
    GUEST_CSUM = 1 << 1
    CTRL_GUEST_OFFLOADS = 1 << 2
    MTU = 1 << 3
    MAC = 1 << 5
    GUEST_TSO4 = 1 << 7
    GUEST_TSO6 = 1 << 8
    GUEST_ECN = 1 << 9
    GUEST_UFO = 1 << 10
    HOST_TSO4 = 1 << 11
    HOST_TSO6 = 1 << 12
    HOST_ECN = 1 << 13
    HOST_UFO = 1 << 14
    STATUS = 1 << 16
    CTRL_VQ = 1 << 17
    GUEST_ANNOUNCE = 1 << 21
    MQ = 1 << 22


CHECKSUMS: Final = NetFeature.CSUM | NetFeature.GUEST_CSUM | NetFeature.CTRL_GUEST_OFFLOADS
SEGMENTS: Final = (
    NetFeature.HOST_TSO4
    | NetFeature.HOST_TSO6
    | NetFeature.HOST_ECN
    | NetFeature.GUEST_TSO4
    | NetFeature.GUEST_TSO6
    | NetFeature.GUEST_ECN
)
FRAGMENTS: Final = NetFeature.HOST_UFO | NetFeature.GUEST_UFO


class LinkStatus(IntFlag):
    """The status in configuration space, section 5.1.4."""

    UP = 1
    ANNOUNCE = 2


class Class(IntEnum):
    """Classes of commands, section 5.1.6.5."""

    RX = 0
    MAC = 1
    VLAN = 2
    ANNOUNCE = 3
    MQ = 4
    GUEST_OFFLOADS = 5


class Command(Enum):
    """Those that are obeyed: class and command."""

    ANNOUNCE_ACK = (Class.ANNOUNCE, 0)
    PAIRS_SET = (Class.MQ, 0)
    GUEST_OFFLOADS_SET = (Class.GUEST_OFFLOADS, 0)


class Ack(IntEnum):
    """The answer to a command."""

    OK = 0
    ERR = 1

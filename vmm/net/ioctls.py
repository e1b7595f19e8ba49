"""The kernel's numbers and structures for taps and interfaces.

Source: Linux, include/uapi/linux: if_tun.h, if.h, sockios.h, ipv6.h, ethtool.h.
"""

from __future__ import annotations

import fcntl
import struct
from enum import IntFlag
from typing import Final

TUNSETIFF: Final = 0x400454CA
TUNGETFEATURES: Final = 0x800454CF
TUNSETOFFLOAD: Final = 0x400454D0
TUNGETIFF: Final = 0x800454D2
TUNSETVNETHDRSZ: Final = 0x400454D8
TUNSETQUEUE: Final = 0x400454D9

SIOCGIFFLAGS: Final = 0x8913
SIOCSIFFLAGS: Final = 0x8914
SIOCGIFADDR: Final = 0x8915
SIOCSIFADDR: Final = 0x8916
SIOCSIFNETMASK: Final = 0x891C
SIOCSIFMTU: Final = 0x8922
SIOCSIFHWADDR: Final = 0x8924
SIOCGIFINDEX: Final = 0x8933
SIOCETHTOOL: Final = 0x8946

NAME_BYTES: Final = 16
"""Of an interface's name, with the zero at its end."""

IFF_UP: Final = 0x1
ARPHRD_ETHER: Final = 1
ETHTOOL_GDRVINFO: Final = 3


class TunFlag(IntFlag):
    """Kinds and abilities of a tap's queue (ifr_flags of TUNSETIFF)."""

    TUN = 0x0001
    TAP = 0x0002
    MULTI_QUEUE = 0x0100
    ATTACH_QUEUE = 0x0200
    DETACH_QUEUE = 0x0400
    NO_PI = 0x1000
    VNET_HDR = 0x4000


_REQUEST = struct.Struct("16s24s")
"""struct ifreq: a name, then a union."""


def request(name: str, value: bytes = b"") -> bytearray:
    """Make a struct ifreq; what a call answers is in its place."""
    return bytearray(_REQUEST.pack(name.encode(), value))


def value_of(answer: bytearray) -> bytes:
    """The union of a struct ifreq."""
    return bytes(answer[NAME_BYTES:])


def name_of(answer: bytearray) -> str:
    """The name of a struct ifreq."""
    return bytes(answer[:NAME_BYTES]).split(b"\0")[0].decode()


def flags_of(answer: bytearray) -> int:
    """The flags of a struct ifreq."""
    flags: int = struct.unpack_from("<H", answer, NAME_BYTES)[0]
    return flags


def call(fd: int, number: int, argument: bytearray) -> None:
    """Make the call; ``argument`` is changed to the answer. Raises: OSError."""
    fcntl.ioctl(fd, number, argument)


def call_with_int(fd: int, number: int, value: int) -> None:
    """Make a call that takes the address of an int. Raises: OSError."""
    fcntl.ioctl(fd, number, struct.pack("<i", value))


def call_with_value(fd: int, number: int, value: int) -> None:
    """Make a call that takes a number itself. Raises: OSError."""
    fcntl.ioctl(fd, number, value)

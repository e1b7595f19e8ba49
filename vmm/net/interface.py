"""A network interface of the host, by name: what the configuration asks of a tap's."""

from __future__ import annotations

import array
import errno
import ipaddress
import logging
import socket
import struct
from contextlib import contextmanager
from typing import TYPE_CHECKING

from vmm.errors import ConfigError, HostError
from vmm.net import ioctls

if TYPE_CHECKING:
    from collections.abc import Iterator

logger = logging.getLogger(__name__)

Address = ipaddress.IPv4Interface | ipaddress.IPv6Interface

_DRIVER_INFO_BYTES = 196
_DRIVER = slice(4, 36)
_BUS = slice(100, 132)


def address_of(ip: str, mask: str) -> Address:
    """Join an address and its mask. Raises: ConfigError (caller)."""
    address = ipaddress.ip_address(ip)
    try:
        netmask = ipaddress.ip_address(mask)
        if address.version == 4:
            return ipaddress.IPv4Interface(f"{ip}/{mask}")
        # The standard library knows no masks of this family, only lengths.
        bits = int(netmask)
        length = bits.bit_count()
        if netmask.version == 6 and bits == (1 << 128) - (1 << 128 - length):
            return ipaddress.IPv6Interface(f"{ip}/{length}")
    except ValueError:
        pass
    example = "255.255.255.0" if address.version == 4 else "ffff:ffff:ffff:ffff::"
    raise ConfigError(
        f"mask (--net mask=…) is {mask}, no mask for the address {ip}; give one such as {example}"
    )


class Interface:
    """One interface, in the network namespace of this process. Errors are the host's."""

    def __init__(self, name: str) -> None:
        self.name = name

    def exists(self) -> bool:
        """Whether there is one of this name."""
        try:
            self._call("SIOCGIFINDEX", ioctls.SIOCGIFINDEX)
        except HostError as error:
            if error.errno == errno.ENODEV:
                return False
            raise
        return True

    def kind(self) -> str:
        """What it is: ``tap``, ``tun``, or the name of another driver; empty if it does not say."""
        info = array.array("B", bytes(_DRIVER_INFO_BYTES))
        struct.pack_into("<I", info, 0, ioctls.ETHTOOL_GDRVINFO)
        address, _ = info.buffer_info()
        try:
            self._call("SIOCETHTOOL", ioctls.SIOCETHTOOL, struct.pack("<Q", address))
        except HostError:
            return ""
        driver, bus = (bytes(info[part]).split(b"\0")[0].decode() for part in (_DRIVER, _BUS))
        return bus if driver == "tun" else driver

    def set_address(self, address: Address) -> None:
        """Give it an address, unless it has one of the family. Raises: HostError."""
        present = self._address() if address.version == 4 else self._address_v6()
        if present is not None:
            if present != address.ip:
                logger.warning(
                    "Interface %s keeps its address %s; %s was not set", self.name, present, address
                )
            return
        if isinstance(address, ipaddress.IPv6Interface):
            index = struct.unpack_from("<i", self._call("SIOCGIFINDEX", ioctls.SIOCGIFINDEX))[0]
            in6_ifreq = struct.pack("<16sIi", address.packed, address.network.prefixlen, index)
            with self._socket(socket.AF_INET6) as fd, self._errors("SIOCSIFADDR", str(address)):
                ioctls.call(fd, ioctls.SIOCSIFADDR, bytearray(in6_ifreq))
            return
        self._call("SIOCSIFADDR", ioctls.SIOCSIFADDR, _socket_address(address.ip))
        self._call("SIOCSIFNETMASK", ioctls.SIOCSIFNETMASK, _socket_address(address.netmask))

    def _address(self) -> ipaddress.IPv4Address | None:
        try:
            answer = self._call("SIOCGIFADDR", ioctls.SIOCGIFADDR)
        except HostError as error:
            if error.errno == errno.EADDRNOTAVAIL:
                return None
            raise
        return ipaddress.IPv4Address(answer[4:8])

    def _address_v6(self) -> ipaddress.IPv6Address | None:
        """The first that is not link-local: such a one every interface makes itself."""
        try:
            with open("/proc/self/net/if_inet6") as table:
                lines = [line.split() for line in table]
        except OSError:
            return None
        for digits, _, _, _, _, name in lines:
            address = ipaddress.IPv6Address(bytes.fromhex(digits))
            if name == self.name and not address.is_link_local:
                return address
        return None

    def set_mac(self, mac: bytes) -> None:
        """Give it a hardware address. Raises: HostError."""
        value = struct.pack("<H6s", ioctls.ARPHRD_ETHER, mac)
        self._call("SIOCSIFHWADDR", ioctls.SIOCSIFHWADDR, value)

    def set_mtu(self, mtu: int) -> None:
        """Give it a largest packet, in bytes. Raises: HostError."""
        self._call("SIOCSIFMTU", ioctls.SIOCSIFMTU, struct.pack("<i", mtu))

    def bring_up(self) -> None:
        """Have it carry packets. Raises: HostError."""
        flags = struct.unpack_from("<H", self._call("SIOCGIFFLAGS", ioctls.SIOCGIFFLAGS))[0]
        # Someone who may use a tap need not be allowed to change it.
        if not flags & ioctls.IFF_UP:
            value = struct.pack("<H", flags | ioctls.IFF_UP)
            self._call("SIOCSIFFLAGS", ioctls.SIOCSIFFLAGS, value)

    def _call(self, name: str, number: int, value: bytes = b"") -> bytes:
        argument = ioctls.request(self.name, value)
        with self._socket(socket.AF_INET) as fd, self._errors(name):
            ioctls.call(fd, number, argument)
        return ioctls.value_of(argument)

    @contextmanager
    def _socket(self, family: int) -> Iterator[int]:
        try:
            with socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as opened:
                yield opened.fileno()
        except OSError as error:
            raise HostError.from_os_error("socket", error, path=self.name) from error

    @contextmanager
    def _errors(self, operation: str, value: str = "") -> Iterator[None]:
        try:
            yield
        except OSError as error:
            hint = HINTS.get(error.errno or 0)
            what = f"{operation} {value}".rstrip()
            raise HostError.from_os_error(what, error, path=self.name, hint=hint) from error


HINTS = {
    errno.EPERM: "run with CAP_NET_ADMIN, or set the interface up before and leave this out",
    errno.EACCES: "the address family may be off for the interface; turn it on (sysctl net.ipv6)",
    errno.EADDRNOTAVAIL: "no interface may have this address; give another",
    errno.EINVAL: "the interface does not take the value; give another",
}


def _socket_address(ip: ipaddress.IPv4Address) -> bytes:
    return struct.pack("<HH4s", socket.AF_INET, 0, ip.packed)

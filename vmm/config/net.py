"""``NetConfig``: a virtio network device, its tap and its queues."""

from enum import StrEnum
from typing import Annotated, ClassVar

from pydantic import AfterValidator

from vmm.config.pci import PciDevice
from vmm.config.rate_limit import BucketKeys, RateLimiterConfig
from vmm.config.units import U16, U64, Array, Choice, Descriptor, HostPath, Text
from vmm.config.values import Cli


class VhostMode(StrEnum):
    """Which end of a vhost-user socket this process is."""

    CLIENT = "Client"
    SERVER = "Server"


def mac_text(text: str) -> str:
    """Accept six pairs of hexadecimal digits with colons; the result is lower case."""
    pairs = text.split(":")
    digits = "".join(pairs)
    if [len(pair) for pair in pairs] != [2] * 6 or not set(digits) <= set("0123456789abcdefABCDEF"):
        raise ValueError("give a MAC address such as 2e:89:a8:e4:92:af")
    return text.lower()


def ip_text(text: str) -> str:
    """Accept an IPv4 or IPv6 address without a scope."""
    import ipaddress  # Few configurations have an address; the others start without it.

    try:
        if "%" not in text:
            return str(ipaddress.ip_address(text))
    except ValueError:
        pass
    raise ValueError("give an IPv4 or IPv6 address such as 192.168.249.1")


Mac = Annotated[str, AfterValidator(mac_text)]
IpAddress = Annotated[str, AfterValidator(ip_text)]


class NetConfig(PciDevice):
    """A network interface: a tap of the host, or a vhost-user back end."""

    FLAG: ClassVar[str] = "--net"

    tap: Text | None = None
    ip: IpAddress | None = None
    mask: IpAddress | None = None
    mac: Mac | None = None
    host_mac: Mac | None = None
    mtu: U16 | None = None
    num_queues: U64 = 2
    queue_size: U16 = 256
    vhost_user: bool = False
    vhost_socket: Annotated[HostPath | None, Cli("socket")] = None
    vhost_mode: Choice[VhostMode] = VhostMode.CLIENT
    fds: Annotated[Array[Descriptor] | None, Cli("fd")] = None
    rate_limiter_config: Annotated[RateLimiterConfig | None, Cli(keys=BucketKeys)] = None
    offload_tso: bool = True
    offload_ufo: bool = True
    offload_csum: bool = True

"""From a network of the configuration to a network device over its open tap."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from vmm.errors import ConfigError, UnsupportedError
from vmm.net.interface import Address, address_of
from vmm.net.mac import bytes_of, is_group, random_mac
from vmm.net.tap import Tap, adopt_tap, open_tap
from vmm.virtio.net import Net, PairLimits
from vmm.virtio.net_spec import CHECKSUMS, FRAGMENTS, SEGMENTS, NetFeature
from vmm.virtio.rate_limit import limiter_of

if TYPE_CHECKING:
    from vmm.config.net import NetConfig

logger = logging.getLogger(__name__)


@contextmanager
def open_net(config: NetConfig, id: str) -> Iterator[Net]:
    """The network over its tap, which is gone when the scope is left if it was made here.

    Raises: ConfigError (caller), UnsupportedError, HostError.
    """
    if config.vhost_user:
        raise UnsupportedError(
            f"Network {id} has vhost_user on (--net vhost_user=on), which is not in this version "
            "of the VMM; give it a tap"
        )
    mac = config.mac or random_mac()
    for name, value in (("mac", mac), ("host_mac", config.host_mac)):
        if value is not None and is_group(bytes_of(value)):
            raise ConfigError(
                f"{name} (--net {name}=…) is {value}, which means a group of stations; its first "
                "byte must be even"
            )
    opened = _adopted(config) if config.fds is not None else _opened(config)
    with opened as tap:
        settled = {"mac": mac} if config.fds is not None else {"mac": mac, "tap": tap.name}
        yield Net(
            id,
            tap,
            bytes_of(mac),
            config.queue_size,
            mtu=config.mtu,
            offloads=_offloads(config),
            limits=[_limits(config) for _ in tap.fds],
            settled=settled,
        )


@contextmanager
def _opened(config: NetConfig) -> Iterator[Tap]:
    """The tap of a name, or a new one, set up as far as the configuration says how."""
    address: Address | None = None
    if config.ip is not None and config.mask is not None:
        address = address_of(config.ip, config.mask)
    with open_tap(config.tap, config.num_queues // 2) as tap:
        interface = tap.interface
        if config.host_mac is not None:
            interface.set_mac(bytes_of(config.host_mac))
        if config.mtu is not None:
            interface.set_mtu(config.mtu)
        if address is not None:
            interface.set_address(address)
        interface.bring_up()
        yield tap


@contextmanager
def _adopted(config: NetConfig) -> Iterator[Tap]:
    """The tap behind the descriptors; who opened it has set it up, maybe in another namespace."""
    if config.ip is not None:
        # The original takes no notice of it, and clients such as Kata's send one with every tap.
        logger.warning(
            "ip (--net ip=…) is %s beside fds (fd=…): unused; set the tap up where it is opened",
            config.ip,
        )
    for name in ("tap", "host_mac"):
        value = getattr(config, name)
        if value is not None:
            raise ConfigError(
                f"{name} (--net {name}=…) is {value} beside fds (fd=…); set the tap up where it is "
                "opened"
            )
    with adopt_tap(config.fds or ()) as tap:
        yield tap


def _offloads(config: NetConfig) -> NetFeature:
    offloads = NetFeature(0)
    for is_on, features in (
        (config.offload_csum, CHECKSUMS),
        (config.offload_tso, SEGMENTS),
        (config.offload_ufo, FRAGMENTS),
    ):
        if is_on:
            offloads |= features
    return offloads


def _limits(config: NetConfig) -> PairLimits:
    """Each direction of each pair has the limit for itself."""
    limit = config.rate_limiter_config
    return PairLimits(rx=limiter_of(limit), tx=limiter_of(limit))

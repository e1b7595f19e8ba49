"""The descriptors of the networks of a VM that is brought back: new ones in place of those it had.

A number in its configuration meant an open file of another process, and means nothing here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Final

from vmm.errors import ConfigError

if TYPE_CHECKING:
    from vmm.config.requests import RestoredNetConfig
    from vmm.config.vm import VmConfig

GONE: Final = -1
"""Stands for a descriptor that a network had."""

Given = Mapping[str, Sequence[int]]
"""The descriptors of networks, by their ids."""


def with_lost_descriptors(config: VmConfig, data: object) -> VmConfig:
    """Give a configuration in which a network shows how many descriptors it had.

    ``data`` is what it was read from, which still has their numbers. Raises: ConfigError (caller).
    """
    if not config.net:
        return config
    nets = (
        net if not count else net.model_copy(update={"fds": (GONE,) * count})
        for net, count in zip(config.net, _counts(data), strict=True)
    )
    return config.model_copy(update={"net": tuple(nets)})


def given_to(net_fds: Sequence[RestoredNetConfig] | None, sent: Sequence[int]) -> Given:
    """The descriptors for each network: named by a request, or sent with it in that order.

    Raises: ConfigError (caller) when more or fewer were sent.
    """
    given: dict[str, Sequence[int]] = {}
    at = 0
    for net in net_fds or ():
        count = net.num_fds or 0
        given[net.id] = net.fds if net.fds is not None else sent[at : at + count]
        at += count if net.fds is None else 0
    if at and at != len(sent):
        raise ConfigError(
            f"net_fds says {at} descriptors in all (num_fds), and {len(sent)} were sent; send as "
            "many"
        )
    return given


def with_descriptors(config: VmConfig, given: Given) -> VmConfig:
    """Give a configuration with new descriptors for each network that had some, which all have."""
    if not config.net:
        return config
    nets = (
        net if net.fds is None else net.model_copy(update={"fds": tuple(given[net.id or ""])})
        for net in config.net
    )
    return config.model_copy(update={"net": tuple(nets)})


def _counts(data: object) -> Iterator[int]:
    """How many descriptors each network of a configuration had; it was read as one already."""
    nets = data.get("net") if isinstance(data, Mapping) else None
    for net in nets or ():
        fds = net.get("fds")
        if not isinstance(fds, list | None):
            raise ConfigError(f"net.fds is {fds!r}; it must be a list")
        yield len(fds or ())

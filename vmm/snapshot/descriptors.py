"""The descriptors of a restored VM's networks: new ones in the place of those it had.

A number in ``config.json`` meant an open file of the process that wrote it, and means nothing here.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from vmm.config.rules.restore import validate_restore
from vmm.errors import ConfigError

if TYPE_CHECKING:
    from vmm.config.requests import RestoreConfig
    from vmm.config.vm import VmConfig

GONE: Final = -1
"""Stands for a descriptor that a network had."""


def with_descriptors(
    config: VmConfig, document: str, request: RestoreConfig, sent: Sequence[int]
) -> VmConfig:
    """Give the configuration with the descriptors that came for its networks.

    ``document`` is what the configuration was read from, which still has the old ones' numbers;
    ``sent`` came with the request, in the order of its networks. Raises: ConfigError (caller).
    """
    nets = config.net or ()
    had = [
        net if not count else net.model_copy(update={"fds": (GONE,) * count})
        for net, count in zip(nets, _counts(document), strict=True)
    ]
    if not nets:
        validate_restore(request, config)
        return config
    validate_restore(request, config.model_copy(update={"net": tuple(had)}))
    given = _given(request, sent)
    now = (
        net if net.fds is None else net.model_copy(update={"fds": given[net.id or ""]})
        for net in had
    )
    return config.model_copy(update={"net": tuple(now)})


def _given(request: RestoreConfig, sent: Sequence[int]) -> dict[str, tuple[int, ...]]:
    """The descriptors for each network: named by the request, or sent with it."""
    given, at = {}, 0
    for net in request.net_fds or ():
        count = net.num_fds or 0
        given[net.id] = net.fds if net.fds is not None else tuple(sent[at : at + count])
        at += count if net.fds is None else 0
    if at and at != len(sent):
        raise ConfigError(
            f"net_fds says {at} descriptors in all (num_fds), and {len(sent)} were sent; send as "
            "many"
        )
    return given


def _counts(document: str) -> list[int]:
    """How many descriptors each network of a configuration had; it was read as one already."""
    return [len(net.get("fds") or ()) for net in json.loads(document).get("net") or ()]

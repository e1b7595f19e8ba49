"""Descriptors that clients sent for devices: kept as long as the configuration names them."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vmm.config.vm import VmConfig


class KeptDescriptors:
    """The descriptors of one VM's networks, which a later boot needs again.

    Devices that are there have copies of their own.
    """

    def __init__(self) -> None:
        self._fds: set[int] = set()

    def keep(self, fds: Iterable[int]) -> None:
        """Own descriptors that the configuration names from now on."""
        self._fds.update(fds)

    def close_unnamed(self, config: VmConfig | None) -> None:
        """Close those that a configuration does not name; None names none."""
        nets = (config.net or ()) if config is not None else ()
        named = {fd for net in nets for fd in net.fds or ()}
        for fd in self._fds - named:
            os.close(fd)
        self._fds &= named

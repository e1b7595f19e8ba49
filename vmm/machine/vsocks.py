"""From the vsock section to a socket device over its listening unix socket."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import trio

from vmm.listener import listening
from vmm.virtio.vsock import Vsock
from vmm.vsock.switch import Switch

if TYPE_CHECKING:
    from vmm.config.vsock import VsockConfig


@contextmanager
def open_vsock(config: VsockConfig, id: str) -> Iterator[Vsock]:
    """The device; its socket's file is there until the scope is left. Raises: HostError."""
    with listening(config.socket, "vsock device") as listener:
        listener.setblocking(False)
        with Switch(listener, config.socket, config.cid, trio.current_time) as switch:
            yield Vsock(id, config.cid, switch)

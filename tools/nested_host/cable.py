"""A network cable from one nested host to another: Ethernet frames on a pair of sockets."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

NAME: Final = "cable"
MACS: Final = ("02:00:00:00:0c:01", "02:00:00:00:0c:02")


@dataclass(frozen=True)
class Plug:
    """One end: the socket for QEMU, and the address of the network card that is in it."""

    socket: socket.socket
    mac: str

    def arguments(self) -> list[str]:
        """Return the words of QEMU's command line; the state of a machine is the same with them."""
        return ["-netdev", f"stream,id={NAME},addr.type=fd,addr.str={self.socket.fileno()}"]

    def device(self) -> dict[str, str]:
        """Return the network card as QEMU's `device_add` takes it."""
        return {"driver": "virtio-net-pci", "netdev": NAME, "mac": self.mac, "romfile": ""}


@contextmanager
def cable() -> Iterator[tuple[Plug, Plug]]:
    """Make a cable; it is usable once, for two hosts that are restored while the block runs."""
    near, far = socket.socketpair()
    with near, far:
        yield Plug(near, MACS[0]), Plug(far, MACS[1])

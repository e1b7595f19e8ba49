"""RAM that follows a VM: fetched from where it was when it is touched, and in the background.

The destination asks over a connection of its own, page by page, in the threads of a pager; the
source answers until the destination closes. If that connection is lost, the VM is lost: half of its
RAM is here and half there.

Spec: Cloud Hypervisor migration, section Postcopy.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import trio

from vmm.errors import HostError
from vmm.kvm_cffi.pager import FaultServer, Pager

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmm.kvm_cffi import GuestMemoryMap
    from vmm.machine.memory import GuestMemory
    from vmm.migration.link import Link

FAULT_CONNECTION_S = 30.0
"""How long the connection for faults may take to come once the state is there."""


class RemotePager(Pager):
    """A pager that asks over a socket, which becomes its own."""

    def __init__(self, socket_fd: int) -> None:
        self._socket_fd = socket_fd
        try:
            super().__init__(-1, 0)
        except BaseException:
            os.close(socket_fd)
            raise
        self.ask(socket_fd)

    def close(self) -> None:
        """End the threads, and say to the other side that nothing more is wanted."""
        super().close()
        fd, self._socket_fd = self._socket_fd, -1
        if fd >= 0:
            os.close(fd)


def fetch_on_demand(socket_fd: int, memory: GuestMemory) -> None:
    """Begin to fetch RAM; ``memory`` has the pager until all of it is there. Raises: HostError."""
    pager = RemotePager(socket_fd)
    memory.hold(pager)
    numbers = {
        region.slot: pager.add(region.hva, region.size, region.zone.page_size, region.gpa)
        for region in memory.regions
    }
    for region, range_ in memory.present:
        pager.mark(numbers[region.slot], range_.gpa - region.gpa, range_.size)
    pager.start()
    memory.pager = pager


async def serve_faults(link: Link, memory: GuestMemoryMap, served: Callable[[int], None]) -> None:
    """Answer for pages until the other side has all it wants. Raises: PeerError."""
    server = FaultServer(link.fileno(), memory)
    while True:
        await link.readable()
        pages = await trio.to_thread.run_sync(server.serve)
        if pages is None:
            return
        served(pages)


def duplicate(sock: trio.socket.SocketType) -> int:
    """A descriptor of a socket that outlives it. Raises: HostError."""
    try:
        return os.dup(sock.fileno())
    except OSError as error:
        raise HostError.from_os_error("dup", error) from error

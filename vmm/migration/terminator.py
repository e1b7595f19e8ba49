"""TLS of the connection for faults, at the destination: in a process of its own.

The loop itself may have to wait for a page: it serves devices, and they touch RAM. So what brings
pages must neither be a task of that loop nor need its interpreter. The pager's threads have one end
of a pair of sockets, in the clear; this process has the other end and the connection.

Run as ``python -m vmm.migration.terminator <tls_dir> <connection> <pair>``, with two descriptors.
It ends when either side does.
"""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

import trio

from vmm.errors import HostError, VmmError, chain
from vmm.kvm_cffi.closing import Closing
from vmm.migration.tls import TlsLink, receiver_context

if TYPE_CHECKING:
    from collections.abc import Sequence

logger = logging.getLogger(__name__)


class Terminator(Closing):
    """The process, which lives until this is closed; ``sock`` is this side's end of the pair."""

    def __init__(self, process: subprocess.Popen[bytes], sock: trio.socket.SocketType) -> None:
        self._process = process
        self.sock = sock

    @classmethod
    async def open(cls, connection: trio.socket.SocketType, tls_dir: str) -> Terminator:
        """Give a connection to a new process. Raises: HostError when there can be none."""
        near, far = trio.socket.socketpair()
        with far:
            try:
                process = await trio.to_thread.run_sync(
                    _start, tls_dir, [connection.fileno(), far.fileno()]
                )
            except OSError as error:
                near.close()
                raise HostError.from_os_error(
                    "start of a process for TLS", error, path=sys.executable
                ) from error
        return cls(process, near)

    def close(self) -> None:
        """End the process. A second call does nothing."""
        self._process.kill()
        self._process.wait()


def _start(tls_dir: str, fds: Sequence[int]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", __name__, tls_dir, *map(str, fds)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        # Modules are where this process has them, whatever has become of its directory.
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        pass_fds=fds,
        # What a terminal sends to the VMM is not for this process, which ends with it.
        start_new_session=True,
    )


async def terminate(tls_dir: str, connection: socket.socket, pair: socket.socket) -> None:
    """Carry bytes between the two until one of them ends. Raises: PeerError, ConfigError."""
    inside = trio.SocketStream(trio.socket.from_stdlib_socket(pair))
    outside = trio.socket.from_stdlib_socket(connection)
    link = await TlsLink.open(outside, receiver_context(tls_dir))
    async with inside, trio.open_nursery() as nursery:
        nursery.start_soon(_carry, inside, link.stream, nursery.cancel_scope)
        nursery.start_soon(_carry, link.stream, inside, nursery.cancel_scope)
    link.close()


async def _carry(
    source: trio.abc.ReceiveStream, to: trio.abc.SendStream, scope: trio.CancelScope
) -> None:
    try:
        async for data in source:
            await to.send_all(data)
    except trio.BrokenResourceError as error:
        logger.debug("The connection for memory that follows has ended: %s", error)
    scope.cancel()


def main() -> int:
    """Be that process; the exit code."""
    tls_dir, *fds = sys.argv[1:]
    connection, pair = (socket.socket(fileno=int(fd)) for fd in fds)
    with connection, pair:
        try:
            trio.run(terminate, tls_dir, connection, pair)
        except VmmError as error:
            for line in chain(error):
                print(f"TLS for memory that follows: {line}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""File descriptors that a client sends beside the bytes of its request.

They come with the request's first bytes and are its own until it has been answered. What no handler
has taken by then, or when the client leaves, is closed.

Spec: unix(7), SCM_RIGHTS; Cloud Hypervisor API, vm.add-net and others.
"""

from __future__ import annotations

import array
import os
import socket
from collections.abc import Iterable, Iterator
from typing import Final

from vmm.errors import ConfigError

LIMIT: Final = 253
"""Of one request; the kernel takes no more in one message (SCM_MAX_FD)."""

_SIZE = array.array("i").itemsize
ANCILLARY_BYTES: Final = socket.CMSG_SPACE(LIMIT * _SIZE)

Ancillary = Iterable[tuple[int, int, bytes]]


class Descriptors:
    """What has come for the request that a connection is about."""

    def __init__(self) -> None:
        self._fds: list[int] = []
        self._are_whole = True

    def receive(self, ancillary: Ancillary, flags: int) -> None:
        """Hold what came with a read of the socket, up to the limit; the rest is closed at once."""
        came = list(_descriptors_in(ancillary))
        room = LIMIT - len(self._fds)
        self._fds += came[:room]
        for fd in came[room:]:
            os.close(fd)
        if len(came) > room or flags & socket.MSG_CTRUNC:
            self._are_whole = False

    def take(self) -> tuple[int, ...]:
        """Give all there are; who takes them closes them.

        Raises: ConfigError (caller) when more were sent than could be received.
        """
        if not self._are_whole:
            raise ConfigError(
                f"More descriptors came than the {LIMIT} that a request may have, or than this "
                "process may open (RLIMIT_NOFILE); send fewer, or raise its limit"
            )
        taken, self._fds = tuple(self._fds), []
        return taken

    def close(self) -> None:
        """Close what nobody has taken; the next request begins with none."""
        for fd in self._fds:
            os.close(fd)
        self._fds = []
        self._are_whole = True


def _descriptors_in(ancillary: Ancillary) -> Iterator[int]:
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            yield from array.array("i", data[: len(data) - len(data) % _SIZE])

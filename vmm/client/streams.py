"""What a connection does for the asynchronous client, whichever library it waits by."""

from __future__ import annotations

import array
import socket
from collections.abc import Sequence
from typing import Protocol


class Stream(Protocol):
    """A connection to the API socket."""

    async def send(self, data: bytes, descriptors: Sequence[int]) -> None:
        """Send everything; the descriptors go with the first bytes. Raises: OSError."""

    async def receive(self) -> bytes:
        """Receive something; empty at the end. Raises: OSError."""


def rights(descriptors: Sequence[int]) -> list[tuple[int, int, array.array[int]]]:
    """Pack descriptors as a message's ancillary data (unix(7), SCM_RIGHTS)."""
    if not descriptors:
        return []
    return [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))]

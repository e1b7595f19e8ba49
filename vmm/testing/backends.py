"""What a device leads to on the host, in memory: a console, a tap, a disk image."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import trio

from vmm.console import WindowSize
from vmm.net.offload import Offload

TYPED_AHEAD = 10
"""Pieces of text that may be typed before anybody reads."""


class MemoryConsole:
    """A console's back end that a test plays: ``written`` is what was printed, ``type`` types.

    While ``is_stalled``, it takes what is written and never says so. ``size`` is that of its
    terminal; ``resize`` changes it.
    """

    path = None

    def __init__(self, size: WindowSize | None = None) -> None:
        self.written = b""
        self.size = size
        self.is_stalled = False
        self.type, self._typed = trio.open_memory_channel[bytes](TYPED_AHEAD)
        self._resized = trio.Event()

    async def write(self, data: bytes) -> None:
        """Keep what is written."""
        self.written += data
        if self.is_stalled:
            await trio.sleep_forever()
        await trio.lowlevel.checkpoint()

    async def read(self) -> bytes:
        """Wait for what is typed."""
        return await self._typed.receive()

    async def watch_size(self, changed: Callable[[], None]) -> None:
        """Tell of each ``resize``."""
        while True:
            await self._resized.wait()
            self._resized = trio.Event()
            changed()

    def resize(self, rows: int, columns: int) -> None:
        """Give the terminal another size."""
        self.size = WindowSize(rows, columns)
        self._resized.set()

    @property
    def waiting(self) -> int:
        """How many pieces of typed text nobody has read."""
        return self._typed.statistics().current_buffer_used


class MemoryTap:
    """A tap whose queues are wires: packets go to and come from the far ends in ``wires``.

    A context manager. What the device tells the tap is kept: ``offloads``, and in ``used`` the
    numbers of queues.
    """

    name = "wire0"

    def __init__(self, pairs: int = 1) -> None:
        self.wires: list[socket.socket] = []
        self.fds: Sequence[int] = ()
        self.offloads: list[Offload] = []
        self.used: list[int] = []
        self._pairs = pairs
        self._stack = ExitStack()

    def __enter__(self) -> MemoryTap:
        ends = [
            socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(self._pairs)
        ]
        for pair in ends:
            for end in pair:
                self._stack.enter_context(end)
                end.setblocking(False)
        self.fds = [near.fileno() for near, _ in ends]
        self.wires = [far for _, far in ends]
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def set_offloads(self, offloads: Offload) -> None:
        """Note which offloads the driver took."""
        self.offloads.append(offloads)

    def use_queues(self, count: int) -> None:
        """Note how many pairs of queues the driver uses."""
        self.used.append(count)


@contextmanager
def memory_image(content: bytes | int) -> Iterator[Path]:
    """Give the path of a disk image in memory, with this content or of this many zero bytes.

    The path leads to it in this process, and in any that may look into it, until the block ends.
    """
    fd = os.memfd_create("image", os.MFD_CLOEXEC)
    try:
        if isinstance(content, int):
            os.truncate(fd, content)
        else:
            os.write(fd, content)
        yield Path(f"/proc/{os.getpid()}/fd/{fd}")
    finally:
        os.close(fd)

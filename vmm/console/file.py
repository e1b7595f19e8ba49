"""The back end of mode File: output into a file that is created or emptied; no input."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import NoReturn

import trio

from vmm.console.output import DescriptorOutput, serve_output
from vmm.errors import HostError


class FileBackend:
    """A console whose output is kept in a file. A full disk costs output until there is room."""

    path = None
    size = None

    def __init__(self, output: DescriptorOutput) -> None:
        self._output = output

    async def write(self, data: bytes) -> None:
        """Append it to the file."""
        await self._output.write(data)

    async def read(self) -> NoReturn:
        """Wait for ever."""
        await trio.sleep_forever()

    async def watch_size(self, changed: Callable[[], None]) -> NoReturn:
        """Wait for ever: there is no terminal."""
        await trio.sleep_forever()


@asynccontextmanager
async def open_file(path: str, name: str) -> AsyncIterator[FileBackend]:
    """Create or empty the file. ``name`` is the console's, for messages.

    Raises: HostError with the path when the host refuses.
    """
    # Not blocking, since opening a FIFO that nobody reads would stop the whole program.
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK
    try:
        fd = os.open(path, flags, 0o666)
    except OSError as error:
        raise HostError.from_os_error(
            "open", error, path=path, hint=f"give the {name} a file that can be written"
        ) from error
    try:
        async with serve_output(fd, name) as output:
            yield FileBackend(output)
    finally:
        os.close(fd)

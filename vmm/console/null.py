"""The back end of the modes Off and Null: output is dropped, and there is no input."""

from __future__ import annotations

from collections.abc import Callable
from typing import NoReturn

import trio


class NullBackend:
    """A console that nobody watches."""

    path = None
    size = None

    async def write(self, data: bytes) -> None:
        """Drop it."""
        await trio.lowlevel.checkpoint()

    async def read(self) -> NoReturn:
        """Wait for ever."""
        await trio.sleep_forever()

    async def watch_size(self, changed: Callable[[], None]) -> NoReturn:
        """Wait for ever: there is no terminal."""
        await trio.sleep_forever()

"""A console's pty as a terminal program uses it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import trio

PATIENCE_S = 90.0


@contextmanager
def opened(path: str) -> Iterator[int]:
    """Open a console's pty as a terminal program does."""
    fd = os.open(path, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
    try:
        yield fd
    finally:
        os.close(fd)


async def read_until(fd: int, text: bytes) -> bytes:
    """Read until a text has come. Raises: trio.TooSlowError."""
    data = b""
    with trio.fail_after(PATIENCE_S):
        while text not in data:
            await trio.lowlevel.wait_readable(fd)
            data += os.read(fd, 4096)
    return data

"""The files of a snapshot: which there are, and a directory that gets all of them or none.

``state.json`` is written last: what was left by a host that lost its power has no whole one.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Final, NamedTuple

from vmm.errors import HostError

CONFIG: Final = "config.json"
STATE: Final = "state.json"
MEMORY: Final = "memory-ranges"

_FLAGS: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC


class Written(NamedTuple):
    """Descriptors of the new files, for writing."""

    config: int
    state: int
    memory: int


@contextmanager
def new_files(folder: str) -> Iterator[Written]:
    """Make the files in a directory that has none of them; they go again if the block fails.

    Raises: HostError when the directory is none, or has one of them.
    """
    with ExitStack() as stack:
        fds = [stack.enter_context(_new(folder, name)) for name in (CONFIG, STATE, MEMORY)]
        yield Written(*fds)
        _sync_folder(folder)


@contextmanager
def _new(folder: str, name: str) -> Iterator[int]:
    path = os.path.join(folder, name)
    try:
        fd = os.open(path, _FLAGS, 0o600)
    except OSError as error:
        hint = "give an existing directory that has no snapshot yet, and may be written"
        raise HostError.from_os_error(
            "open of a snapshot's file", error, path=path, hint=hint
        ) from error
    try:
        yield fd
    except BaseException:
        with suppress(OSError):
            os.unlink(path)
        raise
    finally:
        os.close(fd)


def write_text(fd: int, text: str, path: str) -> None:
    """Write a whole file and have it on the disk. Raises: HostError."""
    data = memoryview(text.encode())
    try:
        while data:
            data = data[os.write(fd, data) :]
        os.fsync(fd)
    except OSError as error:
        raise HostError.from_os_error("write of a snapshot", error, path=path) from error


def read_text(folder: str, name: str) -> str:
    """Read one of the files. Raises: HostError when it is not there, or cannot be read."""
    path = os.path.join(folder, name)
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError as error:
        hint = "give the directory of a whole snapshot"
        raise HostError.from_os_error("read of a snapshot", error, path=path, hint=hint) from error


def _sync_folder(folder: str) -> None:
    try:
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
    except OSError as error:
        raise HostError.from_os_error("sync of a snapshot", error, path=folder) from error

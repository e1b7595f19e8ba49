"""Advisory locks on disk images, so that no two VMs write one image at once.

The locks belong to the open file description: they end with it, however the process ends, and two
openings in one process exclude each other as two processes do. A VM that writes holds an exclusive
lock, one that only reads a shared one.

Source: fcntl_locking(2), open file description locks.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager

from vmm.errors import HostError

_TAKEN = (errno.EAGAIN, errno.EACCES)

WHOLE_FILE = 0
"""As a length: to the end of the file, wherever that comes to be."""


class ImageLock:
    """A lock on an image that may be given to another VMM, and taken back; see ``lock_image``."""

    def __init__(self, fd: int, path: str, *, exclusive: bool, length: int) -> None:
        self._fd = fd
        self._path = path
        self._exclusive = exclusive
        self._length = length

    def take(self) -> None:
        """Take it; one that is held stays so. Raises: HostError when another excludes it."""
        lock_image(self._fd, self._path, exclusive=self._exclusive, length=self._length)

    def release(self) -> None:
        """Give it back; a second call does nothing."""
        _set(self._fd, fcntl.F_UNLCK, WHOLE_FILE)


@contextmanager
def image_lock(fd: int, path: str, *, exclusive: bool, length: int) -> Iterator[ImageLock]:
    """Hold a lock on an image; see ``lock_image``.

    Leaving gives it back at once. Closing would not always: a ring of the kernel's that the file
    was registered with may outlive its own descriptor for a while.
    """
    lock = ImageLock(fd, path, exclusive=exclusive, length=length)
    lock.take()
    try:
        yield lock
    finally:
        lock.release()


def lock_image(fd: int, path: str, *, exclusive: bool, length: int) -> None:
    """Lock the first ``length`` bytes of an image, or WHOLE_FILE, without waiting.

    A lock that the descriptor holds already is changed. Raises: HostError when another opening
    holds a lock that excludes this one, or the file system has no locks.
    """
    kind = fcntl.F_WRLCK if exclusive else fcntl.F_RDLCK
    try:
        _set(fd, kind, length)
    except OSError as error:
        hint = "use a file system that has file locks"
        if error.errno in _TAKEN:
            hint = (
                "another instance likely holds a lock on it; end that one, or let every user of "
                "the image open it with readonly on"
            )
        raise HostError.from_os_error("locking of a disk image", error, path=path, hint=hint) from (
            error
        )


def _set(fd: int, kind: int, length: int) -> None:
    fcntl.fcntl(fd, fcntl.F_OFD_SETLK, struct.pack("hhqqi", kind, os.SEEK_SET, 0, length, 0))

"""Advisory locks on disk images, so that no two VMs write one image at once.

The locks belong to the open file description: they end when it is closed, however the process ends,
and two openings in one process exclude each other as two processes do. A VM that writes holds an
exclusive lock, one that only reads a shared one.

Source: fcntl_locking(2), open file description locks.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct

from vmm.errors import HostError

_TAKEN = (errno.EAGAIN, errno.EACCES)

WHOLE_FILE = 0
"""As a length: to the end of the file, wherever that comes to be."""


def lock_image(fd: int, path: str, *, exclusive: bool, length: int) -> None:
    """Lock the first ``length`` bytes of an image, or WHOLE_FILE, without waiting.

    A lock that the descriptor holds already is changed. Raises: HostError when another opening
    holds a lock that excludes this one, or the file system has no locks.
    """
    kind = fcntl.F_WRLCK if exclusive else fcntl.F_RDLCK
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, struct.pack("hhqqi", kind, os.SEEK_SET, 0, length, 0))
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

"""Which parts of RAM hold anything. What does not need not be looked at, and a look would give it
memory: what was never touched, and the holes of files.

Source: Linux Documentation/admin-guide/mm/pagemap.rst; lseek(2), SEEK_DATA.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from vmm.errors import HostError

if TYPE_CHECKING:
    from vmm.machine.memory import Region

PAGEMAP = "/proc/self/pagemap"


@contextmanager
def open_pagemap() -> Iterator[int]:
    """What tells which memory without a file was ever touched. Raises: HostError."""
    try:
        fd = os.open(PAGEMAP, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise HostError.from_os_error("open", error, path=PAGEMAP) from error
    try:
        yield fd
    finally:
        os.close(fd)


def has_named_file(region: Region) -> bool:
    """Whether it is mapped from a file that others can open, and that outlives the VM."""
    return (
        region.zone.file is not None and region.fd is not None and os.fstat(region.fd).st_nlink > 0
    )


def held_in(region: Region, start: int, size: int) -> list[tuple[int, int]]:
    """The parts of a piece of a region that may hold anything: where in the region, and how much.

    Of what is written to a file those that are no holes, of other memory all.
    """
    if region.fd is None or not region.zone.is_file:
        return [(start, size)]
    found = data_of(region.fd, region.offset + start, size)
    return [(at - region.offset, taken) for at, taken in found]


def data_of(fd: int, start: int, size: int) -> list[tuple[int, int]]:
    """The parts of a piece of a file that are no holes: offset and size of each."""
    found, end, at = [], start + size, start
    while at < end:
        try:
            data = os.lseek(fd, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                break  # Nothing but a hole follows.
            return [(start, size)]  # The file system does not tell.
        if data >= end:
            break
        at = min(os.lseek(fd, data, os.SEEK_HOLE), end)
        found.append((data, at - data))
    return found

"""``memory-ranges``: the content of RAM, range after range, with holes where it is zero.

A range that is mapped from a named file and shared with it is not in here: the file itself has the
content.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

import trio

from vmm.errors import ConfigError, HostError
from vmm.machine.content import data_of, has_named_file, held_in, open_pagemap
from vmm.snapshot.carrying import Step, Work, read_steps, steps_of, write_steps

if TYPE_CHECKING:
    from vmm.machine.memory import GuestMemory, Region


class Part(NamedTuple):
    """A region in the file, from ``offset`` on; one with ``offset`` None is not in it."""

    region: Region
    offset: int | None


def parts_of(regions: Sequence[Region]) -> list[Part]:
    """Where each region is in the file."""
    parts, at = [], 0
    for region in regions:
        if is_kept_elsewhere(region):
            parts.append(Part(region, None))
            continue
        parts.append(Part(region, at))
        at += region.size
    return parts


def size_of(parts: Sequence[Part]) -> int:
    """The bytes of the whole file, holes included."""
    return sum(part.region.size for part in parts if part.offset is not None)


def is_kept_elsewhere(region: Region) -> bool:
    """Whether what is written to a region goes to a file that has a name."""
    return region.zone.shared and has_named_file(region)


async def write_memory(fd: int, path: str, memory: GuestMemory) -> int:
    """Write the RAM of a VM that stands; give how many bytes were not zero. Raises: HostError."""
    parts = parts_of(memory.regions)
    total = size_of(parts)
    steps = (step for part in parts for step in _stored(part))
    try:
        os.truncate(fd, total)
        _write_directly(fd)
        with open_pagemap() as pagemap_fd:
            work = Work("write of a snapshot", path, total, steps)
            written = await write_steps(fd, work, pagemap_fd)
        await trio.to_thread.run_sync(os.fdatasync, fd)
    except OSError as error:
        raise HostError.from_os_error("write of a snapshot", error, path=path) from error
    return written


def _write_directly(fd: int) -> None:
    """Keep what is written out of the page cache, which others need and which costs a copy.

    Where the file system has no such writing it goes through the cache: nothing is lost then.
    """
    with suppress(OSError):
        fcntl.fcntl(fd, fcntl.F_SETFL, os.O_DIRECT)


def open_memory(folder: str, name: str, memory: GuestMemory) -> int:
    """Open the file and check that it has all of RAM; the caller closes it.

    Raises: HostError, ConfigError when it is shorter or longer (caller).
    """
    path = os.path.join(folder, name)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        hint = "give the directory of a whole snapshot"
        raise HostError.from_os_error("open of a snapshot", error, path=path, hint=hint) from error
    size, wanted = os.fstat(fd).st_size, size_of(parts_of(memory.regions))
    if size != wanted:
        os.close(fd)
        raise ConfigError(
            f"{path} has {size} bytes and the saved machine's RAM {wanted}; the file is not whole, "
            "or another snapshot's"
        )
    return fd


async def read_memory(fd: int, path: str, memory: GuestMemory) -> None:
    """Read all of RAM. Raises: ConfigError when the file ends early (caller), HostError."""
    parts = parts_of(memory.regions)
    steps = (step for part in parts for step in _filled(fd, part))
    await read_steps(fd, Work("read of a snapshot", path, size_of(parts), steps))


def _stored(part: Part) -> Iterator[Step]:
    """The steps of a region that may hold anything."""
    region, offset = part
    if offset is not None:
        yield from steps_of(region, offset, held_in(region, 0, region.size))


def _filled(fd: int, part: Part) -> Iterator[Step]:
    """The steps of a region that have to be read: all, where it is not zero at first."""
    region, offset = part
    if offset is None:
        return
    extents = [(0, region.size)]
    if region.zone.file is None or region.zone.is_file:
        found = data_of(fd, offset, region.size)
        extents = [(start - offset, size) for start, size in found]
    yield from steps_of(region, offset, extents)

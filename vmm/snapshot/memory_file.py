"""``memory-ranges``: the content of RAM, range after range, with holes where it is zero.

Worker threads carry it a step at a time, in C and without the interpreter's lock; the loop goes on
meanwhile. A range that is mapped from a named file and shared with it is not in here: the file
itself has the content.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple

import trio

from vmm.errors import ConfigError, HostError, first_error
from vmm.kvm_cffi.ram_file import read_ram, write_ram

if TYPE_CHECKING:
    from vmm.machine.memory import GuestMemory, Region

logger = logging.getLogger(__name__)

STEP: Final = 16 << 20
"""Bytes that one turn in a worker thread carries; a cancelled snapshot ends after one."""
WRITERS: Final = 2
"""Steps at a time: one looks for zeros, or ends, while the other keeps the disk at work."""
READERS: Final = 2
"""One copies while the other waits for pages or the disk."""
TOLD_EVERY: Final = 4
"""Parts of the whole after each of which the log has a line."""


class Part(NamedTuple):
    """A region in the file, from ``offset`` on; one with ``offset`` None is not in it."""

    region: Region
    offset: int | None


class Step(NamedTuple):
    """A piece that is carried at once: ``start`` in the region is at ``offset`` of the file."""

    region: Region
    offset: int
    start: int
    size: int


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
    zone = region.zone
    if zone.file is None or not zone.shared or region.fd is None:
        return False
    return os.fstat(region.fd).st_nlink > 0


async def write_memory(fd: int, path: str, memory: GuestMemory) -> int:
    """Write the RAM of a VM that stands; give how many bytes were not zero. Raises: HostError."""
    parts = parts_of(memory.regions)
    total = size_of(parts)
    steps = (step for part in parts for step in _stored(part))
    pagemap = os.open("/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.truncate(fd, total)
        _write_directly(fd)
        write = partial(_write, fd, pagemap)
        written = await _carry(steps, write, _Progress("written to", path, total), WRITERS)
        await trio.to_thread.run_sync(os.fdatasync, fd)
    except HostError as error:
        raise HostError("write of a snapshot", error.errno, path=path, hint=_room(error)) from error
    except OSError as error:
        raise HostError.from_os_error("write of a snapshot", error, path=path) from error
    finally:
        os.close(pagemap)
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
    try:
        progress = _Progress("read from", path, size_of(parts))
        await _carry(steps, partial(_read, fd, path), progress, READERS)
    except HostError as error:
        raise HostError("read of a snapshot", error.errno, path=path) from error


async def _carry(
    steps: Iterator[Step], carry: Callable[[Step], int], progress: _Progress, workers: int
) -> int:
    """Carry steps in worker threads, some at a time; the sum of what that gives.

    Raises: what the first one that fails does.
    """
    total = 0

    async def work() -> None:
        nonlocal total
        for step in steps:
            # Not in one statement: others add theirs while this one waits.
            carried = await trio.to_thread.run_sync(carry, step)
            total += carried
            progress.tell(step.size)

    try:
        async with trio.open_nursery() as nursery:
            for _ in range(workers):
                nursery.start_soon(work)
    except ExceptionGroup as group:
        error = first_error(group)
        raise error from error.__cause__
    return total


def _write(fd: int, pagemap: int, step: Step) -> int:
    untouched = pagemap if step.region.fd is None else -1
    return write_ram(fd, step.region.hva + step.start, step.size, step.offset, untouched)


def _read(fd: int, path: str, step: Step) -> int:
    got = read_ram(fd, step.region.hva + step.start, step.size, step.offset)
    if got < step.size:
        raise ConfigError(f"{path} ends at byte {step.offset + got}; it has become shorter")
    return got


def _stored(part: Part) -> Iterator[Step]:
    """The steps of a region that may hold anything: of a file's, not the holes."""
    region = part.region
    extents = [(0, region.size)]
    if region.zone.is_file and region.fd is not None:
        found = data_of(region.fd, region.offset, region.size)
        extents = [(start - region.offset, size) for start, size in found]
    return _steps(part, extents)


def _filled(fd: int, part: Part) -> Iterator[Step]:
    """The steps of a region that have to be read: all, where it is not zero at first."""
    region = part.region
    extents = [(0, region.size)]
    if part.offset is not None and (region.zone.file is None or region.zone.is_file):
        found = data_of(fd, part.offset, region.size)
        extents = [(start - part.offset, size) for start, size in found]
    return _steps(part, extents)


def _steps(part: Part, extents: Sequence[tuple[int, int]]) -> Iterator[Step]:
    if part.offset is None:
        return
    for first, size in extents:
        for start in range(first, first + size, STEP):
            taken = min(STEP, first + size - start)
            yield Step(part.region, part.offset + start, start, taken)


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


def _room(error: HostError) -> str | None:
    return "free room on it, or give another directory" if error.errno == errno.ENOSPC else None


class _Progress:
    """Tells the log how far it is."""

    def __init__(self, what: str, path: str, total: int) -> None:
        self._what = what
        self._path = path
        self._total = total
        self._done = self._told = 0

    def tell(self, more: int) -> None:
        self._done += more
        part = TOLD_EVERY * self._done // self._total
        if part > self._told:
            self._told = part
            logger.info(
                "%d of %d MiB of RAM are %s %s",
                self._done >> 20,
                self._total >> 20,
                self._what,
                self._path,
            )

"""RAM to a file and back: worker threads carry it a step at a time, in C and without the
interpreter's lock; the loop goes on meanwhile."""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

import trio

from vmm.errors import ConfigError, HostError, first_error
from vmm.kvm_cffi.ram_file import read_ram, write_ram

if TYPE_CHECKING:
    from vmm.machine.memory import Region

logger = logging.getLogger(__name__)

STEP: Final = 16 << 20
"""Bytes that one turn in a worker thread carries; what is cancelled ends after one."""
WRITERS: Final = 2
"""Steps at a time: one looks for zeros, or ends, while the other keeps the disk at work."""
READERS: Final = 2
"""One copies while the other waits for pages or the disk."""
TOLD_EVERY: Final = 4
"""Parts of the whole after each of which the log has a line."""


class Step(NamedTuple):
    """A piece that is carried at once: ``start`` in the region is at ``offset`` of the file."""

    region: Region
    offset: int
    start: int
    size: int


def steps_of(region: Region, offset: int, extents: Sequence[tuple[int, int]]) -> Iterator[Step]:
    """The steps for parts of a region whose begin is at ``offset`` of the file."""
    for first, size in extents:
        for start in range(first, first + size, STEP):
            yield Step(region, offset + start, start, min(STEP, first + size - start))


class Work(NamedTuple):
    """Steps of ``total`` bytes; ``name`` says what is done with the file at ``path``."""

    name: str
    path: str
    total: int
    steps: Iterator[Step]


async def write_steps(fd: int, work: Work, pagemap_fd: int) -> int:
    """Write what is not zero; give how much that was. Raises: HostError.

    ``pagemap_fd`` is -1 when pages that were never touched may hold something all the same.
    """

    def write(step: Step) -> int:
        untouched = pagemap_fd if step.region.fd is None else -1
        return write_ram(fd, step.region.hva + step.start, step.size, step.offset, untouched)

    try:
        return await _carry(work, write, WRITERS)
    except HostError as error:
        is_full = error.errno == errno.ENOSPC
        hint = "free room on it, or give another directory" if is_full else None
        raise HostError(work.name, error.errno, path=work.path, hint=hint) from error


async def read_steps(fd: int, work: Work) -> None:
    """Read all. Raises: ConfigError when the file ends early (caller), HostError."""

    def read(step: Step) -> int:
        got = read_ram(fd, step.region.hva + step.start, step.size, step.offset)
        if got < step.size:
            raise ConfigError(
                f"{work.path} ends at byte {step.offset + got}; it has become shorter"
            )
        return got

    try:
        await _carry(work, read, READERS)
    except HostError as error:
        raise HostError(work.name, error.errno, path=work.path) from error


async def _carry(work: Work, carry: Callable[[Step], int], workers: int) -> int:
    """Carry steps in worker threads, some at a time; the sum of what that gives.

    Raises: what the first one that fails does.
    """
    total = 0
    progress = _Progress(work)

    async def work_on() -> None:
        nonlocal total
        for step in work.steps:
            # Not in one statement: others add theirs while this one waits.
            carried = await trio.to_thread.run_sync(carry, step)
            total += carried
            progress.tell(step.size)

    try:
        async with trio.open_nursery() as nursery:
            for _ in range(workers):
                nursery.start_soon(work_on)
    except ExceptionGroup as group:
        error = first_error(group)
        raise error from error.__cause__
    return total


class _Progress:
    """Tells the log how far it is."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._done = self._told = 0

    def tell(self, more: int) -> None:
        self._done += more
        work = self._work
        part = TOLD_EVERY * self._done // work.total
        if part > self._told:
            self._told = part
            done, total = self._done >> 20, work.total >> 20
            logger.info("%d of %d MiB of RAM: %s %s", done, total, work.name, work.path)

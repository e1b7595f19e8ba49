"""Writing a core file of a VM whose vCPUs stand still.

Pages of zeros become holes. The file is gone again when that fails or is cancelled: there is a
whole core file, or none.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, suppress
from typing import TYPE_CHECKING

from vmm.errors import ConfigError, HostError
from vmm.machine.content import held_in, open_pagemap
from vmm.snapshot.carrying import Step, Work, steps_of, write_steps
from vmm.snapshot.core_file import MOST_SEGMENTS, Piece, VcpuRegisters, headers

if TYPE_CHECKING:
    from vmm.machine.memory import GuestMemory


async def write_core(path: str, memory: GuestMemory, vcpus: Sequence[VcpuRegisters]) -> None:
    """Write a core file where none is yet.

    Raises: HostError when it is there already, or cannot be written.
    """
    ram = [Piece(*each.range) for each in memory.present]
    if len(ram) >= MOST_SEGMENTS:
        raise ConfigError(f"RAM has {len(ram)} pieces; a core file may have {MOST_SEGMENTS - 1}")
    before = headers(vcpus, ram)
    total = sum(piece.size for piece in ram)
    async with _made(path) as fd:
        try:
            os.truncate(fd, len(before) + total)
            os.pwrite(fd, before, 0)
        except OSError as error:
            raise HostError.from_os_error("write of a core file", error, path=path) from error
        work = Work("write of a core file", path, total, _steps(memory, len(before)))
        with ExitStack() as stack:
            # What is still to be read on demand was never touched, and holds something.
            is_all_here = memory.pager is None
            pagemap_fd = stack.enter_context(open_pagemap()) if is_all_here else -1
            await write_steps(fd, work, pagemap_fd)


def _steps(memory: GuestMemory, offset: int) -> Iterator[Step]:
    """The steps of what may hold anything; RAM begins at ``offset`` of the file."""
    for each in memory.present:
        extents = [(each.offset, each.range.size)]
        if memory.pager is None:
            extents = held_in(each.region, each.offset, each.range.size)
        yield from steps_of(each.region, offset - each.offset, extents)
        offset += each.range.size


@asynccontextmanager
async def _made(path: str) -> AsyncIterator[int]:
    """Make a file for its owner alone, and take it away again if the block fails."""
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except OSError as error:
        hint = "name a file that is not there yet, in a directory that is"
        raise HostError.from_os_error("open of a core file", error, path=path, hint=hint) from error
    try:
        yield fd
    except BaseException:
        with suppress(OSError):
            os.unlink(path)
        raise
    finally:
        os.close(fd)

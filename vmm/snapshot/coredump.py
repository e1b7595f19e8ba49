"""Writing a core file of a VM whose vCPUs stand still.

Pages of zeros become holes. The file is written by a worker thread, a step at a time, and is gone
again when that fails or is cancelled: there is a whole core file, or none.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Final

import trio

from vmm.errors import ConfigError, HostError
from vmm.snapshot.core_file import MOST_SEGMENTS, Piece, VcpuRegisters, headers

if TYPE_CHECKING:
    from vmm.machine.memory import GuestMemory

STEP: Final = 1 << 20
"""Bytes that one turn in the worker thread writes."""
_PAGE: Final = 4096
_ZEROS: Final = bytes(STEP)


async def write_core(path: str, memory: GuestMemory, vcpus: Sequence[VcpuRegisters]) -> None:
    """Write a core file where none is yet.

    Raises: HostError when it is there already, or cannot be written.
    """
    present = memory.present
    ram = [Piece(*each.range) for each in present]
    if len(ram) >= MOST_SEGMENTS:
        raise ConfigError(f"RAM has {len(ram)} pieces; a core file may have {MOST_SEGMENTS - 1}")
    before = headers(vcpus, ram)
    async with _made(path) as fd:
        try:
            os.truncate(fd, len(before) + sum(piece.size for piece in ram))
            os.pwrite(fd, before, 0)
            at = len(before)
            for each in present:
                for start in range(each.offset, each.offset + each.range.size, STEP):
                    end = min(start + STEP, each.offset + each.range.size)
                    with each.region.view[start:end] as step:
                        await trio.to_thread.run_sync(_write_step, fd, step, at)
                    at += end - start
        except OSError as error:
            raise HostError.from_os_error("write of a core file", error, path=path) from error


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


def _write_step(fd: int, step: memoryview, at: int) -> None:
    """Write what is not zero of a step, in runs of pages."""
    data = bytes(step)
    if data == _ZEROS[: len(data)]:
        return
    start: int | None = None
    for page in range(0, len(data) + _PAGE, _PAGE):
        is_data = page < len(data) and data[page : page + _PAGE] != _ZEROS[:_PAGE]
        if is_data and start is None:
            start = page
        elif not is_data and start is not None:
            _write_whole(fd, memoryview(data)[start:page], at + start)
            start = None


def _write_whole(fd: int, data: memoryview, at: int) -> None:
    while data:
        written = os.pwrite(fd, data, at)
        data, at = data[written:], at + written

"""Tells on a terminal how far work is that takes long, while its request waits for the answer.

What is told comes from the VMM where it says something (vm.migration), and else from what it has
written so far. It goes to stderr and is wiped at the end, so that the output is that of ch-remote.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

import trio

from vmm.client import AsyncClient
from vmm.config.units import MIB
from vmm.errors import VmmError

if TYPE_CHECKING:
    from vmm.client.calls import Call

WRITING: Final = ("snapshot", "coredump")
MOVING: Final = ("send-migration", "receive-migration")

FIRST_S: Final = 1.0
"""What ends sooner is told nothing of."""

EVERY_S: Final = 0.5
WIPE: Final = "\r\033[K"
BLOCK_BYTES: Final = 512


def carry_out(path: str, call: Call[object], name: str, target: str | None) -> object:
    """Send a request, tell how far it is, and give the answer's body.

    ``target`` is the URL or path that it writes to. Raises: VmmError as the client does,
    KeyboardInterrupt.
    """
    try:
        return trio.run(partial(_carry_out, AsyncClient(path), call, name, target))
    except BaseExceptionGroup as group:
        if group.subgroup(KeyboardInterrupt) is None:
            raise
        raise KeyboardInterrupt from None


async def _carry_out(
    client: AsyncClient, call: Call[object], name: str, target: str | None
) -> object:
    answer: object
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_tell, client, name, target)
            try:
                answer = await client.send(call)
            except VmmError as error:
                answer = error
            nursery.cancel_scope.cancel()
    finally:
        sys.stderr.write(WIPE)
        sys.stderr.flush()
    if isinstance(answer, VmmError):
        raise answer
    return answer


async def _tell(client: AsyncClient, name: str, target: str | None) -> None:
    begin = trio.current_time()
    await trio.sleep(FIRST_S)
    while True:
        seconds = trio.current_time() - begin
        told = await (_of_migration(client) if name in MOVING else _of_files(client, name, target))
        sys.stderr.write(f"{WIPE}{name}: {seconds:.0f} s{told}")
        sys.stderr.flush()
        await trio.sleep(EVERY_S)


async def _of_migration(client: AsyncClient) -> str:
    try:
        info = await client.migration()
    except VmmError:
        return ""  # It has not begun, or the VM has just gone.
    sent, memory = info.transferred_bytes // MIB, info.memory_bytes // MIB
    return (
        f", {info.phase.value}: {sent} MiB sent of {memory} MiB RAM, {info.dirty_bytes // MIB} left"
    )


async def _of_files(client: AsyncClient, name: str, target: str | None) -> str:
    if name not in WRITING or target is None:
        return ""
    try:
        ram = (await client.info()).memory_actual_size or 0
    except VmmError:
        ram = 0
    written = _bytes_below(Path(target.removeprefix("file://")))
    return f", {written // MIB} MiB written of at most {ram // MIB} MiB"


def _bytes_below(path: Path) -> int:
    """What a file, or all files of a directory, take on the disk."""
    try:
        files = list(path.iterdir()) if path.is_dir() else [path]
        return sum(file.stat().st_blocks for file in files) * BLOCK_BYTES
    except OSError:
        return 0  # Not there yet, or on another machine.

"""What the process of a VMM holds: threads and descriptors."""

from __future__ import annotations

import os
import re
from collections import Counter
from contextlib import suppress
from pathlib import Path

import trio

from vmm.testing.process import threads_of

WORKER = "Trio thread"
"""trio's idle worker threads end by themselves."""
PATIENCE_S = 60.0


def descriptors(pid: int) -> list[str]:
    """What each of its open files is."""
    found = []
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # Closed meanwhile.
            found.append(os.readlink(entry))
    return sorted(found)


def held(pid: int) -> Counter[str]:
    """What a VMM holds, without the numbers and folders of its own."""
    names = [name for name in threads_of(pid).values() if not name.startswith(WORKER)]
    names += [name.rsplit("/", 1)[-1] for name in descriptors(pid)]
    return Counter(re.sub(r"\d+", "N", name) for name in names)


async def until_held(pid: int, usual: Counter[str]) -> None:
    """Wait until a VMM holds no more than the one did that the guest was booted in."""
    with trio.move_on_after(PATIENCE_S):
        while held(pid) - usual:  # noqa: ASYNC110  the last connections end by themselves
            await trio.sleep(0.05)
        return
    raise AssertionError(f"It holds {held(pid) - usual} more than the VMM without a move")

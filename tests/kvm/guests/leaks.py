"""What a process holds that a VM might have left in it."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path
from typing import NamedTuple

from vmm.testing.process import threads_of

MIB = 1 << 20
SLACK_BYTES = 32 * MIB
"""How much the interpreter's own memory may grow; the guests here have more."""

GONE_S = 1.0

WORKERS = ("Trio thread", "iou-wrk")
"""These end by themselves: trio's idle worker threads, which are made for imports, not for VMs, and
the kernel's of an io_uring that is closed."""

_MAPPING = re.compile(r"([0-9a-f]+)-([0-9a-f]+) (\S+) \S+ \S+ \d+ *(.*)")
_OF_A_VM = ("kvm", "memfd:", "ram-")


class Holdings(NamedTuple):
    """Threads, open descriptors, mappings that are of VMs, and anonymous memory in bytes."""

    threads: tuple[str, ...]
    descriptors: tuple[str, ...]
    mappings: tuple[str, ...]
    anonymous_bytes: int


def holdings() -> Holdings:
    """Take stock of this process."""
    mappings, anonymous = _mappings()
    return Holdings(_threads(), _descriptors(), mappings, anonymous)


def check_nothing_left(before: Holdings) -> None:
    """Compare with an earlier stock. Raises: AssertionError that shows what differs."""
    _until_joined_are_gone(before)
    now = holdings()
    assert now.threads == before.threads
    assert now.descriptors == before.descriptors, set(now.descriptors) ^ set(before.descriptors)
    assert now.mappings == before.mappings
    assert now.anonymous_bytes - before.anonymous_bytes < SLACK_BYTES


def _until_joined_are_gone(before: Holdings) -> None:
    """The kernel wakes who joins a thread a moment before it takes the thread from its list."""
    end = time.monotonic() + GONE_S
    while _threads() != before.threads and time.monotonic() < end:
        os.sched_yield()


def _threads() -> tuple[str, ...]:
    names = threads_of(os.getpid())
    found = (f"{tid} {name}" for tid, name in names.items() if not name.startswith(WORKERS))
    return tuple(sorted(found))


def _descriptors() -> tuple[str, ...]:
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            found.append(f"{name} {os.readlink(f'/proc/self/fd/{name}')}")
        except FileNotFoundError:
            continue  # The one that listed the directory.
    return tuple(sorted(found))


def _mappings() -> tuple[tuple[str, ...], int]:
    named, anonymous = [], 0
    for line in Path("/proc/self/maps").read_text().splitlines():
        match = _MAPPING.match(line)
        assert match is not None, line
        start, end, access, path = match.groups()
        if any(part in path for part in _OF_A_VM):
            named.append(path)
        elif not path and "w" in access:
            anonymous += int(end, 16) - int(start, 16)
    return tuple(sorted(named)), anonymous


def resident_bytes(path: Path) -> int:
    """How much of a file this process has mapped and touched."""
    total, ours = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if _MAPPING.match(line):
            ours = line.endswith(str(path))
        elif ours and line.startswith("Rss:"):
            total += int(line.split()[1]) << 10
    return total

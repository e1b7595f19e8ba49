"""What the process of a VMM holds: threads and descriptors."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path


def threads(pid: int) -> list[str]:
    """The names of its threads."""
    names = (_read(task / "comm").strip() for task in _entries(pid, "task"))
    return sorted(name for name in names if name)


def descriptors(pid: int) -> list[str]:
    """What each of its open files is."""
    found = []
    for entry in _entries(pid, "fd"):
        with suppress(FileNotFoundError):  # Closed meanwhile.
            found.append(os.readlink(entry))
    return sorted(found)


def _entries(pid: int, folder: str) -> Iterator[Path]:
    return Path(f"/proc/{pid}/{folder}").iterdir()


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except (FileNotFoundError, ProcessLookupError):  # It has ended meanwhile.
        return ""

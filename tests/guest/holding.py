"""What the process of a VMM holds: threads and descriptors."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from tests.guest.conftest import Guest
from tests.guest.debian import vmm_pid


def threads(guest: Guest) -> list[str]:
    """The names of the VMM's threads."""
    names = (_read(task / "comm").strip() for task in _entries(guest, "task"))
    return sorted(name for name in names if name)


def descriptors(guest: Guest) -> list[str]:
    """What each of the VMM's open files is."""
    found = []
    for entry in _entries(guest, "fd"):
        with suppress(FileNotFoundError):  # Closed meanwhile.
            found.append(os.readlink(entry))
    return sorted(found)


def _entries(guest: Guest, folder: str) -> Iterator[Path]:
    return Path(f"/proc/{vmm_pid(guest)}/{folder}").iterdir()


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except (FileNotFoundError, ProcessLookupError):  # It has ended meanwhile.
        return ""

"""The cache of downloaded and generated images: where it is, and how files get into it.

Everything in it is named by version and appears whole or not at all, so that an interrupted run
leaves nothing half-made and two runs at the same time cannot disturb each other.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


class ImageError(Exception):
    """An image that could not be made; the text says why and what to do."""


def cache_dir() -> Path:
    """Return the cache directory, made if need be: ``$TRIO_VMM_CACHE`` or ``~/.cache/trio-vmm``."""
    named = os.environ.get("TRIO_VMM_CACHE")
    root = Path(named) if named else Path.home() / ".cache" / "trio-vmm"
    root.mkdir(parents=True, exist_ok=True)
    return root.resolve()


@contextmanager
def exclusive(name: str) -> Iterator[None]:
    """Keep other processes out of the part of the cache called ``name`` until the block ends.

    The kernel drops the hold when the process dies, so a killed run never blocks the next one.
    """
    path = cache_dir() / f".{name}.lock"
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def make_file(target: Path, write: Callable[[Path], None]) -> Path:
    """Return ``target``, first made by ``write`` under another name if it is not there."""
    if not target.exists():
        _publish(target, write)
    return target


def make_tree(target: Path, fill: Callable[[Path], None]) -> Path:
    """Return the directory ``target``, first made and filled by ``fill`` if it is not there."""

    def make(path: Path) -> None:
        path.mkdir(mode=0o755)
        fill(path)

    if not target.is_dir():
        _publish(target, make)
    return target


def _publish(target: Path, make: Callable[[Path], None]) -> None:
    """Make ``target`` under a temporary name beside it, then rename it into place."""
    target.parent.mkdir(parents=True, exist_ok=True)
    # The temporary directory is on the same file system as the target, so the rename is atomic.
    draft_dir = Path(tempfile.mkdtemp(prefix=".draft-", dir=target.parent))
    try:
        draft = draft_dir / target.name
        make(draft)
        try:
            draft.rename(target)
        except OSError:
            # Another process made the same thing meanwhile; its content is the same by its name.
            if not target.exists():
                raise
    finally:
        shutil.rmtree(draft_dir, ignore_errors=True)

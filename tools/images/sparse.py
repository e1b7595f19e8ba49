"""Copy disk images without filling their holes."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

MIB = 1 << 20


def copy_sparse(source: Path, target: Path) -> Path:
    """Copy what a sparse file holds, past the page cache: a nested host reads its share so."""
    size = source.stat().st_size
    with (
        mmap.mmap(-1, MIB) as buffer,
        open(os.open(source, os.O_RDONLY | os.O_DIRECT), "rb", buffering=0) as reader,
        target.open("wb", buffering=0) as writer,
    ):
        writer.truncate(size)
        at = 0
        while at < size:
            try:
                at = os.lseek(reader.fileno(), at, os.SEEK_DATA)
            except OSError:  # Nothing but a hole is left.
                break
            end = os.lseek(reader.fileno(), at, os.SEEK_HOLE)
            while at < end:
                got = os.preadv(reader.fileno(), [buffer], at)
                at += os.pwrite(writer.fileno(), memoryview(buffer)[: min(got, end - at)], at)
    return target

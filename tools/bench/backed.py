"""Host memory that is really there, for what is to be timed.

A host that is itself a VM may give what is freed back to its own host seconds later (free page
reporting), and then pays for the first touch of each page again: some forty times what it costs to
clear one. Which of two contenders that hits depends on who came before it and how long it took to
start.

Source: madvise(2) (MADV_POPULATE_WRITE), virtio specification section 5.5.6.7.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterator
from contextlib import contextmanager

MADV_HUGEPAGE = 14
MADV_POPULATE_WRITE = 23
"""Neither is in the mmap module of the oldest Python."""


@contextmanager
def backed_memory(size: int) -> Iterator[Callable[[], None]]:
    """Hold so many bytes of host memory, to be let go of when others are about to touch as many.

    Raises: OSError when the host has not as much.
    """
    with mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as held:
        held.madvise(MADV_HUGEPAGE)
        held.madvise(MADV_POPULATE_WRITE)
        yield held.close

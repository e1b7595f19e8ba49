"""A network of its own for a test: nothing it makes there is seen outside, or left behind."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vmm.errors import HostError

CLONE_NEWNET = 0x4000_0000


@contextmanager
def network_namespace() -> Iterator[None]:
    """Put this thread into a new network namespace, and back at the end.

    Raises: HostError where that is not permitted.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        if libc.unshare(CLONE_NEWNET) < 0:
            raise HostError("unshare(CLONE_NEWNET)", ctypes.get_errno(), hint="run as root")
        try:
            yield
        finally:
            if libc.setns(before, CLONE_NEWNET) < 0:
                raise HostError("setns", ctypes.get_errno())
    finally:
        os.close(before)


@contextmanager
def held_namespace() -> Iterator[Path]:
    """Make a network namespace for other processes; it goes with the last of them.

    What is given is its file, as nsenter(1) and ip(8) take it. Raises: HostError where that is not
    permitted.
    """
    with network_namespace():
        held = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield Path(f"/proc/{os.getpid()}/fd/{held}")
    finally:
        os.close(held)

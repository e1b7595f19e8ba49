"""Event descriptors, by which KVM, C and Python tell each other that there is something to do.

Source: eventfd(2).
"""

from __future__ import annotations

import os
from contextlib import ExitStack

from vmm.kvm_cffi.check import refused


def open_event() -> int:
    """Make an event descriptor that does not block. Raises: HostError (host)."""
    try:
        return os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    except OSError as error:
        raise refused("eventfd", error) from error


def open_events(count: int) -> tuple[int, ...]:
    """Make several, or none of them. Raises: HostError (host)."""
    fds: list[int] = []
    with ExitStack() as opened:
        for _ in range(count):
            fds.append(open_event())
            opened.callback(os.close, fds[-1])
        opened.pop_all()
    return tuple(fds)

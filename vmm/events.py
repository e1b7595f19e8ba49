"""The event monitor: what happens to the VMM and its VM, as a stream of JSON objects.

Each event is one object, indented by two spaces and followed by an empty line, with the time since
the monitor started::

    {"timestamp": {"secs": 0, "nanos": 1}, "source": "vm", "event": "booted", "properties": null}
"""

from __future__ import annotations

import json
import logging
import os
import stat
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from vmm.errors import HostError

logger = logging.getLogger(__name__)


class EventSink:
    """Where events go: a descriptor, if there is one, and always the log.

    A reader that is slow or gone loses events; it never delays or stops the VM.
    """

    def __init__(self, fd: int | None = None) -> None:
        self._fd = fd
        self._start_ns = time.monotonic_ns()
        self._rest = b""
        self._is_losing = False

    def emit(self, source: str, event: str, properties: Mapping[str, str] | None = None) -> None:
        """Report one event.

        Spec: Cloud Hypervisor API, event monitor.
        """
        logger.info("Event: source = %s, event = %s, properties = %s", source, event, properties)
        if self._fd is None:
            return
        secs, nanos = divmod(time.monotonic_ns() - self._start_ns, 1_000_000_000)
        text = json.dumps(
            {
                "timestamp": {"secs": secs, "nanos": nanos},
                "source": source,
                "event": event,
                "properties": None if properties is None else dict(properties),
            },
            indent=2,
        )
        self._write(self._fd, f"{text}\n\n".encode())

    def _write(self, fd: int, event: bytes) -> None:
        """Write an event whole or not at all: the rest of a torn one goes out before the next."""
        try:
            if self._rest:
                self._rest = self._rest[os.write(fd, self._rest) :]
            if not self._rest:
                self._rest = event[os.write(fd, event) :]
                return
        except OSError as error:
            self._warn_of_loss(str(error))
        else:
            self._warn_of_loss("the reader is too slow")

    def _warn_of_loss(self, reason: str) -> None:
        if not self._is_losing:
            self._is_losing = True
            logger.warning("The event monitor loses events from now on: %s", reason)


@contextmanager
def open_event_sink(where: str | int | None) -> Iterator[EventSink]:
    """Open the event monitor on a path (created or truncated), a descriptor, or only the log.

    Spec: Cloud Hypervisor API, ``--event-monitor``.
    Raises: HostError, the caller's fault: a path that cannot be written, a number that is no
    descriptor.
    """
    if where is None:
        yield EventSink()
        return
    fd = _open_monitor(where)
    try:
        yield EventSink(fd)
    finally:
        os.close(fd)


def _open_monitor(where: str | int) -> int:
    hint = "give --event-monitor a path or descriptor that can be written"
    try:
        if isinstance(where, str):
            # Opened for both, a FIFO neither waits for its reader nor breaks when that leaves, and
            # it keeps the first events for a reader that comes later (fifo(7)).
            access = os.O_RDWR if _is_fifo(where) else os.O_WRONLY
            flags = os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NONBLOCK
            return os.open(where, access | flags, 0o644)
        os.set_inheritable(where, False)
        os.set_blocking(where, False)
    except OSError as error:
        name = where if isinstance(where, str) else f"descriptor {where}"
        raise HostError.from_os_error(
            "Opening the event monitor", error, path=name, hint=hint
        ) from error
    return where


def _is_fifo(path: str) -> bool:
    try:
        return stat.S_ISFIFO(os.stat(path).st_mode)
    except FileNotFoundError:
        return False

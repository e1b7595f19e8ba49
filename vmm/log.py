"""The log: how much is said, where it goes, and that no failing log file ever harms the VM.

A line reads ``vmm: 0.123456s: <vCPU 0> INFO:module:42 -- message``: the time since the start, the
trio task (or thread) that speaks, the level and the place.
"""

from __future__ import annotations

import errno
import io
import logging
import os
import select
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import trio

from vmm.errors import HostError

TRACE = 5
_STDERR = 2
_LEVELS = (logging.WARNING, logging.INFO, logging.DEBUG, TRACE)
_FORMAT = "vmm: %(seconds).6fs: <%(task)s> %(levelname)s:%(module)s:%(lineno)d -- %(message)s"


@contextmanager
def set_up_log(verbosity: int, path: str | None, template: str | None = None) -> Iterator[None]:
    """Send the log to a file (created or truncated) or to stderr.

    ``verbosity`` counts the ``-v``: 0 warnings, 1 info, 2 debug, 3 or more trace. ``template``
    says what a line looks like, with tokens in braces.

    Spec: Cloud Hypervisor command line, ``-v``, ``--log-file`` and ``--log-format``.
    Raises: HostError, the caller's fault: a path that cannot be written; ConfigError for a template
    that cannot be read.
    """
    formatter = _formatter(template)
    fd = _STDERR if path is None else _open_log(path)
    handler = _Handler(fd, "the log on stderr" if path is None else path)
    handler.setFormatter(formatter)
    root = logging.getLogger()
    ours = logging.getLogger("vmm")
    levels_before = root.level, ours.level
    level = _LEVELS[min(verbosity, len(_LEVELS) - 1)]
    logging.addLevelName(TRACE, "TRACE")
    # The libraries below have their own say only when everything is asked for.
    root.setLevel(TRACE if level == TRACE else logging.WARNING)
    ours.setLevel(level)
    root.addHandler(handler)
    try:
        yield
    finally:
        root.removeHandler(handler)
        root.setLevel(levels_before[0])
        ours.setLevel(levels_before[1])
        if path is not None:
            os.close(fd)


def _formatter(template: str | None) -> logging.Formatter:
    if template is None:
        return logging.Formatter(_FORMAT)
    from vmm.log_format import TemplateFormatter  # Few ask for it; the others start without it.

    return TemplateFormatter(template)


def _open_log(path: str) -> int:
    try:
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise HostError.from_os_error(
            "Opening the log file", error, path=path, hint="give --log-file a path you may write"
        ) from error


class _Descriptor(io.TextIOBase):
    """Text straight to a descriptor: what cannot be written now is lost, not kept for later."""

    def __init__(self, fd: int) -> None:
        super().__init__()
        self._fd = fd

    def write(self, text: str) -> int:
        data = text.encode(errors="backslashreplace")
        while data:
            data = data[_write(self._fd, data) :]
        return len(text)


def _write(fd: int, data: bytes) -> int:
    """Write what does not block, and say how much: the loop waits for no reader of the log.

    The descriptor may be shared with others, who would be surprised if it blocked no more. Raises:
    OSError, BlockingIOError where nothing can be written now.
    """
    readiness = select.poll()
    readiness.register(fd, select.POLLOUT)
    if not readiness.poll(0):
        raise BlockingIOError(errno.EAGAIN, "its reader is too slow")
    # So much a pipe takes at once when it is ready (pipe(7)).
    return os.write(fd, data[: select.PIPE_BUF])


class _Handler(logging.StreamHandler[_Descriptor]):
    def __init__(self, fd: int, name: str) -> None:
        super().__init__(_Descriptor(fd))
        self._where = name
        self._has_failed = False
        self.addFilter(_add_origin)

    def handleError(self, record: logging.LogRecord) -> None:
        """Say once that the log fails, and go on without it."""
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
        elif not self._has_failed:
            self._has_failed = True
            _say(f"vmm: Writing {self._where} failed, lines of it are lost: {error}\n")


def _say(text: str) -> None:
    try:
        _write(_STDERR, text.encode())
    except OSError:
        return  # The terminal is gone as well: nobody is left to tell.


def _add_origin(record: logging.LogRecord) -> bool:
    record.seconds = record.relativeCreated / 1000
    record.task = _speaker()
    return True


def _speaker() -> str:
    try:
        return trio.lowlevel.current_task().name
    except RuntimeError:
        return threading.current_thread().name

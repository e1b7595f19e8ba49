"""The API's listening socket: who may use it, who holds it, and that nothing of it stays behind.

It is opened before the API stack is imported, so this module imports next to nothing: a client that
connects early waits in the kernel's backlog until the server is there.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import socket
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager

from vmm.errors import HostError

logger = logging.getLogger(__name__)

BACKLOG = 128
PATH_LIMIT = 107
"""Bytes of a path that fit ``sockaddr_un.sun_path`` beside its final zero (unix(7))."""

_OPENING = "Opening the API socket"
# struct flock of fcntl(2): an exclusive lock of the whole file; l_pid is 0 as OFD locks ask for.
_WHOLE_FILE = struct.pack("hhqqi", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)


@contextmanager
def open_api_socket(where: str | int) -> Iterator[socket.socket]:
    """Listen on a path, or adopt an inherited descriptor that listens already.

    A path is created with mode 0600, guarded by an exclusive lock on ``<path>.lock``, and replaces
    a socket that a dead instance left. Both files are gone afterwards; what an inherited descriptor
    is bound to stays.

    Spec: Cloud Hypervisor API, transport: ``--api-socket``.
    Raises: HostError, the caller's fault (path in use, unusable path or descriptor) or the host's.
    """
    if isinstance(where, int):
        with _adopt(where) as listener:
            yield listener
    else:
        _check_path(where)
        with _hold_lock(where), _listen(where) as listener:
            yield listener


def _check_path(path: str) -> None:
    size = len(os.fsencode(path))
    if size == 0:
        hint = "it is empty: give the path of the socket to create"
        raise HostError(_OPENING, errno.ENOENT, path="an empty path", hint=hint)
    if size > PATH_LIMIT:
        hint = f"it has {size} bytes and a socket address takes {PATH_LIMIT}: shorten it"
        raise HostError(_OPENING, errno.ENAMETOOLONG, path=path, hint=hint)


@contextmanager
def _hold_lock(path: str) -> Iterator[None]:
    lock_path = f"{path}.lock"
    lock = _take_lock(path, lock_path)
    try:
        yield
    finally:
        # Removed while still locked, so that nobody can have locked this file in between.
        _remove(lock_path, os.fstat(lock))
        os.close(lock)


def _take_lock(path: str, lock_path: str) -> int:
    """Open and lock the lock file that the path names now."""
    while True:
        try:
            lock = os.open(lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise HostError.from_os_error(
                _OPENING, error, path=lock_path, hint="give a path in a directory you may write"
            ) from error
        try:
            fcntl.fcntl(lock, fcntl.F_OFD_SETLK, _WHOLE_FILE)
            if _names(lock_path, os.fstat(lock)):
                return lock
        except OSError as error:
            os.close(lock)
            raise _lock_error(path, error) from error
        # The last holder removed this file after we had opened it: lock its successor.
        os.close(lock)


def _lock_error(path: str, error: OSError) -> HostError:
    if error.errno in {errno.EAGAIN, errno.EACCES}:
        return HostError(
            _OPENING,
            errno.EADDRINUSE,
            path=path,
            hint="it is already in use by another running instance: stop that or give another path",
        )
    return HostError.from_os_error("Locking the API socket", error, path=f"{path}.lock")


@contextmanager
def _listen(path: str) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        try:
            _remove_stale(path)
            # bind takes the mode of the new file from the socket's: nobody else ever sees it open.
            os.fchmod(listener.fileno(), 0o600)
            listener.bind(path)
        except OSError as error:
            raise HostError.from_os_error(_OPENING, error, path=path) from error
        bound = os.lstat(path)
        try:
            listener.listen(BACKLOG)
            yield listener
        finally:
            _remove(path, bound)


def _remove_stale(path: str) -> None:
    """Remove the socket of an instance that is gone; the lock says that it is."""
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise HostError(
            _OPENING,
            errno.EEXIST,
            path=path,
            hint="it is not a socket and is left as it is: give another path",
        )
    os.unlink(path)


@contextmanager
def _adopt(fd: int) -> Iterator[socket.socket]:
    hint = "give the number of an inherited stream socket that listens"
    name = f"descriptor {fd}"
    try:
        listener = socket.socket(fileno=fd)
    except OSError as error:
        raise HostError.from_os_error(_OPENING, error, path=name, hint=hint) from error
    except ValueError as error:
        raise HostError(_OPENING, errno.EBADF, path=name, hint=hint) from error
    if not _is_listening(listener):
        listener.detach()
        raise HostError(_OPENING, errno.EINVAL, path=name, hint=hint)
    with listener:
        listener.set_inheritable(False)
        yield listener


def _is_listening(candidate: socket.socket) -> bool:
    return (
        candidate.type == socket.SOCK_STREAM
        and candidate.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) != 0
    )


def _names(path: str, file: os.stat_result) -> bool:
    """Whether a path still leads to that very file."""
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return False
    return os.path.samestat(found, file)


def _remove(path: str, file: os.stat_result) -> None:
    """Remove a path if it is still ours, whoever else touched it meanwhile."""
    try:
        if _names(path, file):
            os.unlink(path)
    except OSError as error:
        logger.warning("Removing %s failed, remove it yourself: %s", path, error)

"""A unix socket to listen on, whose file is gone at the end."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from vmm.errors import HostError

# sizeof(sockaddr_un.sun_path) less the terminating zero.
PATH_LIMIT_BYTES = 107


@contextmanager
def listening(path: str, name: str, mode: int = 0o777) -> Iterator[socket.socket]:
    """Bind a path that nothing is at, and listen; the file is removed at the end.

    ``name`` is whose socket it is, for messages. The file has ``mode`` from the first moment on,
    less the process's umask.

    Raises: HostError with the path when it is taken, too long, or cannot be created.
    """
    if len(os.fsencode(path)) > PATH_LIMIT_BYTES:
        raise HostError(
            "bind",
            errno.ENAMETOOLONG,
            path=path,
            hint=f"give the {name} a socket path of at most {PATH_LIMIT_BYTES} bytes",
        )
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        try:
            os.fchmod(listener.fileno(), mode)  # Linux gives it to the file.
            listener.bind(path)
            created = os.lstat(path)
        except OSError as error:
            raise HostError.from_os_error(
                "bind", error, path=path, hint=_hint(error, name)
            ) from error
        try:
            listener.listen()
            yield listener
        finally:
            # Not what somebody else may have put there meanwhile.
            with suppress(OSError):
                if os.path.samestat(os.lstat(path), created):
                    os.unlink(path)


def _hint(error: OSError, name: str) -> str:
    if error.errno == errno.EADDRINUSE:
        return (
            f"remove the file if no other program uses it, or give the {name} another socket path"
        )
    return f"give the {name} a socket path in a directory that exists and can be written"

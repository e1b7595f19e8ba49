"""What can go wrong between a client and a VMM: nobody there, somebody else, or a refusal."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus

from vmm.errors import HostError, PeerError, VmmError

_HINTS = {
    errno.ENOENT: "start a VMM with --api-socket path=…, or correct the path",
    errno.ECONNREFUSED: "nobody listens there: the VMM has ended, or the file is no socket",
    errno.EACCES: "it belongs to another user: be that user, or root",
    errno.EAGAIN: "the VMM accepts no connection: see whether it still runs",
}


class ApiError(VmmError):
    """The VMM refused a request, or could not do it.

    ``status`` is the HTTP status, ``messages`` the server's chain of causes, the outermost first.
    ``is_chain`` is false when the body was not the documented array: it is then one message.
    """

    def __init__(
        self, request: str, status: int, messages: tuple[str, ...], *, is_chain: bool = True
    ) -> None:
        words = ": ".join(messages) or "no reason was given"
        super().__init__(f"{request} was answered {status} {phrase_of(status)}: {words}")
        self.request = request
        self.status = status
        self.messages = messages
        self.is_chain = is_chain


class ConnectError(HostError):
    """The caller's or the host's fault: no connection to the API socket."""


class NoVmmError(PeerError):
    """What is at the other end does not speak the API, or ended in the middle of an answer."""


def phrase_of(status: int) -> str:
    """The words of a status; those of an unknown one are missing."""
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "(an unknown status)"


@contextmanager
def connecting(path: str) -> Iterator[None]:
    """Turn what the host says about a socket into ConnectError."""
    operation = "Connecting to the VMM"
    try:
        yield
    except OSError as error:
        number = error.errno or 0
        if number == 0:  # AF_UNIX itself refuses a path that does not fit into an address.
            raise ConnectError(operation, errno.ENAMETOOLONG, path=path) from error
        raise ConnectError(operation, number, path=path, hint=_HINTS.get(number)) from error


@contextmanager
def talking(path: str) -> Iterator[None]:
    """Turn a connection that broke into NoVmmError; a timeout stays what it is."""
    try:
        yield
    except TimeoutError:
        raise
    except OSError as error:
        if error.errno == errno.EBADF:
            hint = "give numbers of files that are open in this process"
            raise HostError("Passing open files to the VMM", errno.EBADF, hint=hint) from error
        raise NoVmmError(f"The VMM at {path} ended the connection: {error.strerror}") from error

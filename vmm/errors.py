"""The exception tree: one class for each party that can be at fault.

Every message is one sentence that names the value, the limit and the fix. A lower error is chained
with ``raise … from``; ``chain`` turns the result into the list of strings that the API sends, the
outermost first.
"""

from __future__ import annotations

import errno as errno_names
import os
from collections.abc import Iterator


class VmmError(Exception):
    """The root of every error this project raises on purpose."""


class ConfigError(VmmError):
    """The caller's fault: a value that cannot be accepted.

    ``problems`` holds every problem found, one sentence each; the text joins them.
    """

    def __init__(self, *problems: str) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


class DuplicateError(ConfigError):
    """The caller's fault: an identifier or a device path that is already taken."""


class UnsupportedError(ConfigError):
    """The caller's fault: a documented feature whose device this version does not have."""


class StateError(VmmError):
    """The caller's fault: the state of the VM forbids the action."""


class PendingError(StateError):
    """The caller's fault: what was asked of the guest before is not done yet."""


class AlreadyCreatedError(StateError):
    """The caller's fault: the action makes a VM and there is one."""


class NotCreatedError(StateError):
    """The caller's fault: the action needs a VM and there is none."""


class NotFoundError(VmmError):
    """The caller's fault: an identifier that names nothing in this VM."""


class GuestError(VmmError):
    """The guest's fault: it broke a protocol; only its own device or VM suffers."""


class PeerError(VmmError):
    """The fault of a process at the other end of a socket."""


class InternalError(VmmError):
    """This program's own fault."""


class HostError(VmmError):
    """The host refused an operation.

    ``operation`` is the ioctl or system call, ``errno`` its error number, ``path`` the file if
    there is one, ``hint`` what the user can do.
    """

    def __init__(
        self, operation: str, errno: int, *, path: str | None = None, hint: str | None = None
    ) -> None:
        name = errno_names.errorcode.get(errno, str(errno))
        where = f" on {path}" if path is not None else ""
        text = f"{operation}{where} failed: {os.strerror(errno)} ({name})"
        super().__init__(text if hint is None else f"{text}; {hint}")
        self.operation = operation
        self.errno = errno
        self.path = path
        self.hint = hint

    @classmethod
    def from_os_error(
        cls, operation: str, error: OSError, *, path: str | None = None, hint: str | None = None
    ) -> HostError:
        """Make one from what the standard library raised."""
        name = path if path is not None else error.filename
        return cls(operation, error.errno or 0, path=None if name is None else str(name), hint=hint)


def first_error(error: BaseException) -> BaseException:
    """The first error inside nested exception groups; one that is no group is that itself."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and what led to it, outermost first.

    The OSError below a HostError is left out: the HostError says all that it does.
    """
    at: BaseException | None = error
    while at is not None:
        yield at
        below = at.__cause__
        at = None if isinstance(at, HostError) and isinstance(below, OSError) else below


def chain(error: BaseException) -> Iterator[str]:
    """Yield the text of an error and of its causes, outermost first."""
    for each in causes(error):
        yield str(each) or type(each).__name__

"""Which status says whose fault an error was.

docs/decisions/0003-status-codes.md says why each status is what it is.
"""

from __future__ import annotations

from collections.abc import Collection
from http import HTTPStatus

from vmm.errors import (
    AlreadyCreatedError,
    ConfigError,
    DuplicateError,
    NotCreatedError,
    NotFoundError,
    PendingError,
    StateError,
    UnsupportedError,
    VmmError,
)

STATUSES: dict[type[BaseException], HTTPStatus] = {
    ConfigError: HTTPStatus.BAD_REQUEST,
    DuplicateError: HTTPStatus.CONFLICT,
    UnsupportedError: HTTPStatus.NOT_IMPLEMENTED,
    # The document's word for it: https status 404 where vm.restore finds a VM.
    AlreadyCreatedError: HTTPStatus.NOT_FOUND,
    NotCreatedError: HTTPStatus.NOT_FOUND,
    NotFoundError: HTTPStatus.NOT_FOUND,
    PendingError: HTTPStatus.TOO_MANY_REQUESTS,
    StateError: HTTPStatus.METHOD_NOT_ALLOWED,
}
"""The caller's faults. A route declares which of them it answers; every other error is a 500."""


def status_of(error: VmmError, declared: Collection[type[VmmError]]) -> HTTPStatus:
    """The status of the error's nearest class that the route declares."""
    for kind in type(error).__mro__:
        if kind in declared:
            return STATUSES[kind]
    return HTTPStatus.INTERNAL_SERVER_ERROR

"""What an error becomes on the wire: a status and a JSON array of strings."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from http import HTTPStatus

from quart import Response, request
from werkzeug.exceptions import (
    HTTPException,
    InternalServerError,
    MethodNotAllowed,
    NotFound,
    RequestEntityTooLarge,
)

from vmm.api.statuses import status_of
from vmm.errors import VmmError, chain

BODY_LIMIT = 4 << 20
"""Bytes of a request's body."""


def action_failed(action: str, error: VmmError, declared: Collection[type[VmmError]]) -> Response:
    """Answer with the chain of an error, below the action that it stopped."""
    status = status_of(error, declared)
    response = array_response(status, ["Error from API", action, *chain(error)])
    if status is HTTPStatus.METHOD_NOT_ALLOWED:
        # RFC 9110, 10.2.1: empty, as no method is allowed while the VM is in this state.
        response.headers["Allow"] = ""
    return response


async def request_failed(error: HTTPException) -> Response:
    """Answer what no route could: an unknown address, a wrong method, a body too large."""
    response = array_response(error.code or HTTPStatus.INTERNAL_SERVER_ERROR, _describe(error))
    if isinstance(error, MethodNotAllowed):
        response.headers["Allow"] = ", ".join(error.valid_methods or ())
    return response


def array_response(status: int, texts: Iterable[str]) -> Response:
    return Response(json.dumps(list(texts)), status, content_type="application/json")


def _describe(error: HTTPException) -> list[str]:
    match error:
        case NotFound():
            return ["Not Found"]
        case MethodNotAllowed():
            methods = " or ".join(error.valid_methods or ())
            return ["Method Not Allowed", f"{request.path} takes {methods}, not {request.method}"]
        case RequestEntityTooLarge():
            limit = f"The body has more than the {BODY_LIMIT} bytes that are accepted: send less"
            return ["Content Too Large", limit]
        case InternalServerError(original_exception=BaseException() as cause):
            return ["Internal Server Error", *chain(cause)]
    return [error.name, error.description or error.name]

"""The API as a Quart-Trio application: every route of the document, and errors as JSON arrays."""

from __future__ import annotations

import json
import logging
from collections.abc import Awaitable, Callable
from http import HTTPStatus

from quart import Response, request
from quart_trio import QuartTrio
from werkzeug.exceptions import HTTPException

from vmm.api.descriptors import Descriptors
from vmm.api.errors import BODY_LIMIT, action_failed, array_response, request_failed
from vmm.api.openapi import PREFIX, document
from vmm.api.paths import ROUTES
from vmm.api.routes import BodyError, Route, Sent, Service
from vmm.config.model import plain
from vmm.errors import VmmError

logger = logging.getLogger(__name__)

DOCUMENT_PATH = "/openapi.json"


def create_app(service: Service) -> QuartTrio:
    """Make the application that serves one VM owner.

    Spec: Cloud Hypervisor API document, all paths.
    """
    app = QuartTrio("vmm.api", static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = BODY_LIMIT
    # It could not end a send, which Hypercorn shields; a client that does not read harms itself.
    app.config["RESPONSE_TIMEOUT"] = None
    app.url_map.merge_slashes = False
    for route in ROUTES:
        app.add_url_rule(
            PREFIX + route.path,
            endpoint=route.path,
            view_func=_view(route, service),
            methods=[route.method],
            provide_automatic_options=False,
        )
    app.add_url_rule(
        PREFIX + DOCUMENT_PATH,
        endpoint=DOCUMENT_PATH,
        view_func=_show_document,
        methods=["GET"],
        provide_automatic_options=False,
    )
    app.register_error_handler(HTTPException, request_failed)
    return app


def _view(route: Route, service: Service) -> Callable[[], Awaitable[Response]]:
    async def view() -> Response:
        body = await request.get_data(cache=False, as_text=False, parse_form_data=False)
        try:
            answer = await route.call(service, Sent(body, _descriptors()))
        except BodyError as error:
            return array_response(HTTPStatus.BAD_REQUEST, error.texts)
        except VmmError as error:
            logger.info("%s: %s", route.action, error)
            return action_failed(route.action, error, route.errors)
        return _succeeded(answer)

    return view


def _descriptors() -> Descriptors:
    """What came beside the request: only a connection of ours brings any."""
    descriptors = request.scope.get("state", {}).get("descriptors")
    return descriptors if isinstance(descriptors, Descriptors) else Descriptors()


async def _show_document() -> Response:
    return _succeeded(document())


def _succeeded(answer: object) -> Response:
    if answer is None:
        response = Response(b"", HTTPStatus.NO_CONTENT)
        response.headers.clear()  # RFC 9110, 8.6: a 204 has no Content-Length.
        return response
    return Response(
        json.dumps(plain(answer), separators=(",", ":")), content_type="application/json"
    )

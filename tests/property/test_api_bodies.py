"""Whatever body a request has, its answer is one that the served document describes."""

from __future__ import annotations

import json
from http import HTTPStatus
from typing import NamedTuple

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from quart_trio import QuartTrio

from tests.property.schema_values import ANYTHING, fitting, nearly_fitting
from tests.unit.api_fixture import ABOUT, FakeOwner
from vmm.api.app import create_app
from vmm.api.openapi import PREFIX, document
from vmm.api.paths import ROUTES
from vmm.api.routes import Route, Service
from vmm.testing.schema import Document

WITH_BODY = [route for route in ROUTES if route.model is not None]
APP: QuartTrio = create_app(Service(FakeOwner(), ABOUT))


class Answer(NamedTuple):
    """What came back."""

    status: int
    body: bytes


def ask(method: str, path: str, body: bytes) -> Answer:
    """Send one request to the application, without a socket."""

    async def send() -> Answer:
        client = APP.test_client()
        response = await getattr(client, method.lower())(f"{PREFIX}{path}", data=body)
        return Answer(response.status_code, await response.get_data(as_text=False))

    return trio.run(send)


def check(route: Route, body: bytes) -> Answer:
    """Send a body to a route and hold the answer against the document."""
    answer = ask(route.method, route.path, body)
    data = json.loads(answer.body) if answer.body else None
    judge = Document(document())
    assert list(judge.answer_faults(route.method, route.path, answer.status, data)) == []
    assert answer.status != HTTPStatus.INTERNAL_SERVER_ERROR, answer
    return answer


def named(route: Route) -> str:
    assert route.model is not None
    return route.model.__name__


@pytest.mark.parametrize("route", WITH_BODY, ids=lambda route: route.path)
@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_body_that_nearly_fits_is_answered_as_documented(route: Route, data: st.DataObject) -> None:
    body = data.draw(nearly_fitting(named(route)))

    check(route, json.dumps(body).encode())


@pytest.mark.parametrize("route", WITH_BODY, ids=lambda route: route.path)
@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_body_that_fits_is_refused_for_its_texts_or_twin_fields_only(
    route: Route, data: st.DataObject
) -> None:
    """What a schema cannot say: which texts are addresses, and that two spellings are one field."""
    body = data.draw(fitting(named(route)))

    answer = check(route, json.dumps(body).encode())

    if answer.status == HTTPStatus.BAD_REQUEST:
        reasons = " ".join(json.loads(answer.body))
        assert any(
            each in reasons
            for each in ("NUL", "MAC address", "IPv4 or IPv6", "duplicate field", "missing field")
        ), reasons


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: f"{route.method}{route.path}")
@settings(max_examples=4, deadline=None)
@given(body=st.binary(max_size=40) | ANYTHING.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_are_answered_as_documented(route: Route, body: bytes) -> None:
    check(route, body)

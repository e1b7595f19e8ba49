"""The served document holds all of Cloud Hypervisor's (tests/contract/openapi.yaml): each address,
body, answer, status, object, field and choice, under the name that it has there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.unit.api_fixture import FakeOwner, serving
from tests.unit.contract import DOCUMENT, SCHEMAS
from vmm.api.openapi import ALIASES, document
from vmm.api.paths import ROUTES
from vmm.api.routes import Route

STATED_AND_NO_FIELD = {("GenericVhostUserConfig", "tag")}
"""Fields that the contract requires without describing them."""

WITHOUT_DEFAULT = {("NetConfig", "ip"), ("NetConfig", "mask")}
"""The original has removed these defaults, and the contract has kept them: decision 0002."""

REQUIRED_HERE_ONLY = {
    ("VmResizeDisk", "id"),
    ("VmResizeDisk", "desired_size"),
    ("VmResizeZone", "id"),
    ("VmResizeZone", "desired_ram"),
    ("VmRemoveDevice", "id"),
    ("VmSnapshotConfig", "destination_url"),
    ("VmCoredumpData", "destination_url"),
    ("DeviceNode", "id"),
}
"""Without these a request says nothing: docs/decisions/0002-config-model.md."""


def operations() -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in DOCUMENT["paths"].items():
        for method, operation in methods.items():
            yield path, method, operation


OPERATIONS = list(operations())


def served_schema(name: str) -> dict[str, Any]:
    """A schema of the served document, with a mere reference to another one followed."""
    schema: dict[str, Any] = document()["components"]["schemas"][name]
    return served_schema(reference_in(schema)) if set(schema) == {"$ref"} else schema


def reference_in(schema: dict[str, Any]) -> str:
    return str(schema["$ref"]).rpartition("/")[2]


def body_name(content: dict[str, Any]) -> str:
    return reference_in(content["content"]["application/json"]["schema"])


def kind_of(schema: dict[str, Any]) -> dict[str, Any]:
    """What a field is beside null, which every field without a default may be."""
    choices = [each for each in schema.get("anyOf", [schema]) if each != {"type": "null"}]
    assert len(choices) == 1, schema
    return dict(choices[0])


def describe(schema: dict[str, Any]) -> str:
    """A field's type in a word: a choice of texts is a text."""
    if "$ref" in schema:
        name = reference_in(schema)
        known = document()["components"]["schemas"].get(name) or SCHEMAS[name]
        return "string" if "enum" in known else name
    if schema.get("type") == "array":
        return f"list of {describe(schema['items'])}"
    if isinstance(schema.get("additionalProperties"), dict):
        return f"map to {describe(schema['additionalProperties'])}"
    return str(schema["type"])


@pytest.mark.parametrize(
    ("path", "method", "operation"), OPERATIONS, ids=[f"{each[1]}{each[0]}" for each in OPERATIONS]
)
def test_request_of_the_contract_is_served_as_it_says(
    path: str, method: str, operation: dict[str, Any]
) -> None:
    served = document()["paths"][path][method]

    assert ("requestBody" in served) == ("requestBody" in operation)
    if "requestBody" in operation:
        wanted, shown = body_name(operation["requestBody"]), body_name(served["requestBody"])
        assert served_schema(shown) == served_schema(wanted)
    if "operationId" in operation:
        assert served["operationId"] == operation["operationId"]
    for status, response in operation["responses"].items():
        shown = served["responses"][str(status)]
        assert ("content" in shown) == ("content" in response or int(status) >= 400)
        if "content" in response:
            assert body_name(shown) == body_name(response)


def test_request_beyond_the_contract_is_known() -> None:
    beyond = set(document()["paths"]) - set(DOCUMENT["paths"])

    assert beyond == {"/vm.nmi", "/vm.migration", "/vm.migration-cancel"}
    assert document()["info"]["version"]


@pytest.mark.parametrize("name", SCHEMAS)
def test_object_of_the_contract_has_its_fields_and_types(name: str) -> None:
    served = served_schema(name)

    for field, schema in SCHEMAS[name].get("properties", {}).items():
        shown = kind_of(served["properties"][field])
        assert describe(shown) == describe(schema), field
        stated = {limit: schema[limit] for limit in ("minimum", "maximum") if limit in schema}
        assert stated.items() <= shown.items(), field
        if "default" in schema and (name, field) not in WITHOUT_DEFAULT:
            assert served["properties"][field]["default"] == schema["default"], field
    assert set(SCHEMAS[name].get("enum", ())) <= set(served.get("enum", ()))


@pytest.mark.parametrize("name", SCHEMAS)
def test_object_of_the_contract_asks_for_no_more_than_it_says(name: str) -> None:
    wanted = {(name, field) for field in served_schema(name).get("required", ())}
    stated = {(name, field) for field in SCHEMAS[name].get("required", ())}

    assert wanted - stated <= REQUIRED_HERE_ONLY
    for _, field in stated - STATED_AND_NO_FIELD:
        assert field in served_schema(name)["properties"], field


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.path)
def test_route_is_in_the_document_with_a_summary_and_its_refusal(route: Route) -> None:
    operation = document()["paths"][route.path][route.method.lower()]

    assert operation["summary"]
    assert {"400", "500"} <= operation["responses"].keys()


def test_every_reference_leads_to_a_schema() -> None:
    schemas = document()["components"]["schemas"]

    found = set(references(document()))

    assert set(ALIASES) <= set(schemas)
    assert found
    assert found <= set(schemas)


def references(value: object) -> Iterator[str]:
    if isinstance(value, dict):
        if "$ref" in value:
            yield reference_in(value)
        for each in value.values():
            yield from references(each)
    elif isinstance(value, list):
        for each in value:
            yield from references(each)


async def test_document_is_served(tmp_path: Path) -> None:
    async with serving(FakeOwner(), tmp_path) as api:
        answer = await api.ask("GET", "/openapi.json")

    assert answer.status_code == 200
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.json() == document()

"""The check of answers finds each kind of fault, and lets what is right pass."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.api_fixture import ABOUT
from vmm.api.openapi import document
from vmm.config.disk import DiskConfig
from vmm.config.generic_vhost_user import GenericVhostUserConfig
from vmm.config.info import VmInfo, VmState
from vmm.config.vm import VmConfig
from vmm.testing.schema import Document

INFO: dict[str, Any] = VmInfo(
    config=VmConfig(
        disks=(DiskConfig(path="/a", id="a"),),
        generic_vhost_user=(
            GenericVhostUserConfig(socket="/a", queue_sizes=(64,), device_type=26),
        ),
    ),
    state=VmState.RUNNING,
    memory_actual_size=1 << 29,
).to_json()


def faults(schema: dict[str, Any], value: object) -> list[str]:
    return list(Document(document()).faults(schema, value, "it"))


def answer(method: str, path: str, status: int, body: object) -> list[str]:
    return list(Document(document()).answer_faults(method, path, status, body))


@pytest.mark.parametrize(
    ("schema", "value", "text"),
    [
        ({"type": "integer"}, True, "it is True and no integer"),
        ({"type": "string"}, 3, "it is 3 and no string"),
        ({"type": "boolean"}, 1, "it is 1 and no boolean"),
        ({"minimum": 2}, 1, "it is 1, less than 2"),
        ({"maximum": 2}, 3, "it is 3, more than 2"),
        ({"enum": ["a"]}, "b", "it is 'b' and none of ['a']"),
        ({"required": ["a"]}, {}, "it.a is missing"),
        ({"properties": {"a": {}}}, {"b": 1}, "it.b is not in the document"),
        ({"properties": {"a": {"type": "null"}}}, {"a": 1}, "it.a is 1 and no null"),
        ({"additionalProperties": False}, {"b": 1}, "it.b is not allowed"),
        ({"additionalProperties": {"type": "null"}}, {"b": 1}, "it.b is 1 and no null"),
        ({"items": {"type": "null"}}, [None, 1], "it[1] is 1 and no null"),
        (
            {"anyOf": [{"type": "null"}, {"type": "string"}]},
            1,
            "it is 1 and no null or it is 1 and no string",
        ),
        ({"allOf": [{"type": "integer"}, {"minimum": 2}]}, 1, "it is 1, less than 2"),
        ({"$ref": "#/components/schemas/VmState"}, "Gone", "it is 'Gone' and none of"),
    ],
)
def test_value_that_does_not_fit_is_named(schema: dict[str, Any], value: object, text: str) -> None:
    (found,) = faults(schema, value)

    assert found.startswith(text)


def test_unknown_keyword_is_not_passed_over() -> None:
    with pytest.raises(KeyError, match="oneOf"):
        faults({"oneOf": []}, 1)


def test_answers_as_documented_pass() -> None:
    assert answer("GET", "/vm.info", 200, INFO) == []
    assert answer("GET", "/vm.counters", 200, {"_disk0": {"reads": 1}}) == []
    assert answer("GET", "/vmm.ping", 200, ABOUT.to_json()) == []
    assert answer("PUT", "/vm.boot", 405, ["why"]) == []
    assert answer("PUT", "/vm.boot", 204, None) == []


@pytest.mark.parametrize(
    ("method", "path", "status", "body", "text"),
    [
        ("GET", "/vm.info", 418, ["why"], "answered 418, which the document does not list"),
        ("PUT", "/vm.boot", 204, [], "answered 204 with a body"),
        ("PUT", "/vm.boot", 405, "why", "is 'why' and no array"),
        ("GET", "/vm.info", 200, {**INFO, "new": 1}, "/vm.info.new is not in the document"),
        ("GET", "/vm.info", 200, None, "is None and no object"),
        ("GET", "/vm.counters", 200, {"a": {"b": "c"}}, "/vm.counters.a.b is 'c' and no integer"),
    ],
)
def test_answers_that_are_not_documented_are_faults(
    method: str, path: str, status: int, body: object, text: str
) -> None:
    assert any(text in fault for fault in answer(method, path, status, body))


def test_of_unknown_paths_nothing_is_said() -> None:
    assert answer("GET", "/vm.nonsense", 404, ["Not Found"]) == []
    assert answer("GET", "/vm.boot", 405, ["Method Not Allowed"]) == []

"""Each property of the contract is taken in a request, and what is a VM's given back by vm.info."""

from __future__ import annotations

import json
from typing import Any

import pytest
from quart_trio import QuartTrio

from tests.unit.api_fixture import ABOUT
from tests.unit.contract import PROPERTIES, SCHEMAS, object_with, places, put, take
from tests.unit.owner_fixture import running
from vmm.api.app import create_app
from vmm.api.openapi import PREFIX
from vmm.api.paths import ROUTES
from vmm.api.routes import Service
from vmm.config.document import parse_document

OTHER_NAMES = {
    ("PlatformConfig", "serial_number"): "system_serial_number",
    ("PlatformConfig", "uuid"): "system_uuid",
}
"""Old names of properties, which vm.info shows under the new ones."""

ANSWERS = {"VmmPingResponse", "VmInfo", "DeviceNode", "PciDeviceInfo"}
WAYS = dict(reversed(list(places())))
IN_CONFIG = [
    (name, field, way)
    for name, way in places()
    for field in SCHEMAS[name]["properties"]
    if (name, field) != ("VmConfig", "payload")
]
MODELS = {route.model.__name__: route.model for route in ROUTES if route.model is not None}
IN_REQUESTS = [each for each in PROPERTIES if each[0] in MODELS and each[0] not in WAYS]


def test_every_property_stands_in_a_request_or_an_answer() -> None:
    tried = {(name, field) for name, field, _ in IN_CONFIG} | set(IN_REQUESTS)
    # The same body as a user device of the configuration, under another name.
    elsewhere = {each for each in PROPERTIES if each[0] == "VmAddUserDevice"}

    rest = {name for name, field in set(PROPERTIES) - tried - elsewhere}

    assert rest == {*ANSWERS, "VmConfig"}
    assert len(PROPERTIES) == 260


@pytest.mark.parametrize(
    ("name", "field", "way"), IN_CONFIG, ids=lambda each: each if isinstance(each, str) else ""
)
async def test_property_of_a_vm_is_taken_and_given_back(
    name: str, field: str, way: tuple[str | int, ...]
) -> None:
    given = object_with(name, field)

    shown = await created(put(way, given))

    there = take(shown, way)
    new_name = OTHER_NAMES.get((name, field), field)
    assert holds(there[new_name], given[field])
    assert all(holds(there[each], value) for each, value in given.items() if each in there)


def holds(shown: object, given: object) -> bool:
    """Whether what is shown is what was given, with defaults beside it at most."""
    if isinstance(given, dict):
        assert isinstance(shown, dict)
        return all(holds(shown[each], value) for each, value in given.items())
    if isinstance(given, list):
        assert isinstance(shown, list)
        return len(shown) == len(given) and all(map(holds, shown, given))
    return shown == given


async def created(config: dict[str, Any]) -> dict[str, Any]:
    """Create a VM by the API, and give the configuration that vm.info then shows."""
    async with running() as bench:
        app: QuartTrio = create_app(Service(bench.owner, ABOUT))
        client = app.test_client()
        answer = await client.put(f"{PREFIX}/vm.create", data=json.dumps(config).encode())
        assert answer.status_code == 204, await answer.get_data()
        info = await (await client.get(f"{PREFIX}/vm.info")).get_json()
        shown: dict[str, Any] = info["config"]
        return shown


@pytest.mark.parametrize(("name", "field"), IN_REQUESTS)
def test_property_of_a_request_is_taken_and_kept(name: str, field: str) -> None:
    given = object_with(name, field)

    read = parse_document(MODELS[name], json.dumps(given).encode()).to_json()

    assert read[field] == given[field]

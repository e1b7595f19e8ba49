"""The served document: made from the routes and from the models of their bodies and answers.

No field, status or address is named here. What the command line or another version calls
differently comes from the models' ``SPELLINGS``, and stands beside the field that it means.

Spec: OpenAPI 3.1, whose schemas are JSON Schema 2020-12.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from http import HTTPStatus
from types import NoneType
from typing import Any, Final, get_args

from vmm import __version__
from vmm.api.paths import ROUTES
from vmm.api.routes import Route
from vmm.api.statuses import STATUSES
from vmm.config.device import UserDeviceConfig
from vmm.config.info import VmCounters
from vmm.config.model import ConfigModel

PREFIX: Final = "/api/v1"
JSON: Final = "application/json"
REFERENCE: Final = "#/components/schemas/{model}"

ALIASES: Final[dict[str, object]] = {"VmCounters": VmCounters, "VmAddUserDevice": UserDeviceConfig}
"""Schemas that Cloud Hypervisor's document has under names that are no class here."""

ERRORS: Final = {
    "type": "array",
    "items": {"type": "string"},
    "description": "What failed and why, the outermost cause first",
}

EVERYWHERE: Final[dict[HTTPStatus, str]] = {
    HTTPStatus.BAD_REQUEST: "a body that is missing, superfluous, not JSON or not of the schema",
    HTTPStatus.REQUEST_TIMEOUT: "a body that did not arrive in time",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "a body that is too large",
    HTTPStatus.INTERNAL_SERVER_ERROR: "the host, the guest, a peer or this program failed",
}
"""Errors that every request can be answered with."""


@cache
def document() -> dict[str, Any]:
    """Make the document of all that this version serves or refuses by name."""
    schemas = _schemas()
    paths: dict[str, dict[str, object]] = {}
    for route in ROUTES:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route)
    return {
        "openapi": "3.1.0",
        "info": {"title": "trio-vmm API", "version": __version__},
        "servers": [{"url": f"http://localhost{PREFIX}"}],
        "paths": paths,
        "components": {"schemas": schemas},
    }


def successes(answer: object) -> dict[HTTPStatus, object]:
    """Which status a request succeeds with, and the type of what it then answers."""
    kinds = get_args(answer) if NoneType in get_args(answer) else (answer,)
    return {
        HTTPStatus.NO_CONTENT if kind in (None, NoneType) else HTTPStatus.OK: kind for kind in kinds
    }


def _operation(route: Route) -> dict[str, object]:
    program, _, action = route.path.removeprefix("/").partition(".")
    responses = {
        str(status.value): _success(status, kind)
        for status, kind in successes(route.answer).items()
    }
    for status, texts in sorted(_failures(route).items()):
        description = "; or ".join(texts)
        responses[str(status.value)] = _response(description, "Errors")
    operation: dict[str, object] = {
        "operationId": action + program.upper(),
        "summary": route.summary,
        "responses": responses,
    }
    if route.model is not None:
        content = {JSON: {"schema": _reference(route.model.__name__)}}
        operation["requestBody"] = {"required": True, "content": content}
    return operation


def _failures(route: Route) -> dict[HTTPStatus, list[str]]:
    found = {status: [text] for status, text in EVERYWHERE.items()}
    for kind in sorted(route.errors, key=lambda kind: kind.__name__):
        text = (kind.__doc__ or "").partition("\n")[0].partition("fault: ")[2].rstrip(".")
        found.setdefault(STATUSES[kind], []).append(text)
    return found


def _success(status: HTTPStatus, kind: object) -> dict[str, object]:
    if status is HTTPStatus.NO_CONTENT:
        return {"description": "done"}
    return _response("done, with this answer", _name_of(kind))


def _response(description: str, name: str) -> dict[str, object]:
    return {"description": description, "content": {JSON: {"schema": _reference(name)}}}


def _reference(name: str) -> dict[str, str]:
    return {"$ref": REFERENCE.format(model=name)}


def _name_of(kind: object) -> str:
    """The schema's name of a model, or of what is known by an alias only."""
    if isinstance(kind, type) and issubclass(kind, ConfigModel):
        return kind.__name__
    return next(name for name, each in ALIASES.items() if each == kind)


def _schemas() -> dict[str, Any]:
    # Here, as only the document needs them: they take longer to import than a request to answer.
    from pydantic import TypeAdapter
    from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
    from pydantic_core.core_schema import ModelSchema

    class Generator(GenerateJsonSchema):
        def field_title_should_be_set(self, schema: object) -> bool:
            return False  # It would repeat each field's name.

        def model_schema(self, schema: ModelSchema) -> JsonSchemaValue:
            return _with_spellings(schema["cls"], super().model_schema(schema))

    models = dict.fromkeys(_models())
    kinds: dict[str, Any] = {model.__name__: model for model in models} | ALIASES
    references, made = TypeAdapter.json_schemas(
        [(name, "validation", TypeAdapter(kind)) for name, kind in kinds.items()],
        schema_generator=Generator,
        ref_template=REFERENCE,
    )
    aliases = {name: references[name, "validation"] for name in ALIASES}
    return {**made["$defs"], **aliases, "Errors": ERRORS}


def _models() -> Iterator[type[ConfigModel]]:
    for route in ROUTES:
        for kind in (route.model, *successes(route.answer).values()):
            if isinstance(kind, type) and issubclass(kind, ConfigModel):
                yield kind


def _with_spellings(model: type[ConfigModel], schema: dict[str, Any]) -> dict[str, Any]:
    """Add the other names of fields; of a required field, either name is enough."""
    for spelling, name in model.SPELLINGS.items():
        schema["properties"][spelling] = schema["properties"][name]
        if name in schema.get("required", ()):
            schema["required"].remove(name)
            either = [{"required": [name]}, {"required": [spelling]}]
            schema.setdefault("allOf", []).append({"anyOf": either})
    return schema

"""Does a value fit a schema of the served document? For tests of what the API answers.

Knows the keywords that the document uses, and refuses to judge by any other. Stricter than JSON
Schema in one thing: a field that the document does not describe is a fault.

Spec: JSON Schema 2020-12, validation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

Schema = Mapping[str, Any]
Faults = Iterator[str]

_TYPES: dict[str, Callable[[object], bool]] = {
    "null": lambda value: value is None,
    "boolean": lambda value: isinstance(value, bool),
    "integer": lambda value: isinstance(value, int) and not isinstance(value, bool),
    "string": lambda value: isinstance(value, str),
    "array": lambda value: isinstance(value, list),
    "object": lambda value: isinstance(value, dict),
}
_ANNOTATIONS = frozenset({"title", "description", "default"})


class Document:
    """An OpenAPI document, by which answers are judged."""

    def __init__(self, document: Schema) -> None:
        self._paths: Schema = document["paths"]
        self._schemas: Schema = document["components"]["schemas"]
        self._keywords: dict[str, Callable[[Any, Any, str, Schema], Faults]] = {
            "$ref": self._reference,
            "type": self._type,
            "enum": self._enum,
            "minimum": self._minimum,
            "maximum": self._maximum,
            "required": self._required,
            "properties": self._properties,
            "additionalProperties": self._additional,
            "items": self._items,
            "anyOf": self._any_of,
            "allOf": self._all_of,
        }

    def answer_faults(self, method: str, path: str, status: int, body: object) -> Faults:
        """Yield what is wrong with an answer; ``body`` is None where there is none.

        Of a path or a method that is not in the document, nothing is known to be wrong.
        """
        operation = self._paths.get(path, {}).get(method.lower())
        if operation is None:
            return
        response = operation["responses"].get(str(status))
        if response is None:
            yield f"{method} {path} was answered {status}, which the document does not list"
        elif "content" in response:
            schema = response["content"]["application/json"]["schema"]
            yield from self.faults(schema, body, f"{method} {path}")
        elif body is not None:
            yield f"{method} {path} was answered {status} with a body, which has none"

    def faults(self, schema: Schema, value: object, place: str) -> Faults:
        """Yield where a value does not fit a schema."""
        for keyword, rule in schema.items():
            if keyword not in _ANNOTATIONS:
                yield from self._keywords[keyword](rule, value, place, schema)

    def _reference(self, rule: str, value: object, place: str, _: Schema) -> Faults:
        yield from self.faults(self._schemas[rule.rpartition("/")[2]], value, place)

    def _type(self, rule: str, value: object, place: str, _: Schema) -> Faults:
        if not _TYPES[rule](value):
            yield f"{place} is {value!r} and no {rule}"

    def _enum(self, rule: list[object], value: object, place: str, _: Schema) -> Faults:
        if value not in rule:
            yield f"{place} is {value!r} and none of {rule}"

    def _minimum(self, rule: int, value: object, place: str, _: Schema) -> Faults:
        if isinstance(value, int) and value < rule:
            yield f"{place} is {value}, less than {rule}"

    def _maximum(self, rule: int, value: object, place: str, _: Schema) -> Faults:
        if isinstance(value, int) and value > rule:
            yield f"{place} is {value}, more than {rule}"

    def _required(self, rule: list[str], value: object, place: str, _: Schema) -> Faults:
        if isinstance(value, dict):
            yield from (f"{place}.{name} is missing" for name in rule if name not in value)

    def _properties(self, rule: Schema, value: object, place: str, schema: Schema) -> Faults:
        if not isinstance(value, dict):
            return
        for name, each in value.items():
            if name in rule:
                yield from self.faults(rule[name], each, f"{place}.{name}")
            elif "additionalProperties" not in schema:
                yield f"{place}.{name} is not in the document"

    def _additional(self, rule: bool | Schema, value: object, place: str, schema: Schema) -> Faults:
        if not isinstance(value, dict):
            return
        for name, each in value.items():
            if name in schema.get("properties", ()):
                continue
            if isinstance(rule, Mapping):
                yield from self.faults(rule, each, f"{place}.{name}")
            elif not rule:
                yield f"{place}.{name} is not allowed"

    def _items(self, rule: Schema, value: object, place: str, _: Schema) -> Faults:
        if isinstance(value, list):
            for index, each in enumerate(value):
                yield from self.faults(rule, each, f"{place}[{index}]")

    def _any_of(self, rule: list[Schema], value: object, place: str, _: Schema) -> Faults:
        found = [list(self.faults(each, value, place)) for each in rule]
        if all(found):
            yield " or ".join(faults[0] for faults in found)

    def _all_of(self, rule: list[Schema], value: object, place: str, _: Schema) -> Faults:
        for each in rule:
            yield from self.faults(each, value, place)

"""Values made from the schemas of the served document: those that fit, and those that nearly do."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from vmm.api.openapi import document

Values = st.SearchStrategy[Any]

SCHEMAS: dict[str, Any] = document()["components"]["schemas"]

# No slash: what is generated must lead nowhere, whoever runs the tests.
WORDS = st.text(st.characters(codec="utf-8", exclude_characters="/"), max_size=6) | st.sampled_from(
    ["", "_disk0", "__rng", "2e:89:a8:e4:92:af", "10.0.0.1", "fe80::1", "a\0b", "x" * 300, "é"]
)
ANYTHING: Values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**65), 2**65) | st.floats(allow_nan=False) | WORDS,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(WORDS, inner, max_size=2),
    max_leaves=4,
)


def fitting(name: str) -> Values:
    """Values of a named schema."""
    return _of(SCHEMAS[name], st.nothing())


def nearly_fitting(name: str) -> Values:
    """The same, with anything in any place, and objects with too little or too much."""
    return _of(SCHEMAS[name], ANYTHING)


def _of(schema: dict[str, Any], instead: Values) -> Values:
    if "$ref" in schema:
        target = SCHEMAS[schema["$ref"].rpartition("/")[2]]
        return st.deferred(lambda: _of(target, instead))
    if "anyOf" in schema:
        return st.one_of(*(_of(each, instead) for each in schema["anyOf"])) | instead
    if "enum" in schema:
        return st.sampled_from(schema["enum"]) | instead
    return _of_type(schema, instead) | instead


def _of_type(schema: dict[str, Any], instead: Values) -> Values:
    match schema["type"]:
        case "null":
            return st.none()
        case "boolean":
            return st.booleans()
        case "string":
            return WORDS
        case "integer":
            low, high = schema.get("minimum"), schema.get("maximum")
            edges = [edge for edge in (low, high) if edge is not None]
            inside = st.integers(low, high)
            return inside | st.sampled_from(edges) if edges else inside
        case "array":
            return st.lists(_of(schema["items"], instead), max_size=2)
        case kind:
            assert kind == "object", schema
            return _object(schema, instead)


def _object(schema: dict[str, Any], instead: Values) -> Values:
    fields = {name: _of(each, instead) for name, each in schema.get("properties", {}).items()}
    if not fields:
        return st.dictionaries(WORDS, ANYTHING, max_size=2)
    wanted = () if instead is ANYTHING else schema.get("required", ())
    required = {name: fields[name] for name in wanted}
    optional = {name: each for name, each in fields.items() if name not in required}
    if instead is ANYTHING:
        optional["unknown"] = ANYTHING
    return st.fixed_dictionaries(required, optional=optional)

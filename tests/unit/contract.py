"""Cloud Hypervisor's API document, and values made from its schemas."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import yaml

DOCUMENT: Final[dict[str, Any]] = yaml.safe_load(
    (Path(__file__).resolve().parents[1] / "contract" / "openapi.yaml").read_text()
)
SCHEMAS: Final[dict[str, dict[str, Any]]] = DOCUMENT["components"]["schemas"]

PROPERTIES: Final = [
    (name, field) for name, schema in SCHEMAS.items() for field in schema.get("properties", {})
]
"""Every object with each of its properties."""

TEXTS: Final = {
    "mac": "2e:89:a8:e4:92:af",
    "host_mac": "2e:89:a8:e4:92:b0",
    "ip": "192.168.3.1",
    "mask": "255.255.255.0",
    "hotplug_method": "VirtioMem",
    "vhost_mode": "Server",
    "access": "rw",
}
"""Texts that the contract gives no example of, or whose default would prove nothing."""

NEEDED: Final = {
    "GenericVhostUserConfig": {"queue_size"},
    "VmResizeDisk": {"id", "desired_size"},
    "VmResizeZone": {"id", "desired_ram"},
}
"""What an object says nothing without, though the contract does not require it, or not by the name
that it describes."""


def schema_of(name: str, field: str) -> dict[str, Any]:
    """The schema of a property."""
    found: dict[str, Any] = SCHEMAS[name]["properties"][field]
    return found


def object_with(name: str, field: str | None = None) -> dict[str, Any]:
    """The smallest object of a schema that has a property, with a value that is no default."""
    schema = SCHEMAS[name]
    fields = {*schema.get("required", ()), *NEEDED.get(name, ()), *([field] if field else [])}
    return {
        each: value_of(each, schema_of(name, each))
        for each in sorted(fields & schema["properties"].keys())
    }


def value_of(field: str, schema: dict[str, Any]) -> Any:  # noqa: ANN401  any JSON
    """A value of a property, other than its default."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return value_of(field, SCHEMAS[name]) if "enum" in SCHEMAS[name] else object_with(name)
    if "enum" in schema:
        return next(each for each in reversed(schema["enum"]) if each != schema.get("default"))
    match schema["type"]:
        case "boolean":
            return not schema.get("default", False)
        case "integer":
            return max(int(schema.get("minimum", 0)), int(schema.get("default", 1)) + 1)
        case "string":
            return TEXTS.get(field, f"a-{field}")
        case "array":
            return [value_of(field, schema["items"])]
        case kind:
            assert kind == "object", schema
            return {}


def places() -> Iterator[tuple[str, tuple[str | int, ...]]]:
    """Every object that a VM's configuration has, with the way there from VmConfig."""
    ways: list[tuple[str, tuple[str | int, ...]]] = [("VmConfig", ())]
    for name, way in ways:
        yield name, way
        for field, schema in SCHEMAS[name].get("properties", {}).items():
            is_list = schema.get("type") == "array"
            inner = schema["items"] if is_list else schema
            step: tuple[str | int, ...] = (field, 0) if is_list else (field,)
            target = inner.get("$ref", "").rpartition("/")[2]
            if SCHEMAS.get(target, {}).get("properties"):
                ways.append((target, (*way, *step)))


def put(way: tuple[str | int, ...], value: object) -> dict[str, Any]:
    """A configuration that has a value where the way leads to, and around it what is required."""
    config = object_with("VmConfig")
    config["payload"] = {"kernel": "/boot/vmlinuz"}
    if not way:
        assert isinstance(value, dict)
        return config | value
    holder, name = config, "VmConfig"
    for at, step in enumerate(way):
        if isinstance(step, int):
            continue
        schema = schema_of(name, step)
        is_list = schema.get("type") == "array"
        name = (schema["items"] if is_list else schema)["$ref"].rpartition("/")[2]
        is_last = at + 1 + is_list == len(way)
        inner = value if is_last else object_with(name)
        holder[step] = [inner] if is_list else inner
        assert isinstance(inner, dict)
        holder = inner
    return config


def take(config: Any, way: tuple[str | int, ...]) -> Any:  # noqa: ANN401  any JSON
    """What a configuration has where the way leads to."""
    for step in way:
        config = config[step]
    return config

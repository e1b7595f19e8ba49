"""Every configuration survives JSON, and no document does worse than a ConfigError."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from enum import Enum

from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic.fields import FieldInfo

from vmm.config.document import parse_document
from vmm.config.info import VmInfo
from vmm.config.model import ConfigModel
from vmm.config.requests import RestoreConfig, SendMigrationData, VmResize
from vmm.config.units import U32_MAX, Mark
from vmm.config.validation import settle, validate
from vmm.config.values import Shape, shape_of
from vmm.config.vm import VmConfig
from vmm.errors import ConfigError

texts = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8
) | st.sampled_from(["/dev/x", "a,b", '"', "[", "]", "@", " x ", "=", '""', ",", "[a]"])

SPECIAL: Mapping[str, st.SearchStrategy[object]] = {
    "cid": st.integers(3, U32_MAX - 1),
    "mac": st.just("2e:89:a8:e4:92:af"),
    "host_mac": st.just("2e:89:a8:e4:92:b0"),
    "ip": st.sampled_from(["192.168.249.1", "fe80::1"]),
    "mask": st.just("255.255.255.0"),
}
"""Fields that take less than their type does."""


def bounds(marks: tuple[object, ...]) -> tuple[int, int]:
    """The limits of an integer type."""
    flat: list[object] = []
    for mark in marks:
        flat += mark.metadata if isinstance(mark, FieldInfo) else [mark]
    low = max(limit for each in flat if (limit := getattr(each, "ge", None)) is not None)
    high = min(limit for each in flat if (limit := getattr(each, "le", None)) is not None)
    return low, high


def values(name: str, shape: Shape) -> st.SearchStrategy[object]:
    """Values of one field, without None."""
    if name in SPECIAL:
        return SPECIAL[name]
    one: st.SearchStrategy[object]
    if issubclass(shape.type, ConfigModel):
        one = models(shape.type)
    elif shape.type is bool:
        one = st.booleans()
    elif shape.type is int:
        low, high = bounds(shape.marks)
        low = 0 if Mark.DESCRIPTOR in shape.marks else low
        one = st.integers(low, high) | st.integers(low, min(high, low + 9))
    elif issubclass(shape.type, Enum):
        one = st.sampled_from(list(shape.type))
    else:
        one = texts
    return st.lists(one, max_size=3).map(tuple) if shape.is_list else one


def models(
    model: type[ConfigModel], **fixed: st.SearchStrategy[object]
) -> st.SearchStrategy[ConfigModel]:
    """Any model of a class; ``fixed`` narrows some of its fields."""
    required: dict[str, st.SearchStrategy[object]] = {}
    optional: dict[str, st.SearchStrategy[object]] = {}
    for name, field in model.model_fields.items():
        strategy = fixed[name] if name in fixed else values(name, shape_of(field))
        (required if field.is_required() else optional)[name] = strategy
    return st.fixed_dictionaries(required, optional=optional).map(model.model_validate)


configs = models(VmConfig)


def outcome(action: Callable[[], object]) -> object:
    """What an action gives, or the ConfigError it ends with; other errors pass."""
    try:
        return action()
    except ConfigError as error:
        return error


@given(configs)
@settings(max_examples=60, deadline=None)
def test_config_through_its_json_is_equal(config: VmConfig) -> None:
    assert VmConfig.model_validate(config.to_json()) == config


@given(configs)
@settings(max_examples=30, deadline=None)
def test_config_through_json_text_shows_the_same(config: VmConfig) -> None:
    shown = json.loads(json.dumps(config.to_json()))
    read = parse_document(VmConfig, json.dumps(shown))
    # Descriptors alone do not pass: they mean nothing to another process.
    assert without_descriptors(read.to_json()) == without_descriptors(shown)


def without_descriptors(shown: object) -> object:
    """A JSON value without the fields that hold descriptors."""
    if isinstance(shown, dict):
        return {
            name: without_descriptors(value)
            for name, value in shown.items()
            if name not in ("fds", "fd", "iommufd_fd")
        }
    return [without_descriptors(each) for each in shown] if isinstance(shown, list) else shown


@given(configs)
@settings(max_examples=30, deadline=None)
def test_config_json_holds_every_field_that_was_given(config: VmConfig) -> None:
    for place, name, shown in given_fields(config, config.to_json()):
        assert name in shown, place


def given_fields(
    model: ConfigModel, shown: object
) -> Iterator[tuple[str, str, Mapping[str, object]]]:
    """Every field that was given, with the JSON object it must be in."""
    assert isinstance(shown, dict)
    for name in model.model_fields_set:
        value = getattr(model, name)
        yield f"{type(model).__name__}.{name}", name, shown
        if isinstance(value, ConfigModel):
            yield from given_fields(value, shown[name])
        elif isinstance(value, tuple):
            for each, inner in zip(value, shown[name], strict=True):
                if isinstance(each, ConfigModel):
                    yield from given_fields(each, inner)


@given(configs)
@settings(max_examples=60, deadline=None)
def test_validate_any_config_passes_or_raises_config_error(config: VmConfig) -> None:
    refusal = outcome(lambda: validate(config, path_exists=lambda path: len(path) % 2 == 0))
    assert refusal is None or isinstance(refusal, ConfigError)


@given(configs)
@settings(max_examples=30, deadline=None)
def test_settle_twice_changes_nothing_more(config: VmConfig) -> None:
    settled = settle(config)
    assert settle(settled) == settled


keys = st.sampled_from(sorted(set(VmConfig.model_fields) | {"id", "size", "path"}))
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=4),
    max_leaves=12,
)


@given(st.sampled_from([VmConfig, VmResize, RestoreConfig, SendMigrationData]), json_values)
@settings(max_examples=200, deadline=None)
def test_parse_document_any_json_gives_a_model_or_a_config_error(
    model: type[ConfigModel], value: object
) -> None:
    assert isinstance(
        outcome(lambda: parse_document(model, json.dumps(value))), (model, ConfigError)
    )


@given(st.binary(max_size=40) | st.text('{}[]",:0ae\\u', max_size=20).map(str.encode))
@settings(max_examples=200, deadline=None)
def test_parse_document_any_bytes_give_a_model_or_a_config_error(body: bytes) -> None:
    assert isinstance(outcome(lambda: parse_document(VmResize, body)), (VmResize, ConfigError))


@given(configs, st.sampled_from(["Created", "Running", "Paused", "Shutdown"]))
@settings(max_examples=10, deadline=None)
def test_info_shows_its_config_unchanged(config: VmConfig, state: str) -> None:
    info = VmInfo.model_validate({"config": config, "state": state})
    assert info.to_json() == {"config": config.to_json(), "state": state}

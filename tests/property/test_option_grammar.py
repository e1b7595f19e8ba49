"""What is written as an option string reads back; no string does worse than a ConfigError."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.property.test_config_roundtrip import models, outcome, texts
from vmm.config.console import ConsoleMode
from vmm.config.memory import MemoryZoneConfig
from vmm.config.model import ConfigModel
from vmm.config.rate_limit import RateLimiterConfig, TokenBucket
from vmm.config.requests import RestoreConfig, RestoredNetConfig, ZoneUpdate
from vmm.config.syntax import field_syntaxes, format_option, parse_option
from vmm.config.tokens import dequote, quote, split
from vmm.config.units import format_byte_size, parse_byte_size
from vmm.config.values import shape_of
from vmm.config.vm import VmConfig
from vmm.errors import ConfigError

OPTION_MODELS: list[type[ConfigModel]] = [
    *(
        kind
        for field in VmConfig.model_fields.values()
        if issubclass(kind := shape_of(field).type, ConfigModel) and kind.FLAG
    ),
    MemoryZoneConfig,
    RestoreConfig,
]

buckets = models(TokenBucket, size=st.integers(1, 99), refill_time=st.integers(1, 99))
limiters = st.builds(RateLimiterConfig, bandwidth=buckets, ops=buckets | st.none())
bare_modes = st.sampled_from([ConsoleMode.OFF, ConsoleMode.PTY, ConsoleMode.TTY, ConsoleMode.NULL])

# What the command line can say is less than what JSON can: these fields are narrowed to it.
EXPRESSIBLE = {
    "rate_limiter_config": limiters,
    "mode": bare_modes,
    "net_fds": st.lists(
        st.builds(RestoredNetConfig, id=texts.filter(bool), fds=st.just((3, 4))), max_size=2
    ).map(tuple),
    "zone_updates": st.lists(
        st.builds(ZoneUpdate, id=texts.filter(bool), host_numa_node=st.integers(0, 9)), max_size=2
    ).map(tuple),
    "vfio_fds": st.just(()),
}


def expressible(model: type[ConfigModel]) -> st.SearchStrategy[ConfigModel]:
    """Models that an option string can describe."""
    shown = field_syntaxes(model)
    fixed: dict[str, st.SearchStrategy[object]] = {
        name: EXPRESSIBLE[name] for name in model.model_fields if name in EXPRESSIBLE
    }
    for name, field in model.model_fields.items():
        if name not in shown:
            fixed[name] = st.just(field.get_default())
    return models(model, **fixed)


@pytest.mark.parametrize("model", OPTION_MODELS, ids=lambda model: model.__name__)
@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_option_that_was_formatted_reads_back_equal(
    model: type[ConfigModel], data: st.DataObject
) -> None:
    config = data.draw(expressible(model))
    assert parse_option(model, format_option(config)) == config


pieces = st.lists(
    st.sampled_from(['"', "[", "]", ",", "=", "@", "-", ":", " ", "0", "7", "on", "x", "K", "٣"])
    | texts,
    max_size=8,
).map("".join)


@pytest.mark.parametrize("model", OPTION_MODELS, ids=lambda model: model.__name__)
@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_option_of_any_text_gives_a_model_or_a_config_error(
    model: type[ConfigModel], data: st.DataObject
) -> None:
    keys = [key for syntax in field_syntaxes(model).values() for key in syntax.keys]
    option = st.tuples(st.sampled_from(keys), pieces).map("=".join)
    text = data.draw(st.lists(option, max_size=3).map(",".join) | pieces)
    assert isinstance(outcome(lambda: parse_option(model, text)), (model, ConfigError))


@given(texts)
def test_quoted_text_is_one_piece_and_reads_back(text: str) -> None:
    written = quote(text)
    assert split(f"{written},x") == [written, "x"]
    assert dequote(written) == text


@given(st.integers(0, 2**64 - 1) | st.integers(0, 2**24).map(lambda n: n << 20))
def test_byte_size_that_was_formatted_reads_back_equal(size: int) -> None:
    assert parse_byte_size(format_byte_size(size)) == size

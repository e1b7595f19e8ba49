"""Each rule for a restore: what breaks it, and what is said."""

from __future__ import annotations

import logging

import pytest

from tests.unit.test_config_validation import config_of
from vmm.config.net import NetConfig
from vmm.config.requests import RestoreConfig
from vmm.config.rules.restore import validate_restore
from vmm.config.vm import VmConfig
from vmm.errors import ConfigError

REFUSED: list[tuple[dict[str, object], str, str]] = [
    (
        {"prefault": True, "memory_restore_mode": "OnDemand"},
        "restore.prefault (--restore prefault=)",
        "on demand reads none; give one",
    ),
    (
        {"net_fds": [{"id": "lan", "num_fds": 1}, {"id": "lan", "num_fds": 1}]},
        "restore.net_fds (--restore net_fds=)",
        "Identifier lan is not unique",
    ),
    ({"vfio_fds": [{"id": "v"}, {"id": "v"}]}, "restore.vfio_fds", "Identifier v is not unique"),
    ({"zone_updates": []}, "restore.zone_updates (--restore zone_updates=) is empty", "leave it"),
    (
        {"zone_updates": [{"id": "z", "host_numa_node": 0}, {"id": "z", "host_numa_node": 1}]},
        "restore.zone_updates",
        "Identifier z is not unique",
    ),
]


def restore_of(**given: object) -> RestoreConfig:
    return RestoreConfig.model_validate({"source_url": "file:///s", **given})


def saved() -> VmConfig:
    """A VM one of whose networks had descriptors."""
    nets = (NetConfig(id="lan", fds=(7, 8), num_queues=4), NetConfig(id="tap"))
    return config_of().model_copy(update={"net": nets})


@pytest.mark.parametrize(("given", "place", "words"), REFUSED)
def test_restore_that_breaks_a_rule_is_refused_whatever_was_saved(
    given: dict[str, object], place: str, words: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        validate_restore(restore_of(**given))
    (problem,) = caught.value.problems
    assert problem.startswith(place)
    assert words in problem


@pytest.mark.parametrize(
    ("nets", "words"),
    [
        ([], "Net id lan is associated with FDs and is required; give 2"),
        ([{"id": "tap", "num_fds": 2}], "Net id lan is associated with FDs and is required"),
        ([{"id": "lan", "num_fds": 1}], "Number of Net FDs passed for lan is 1; give 2"),
        ([{"id": "lan", "fds": [3, 4, 5]}], "Number of Net FDs passed for lan is 3; give 2"),
    ],
)
def test_network_with_descriptors_needs_as_many_new_ones(
    nets: list[dict[str, object]], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        validate_restore(restore_of(net_fds=nets), saved())


def test_descriptors_for_other_networks_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    nets = [{"id": "lan", "num_fds": 2}, {"id": "gone", "num_fds": 1}]

    with caplog.at_level(logging.WARNING, "vmm.config"):
        validate_restore(restore_of(net_fds=nets), saved())

    assert "No network with descriptors is called gone" in caplog.text

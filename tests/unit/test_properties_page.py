"""docs/properties.md: each property of the contract once, and tests that there are and use it."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from tests.unit.contract import PROPERTIES
from tests.unit.documents import ROOT
from tests.unit.properties_page import ROWS, STATES, Row

OTHER_WORDS: dict[tuple[str, str], str] = {
    ("ReceiveMigrationData", "receiver_url"): "url",
    ("SendMigrationData", "destination_url"): "url",
    ("PlatformConfig", "iommu_address_width_bits"): "iommu_address_width",
    ("VmConfig", "payload"): "linux",
    ("VmConfig", "rate_limit_groups"): "rate-limit-group",
    ("PayloadConfig", "initramfs"): "minimal",
    ("PayloadConfig", "kernel"): "linux",
    ("PayloadConfig", "cmdline"): "linux",
    ("CpusConfig", "boot_vcpus"): "boot",
    ("CpusConfig", "max_vcpus"): "max",
    ("CpusConfig", "features"): "amx",
    ("CpuTopology", "dies_per_package"): "topology",
    ("CpuTopology", "cores_per_die"): "topology",
    ("CpuTopology", "threads_per_core"): "topology",
    ("CpuTopology", "packages"): "topology",
    ("NumaDistance", "destination"): "distances",
    ("NumaDistance", "distance"): "distances",
    ("DiskConfig", "rate_limiter_config"): "bw_size",
    ("NetConfig", "rate_limiter_config"): "bw_size",
    ("RateLimiterConfig", "bandwidth"): "bw_size",
    ("RateLimiterConfig", "ops"): "ops_size",
    ("RateLimitGroupConfig", "rate_limiter_config"): "bw_size",
    ("TokenBucket", "size"): "bw_size",
    ("TokenBucket", "one_time_burst"): "bw_one_time_burst",
    ("TokenBucket", "refill_time"): "bw_refill_time",
}
"""How a test calls a property that it has from a fixture, or by its key of the command line."""


def test_each_property_of_the_contract_stands_once_with_a_state() -> None:
    shown = Counter((row.object, field) for row in ROWS for field in row.properties)

    assert {each for each, times in shown.items() if times > 1} == set()
    assert shown.keys() == set(PROPERTIES)
    assert {row.state for row in ROWS} <= STATES


@pytest.mark.parametrize(
    "row", [row for row in ROWS if row.state in ("works", "answered")], ids=str
)
def test_what_works_names_a_test_that_is_there_and_uses_it(row: Row) -> None:
    files = re.findall(r"tests/[\w/]+\.py", row.why)
    functions = re.findall(r"`(test_\w+)`", row.why)
    text = "".join((ROOT / name).read_text() for name in files)

    assert functions
    for function in functions:
        assert f"def {function}(" in text, function
    if row.state == "works":
        assert [field for field in row.properties if not any_of(words(row, field), text)] == []


def any_of(found: set[str], text: str) -> bool:
    return any(re.search(rf"\b{re.escape(word)}\b", text) for word in found)


def words(row: Row, field: str) -> set[str]:
    """How a test may call a property."""
    return {field, field.replace("_", "-"), OTHER_WORDS.get((row.object, field), field)}


@pytest.mark.parametrize("row", [row for row in ROWS if row.state not in ("works",)], ids=str)
def test_what_does_not_work_says_why(row: Row) -> None:
    assert len(row.why) > 10

"""Results as text and as JSON."""

from __future__ import annotations

import json

import pytest

from tools.bench.report import as_json, as_text
from tools.bench.series import Claim, Relation, Result, Series, compare


def result(target: float | None = None, relation: Relation = Relation.RATIO) -> Result:
    series = (Series("vmm", "ms", (200, 300, 250)), Series("QEMU", "ms", (40, 50, 50)))
    by_name = {each.name: each for each in series}
    claims = [Claim("vmm", "QEMU", relation, target)]
    return Result("first", "The first", series, compare(by_name, claims), ("One note",))


def test_text_gives_median_and_range() -> None:
    text = as_text(result())

    assert "250 ms  [200 .. 300]" in text
    assert "vmm  /  QEMU" in text
    assert "5.00 x   [5.00 .. 6.00]" in text
    assert "note: One note" in text


@pytest.mark.parametrize(("target", "verdict"), [(5.0, "at most 5, met"), (4.5, "4.5, MISSED")])
def test_text_judges_by_target(target: float, verdict: str) -> None:
    assert as_text(result(target)).splitlines()[3].endswith(verdict)


def test_text_of_a_difference_has_a_minus() -> None:
    assert "vmm  -  QEMU" in as_text(result(relation=Relation.DIFFERENCE))


def test_text_of_a_claim_without_a_reference_names_its_subject_alone() -> None:
    (last,) = as_text(result(400, Relation.NONE)).splitlines()[3:4]

    assert last.split()[:2] == ["vmm", "250"]
    assert last.endswith("at most 400, met")


def test_json_holds_every_value() -> None:
    document = json.loads(json.dumps(as_json(result(target=4))))

    assert document["series"][0] == {
        "name": "vmm",
        "unit": "ms",
        "median": 250,
        "values": [200, 300, 250],
    }
    (comparison,) = document["comparisons"]
    assert comparison["values"] == [5, 6, 5]
    assert comparison["is_met"] is False
    assert document["notes"] == ["One note"]

"""docs/compatibility.md: each scenario once, and every test that it names is there."""

from __future__ import annotations

import re
from collections import Counter

from tests.unit.documents import ROOT

PAGE = (ROOT / "docs" / "compatibility.md").read_text()
ROW = re.compile(
    r"^\| (?P<names>[a-z0-9_, ]+) \| (?P<state>[a-z ]+) \| (?P<why>.*) \|$", re.MULTILINE
)
TOTALS = re.compile(
    r"Of (\d+) scenarios (\d+) work, (\d+) do in\s+part, (\d+) are not there yet, (\d+) need"
)
ROWS = [match.groupdict() for match in ROW.finditer(PAGE) if match["names"] != "scenarios"]
STATES = {"works", "in part", "not yet", "not here"}


def test_each_scenario_stands_once_with_a_state() -> None:
    names = Counter(name for row in ROWS for name in row["names"].split(", "))

    assert {name for name, times in names.items() if times > 1} == set()
    assert {row["state"] for row in ROWS} == STATES
    assert len(names) > 250


def test_what_works_names_a_test_or_a_command() -> None:
    bare = [
        row["names"]
        for row in ROWS
        if row["state"] == "works" and not re.search(r"test_\w+\.py|python -m", row["why"])
    ]

    assert bare == []


def test_totals_are_those_of_the_tables() -> None:
    totals = Counter(dict.fromkeys(STATES, 0))
    for row in ROWS:
        totals[row["state"]] += len(row["names"].split(", "))
    said = TOTALS.search(PAGE)

    assert said is not None
    order = ("works", "in part", "not yet", "not here")
    assert [int(number) for number in said.groups()] == [
        totals.total(),
        *(totals[state] for state in order),
    ]


def test_every_named_test_is_there() -> None:
    for row in ROWS:
        files = re.findall(r"tests/[\w/]+\.py", row["why"])
        text = "".join((ROOT / name).read_text() for name in files)
        for function in re.findall(r"`(test_\w+)`", row["why"]):
            assert f"def {function}(" in text, (row["names"], function)

"""The rows of docs/properties.md."""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from tests.unit.documents import ROOT

STATES: Final = {"works", "answered", "refused", "unused"}

_ROW = re.compile(
    r"^\| (?P<object>[A-Z]\w+) \| (?P<properties>[\w, -]+)"
    r" \| (?P<state>[a-z ]+) \| (?P<why>.*) \|$",
    re.MULTILINE,
)


class Row(NamedTuple):
    """Properties of an object, what becomes of them, and which tests show it or why not."""

    object: str
    properties: tuple[str, ...]
    state: str
    why: str

    def __str__(self) -> str:
        return f"{self.object}.{self.properties[0]}"


ROWS: Final = [
    Row(match["object"], tuple(match["properties"].split(", ")), match["state"], match["why"])
    for match in _ROW.finditer((ROOT / "docs" / "properties.md").read_text())
]

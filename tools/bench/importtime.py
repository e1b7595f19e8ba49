"""Read what ``python -X importtime`` prints, and say which package the time belongs to.

A module of the standard library counts for the package that imported it first: without that
package it would not have been needed, or at least not then.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import NamedTuple

PREFIX = "import time:"
INTERPRETER = "python"
"""The owner of what the interpreter imports by itself."""


class Module(NamedTuple):
    """One imported module: its own time in µs, and how deep below the first importer it is."""

    name: str
    own_us: int
    depth: int

    @property
    def package(self) -> str:
        """The top-level package."""
        return self.name.partition(".")[0]

    @property
    def is_standard(self) -> bool:
        """Whether it comes with Python."""
        return self.package in sys.stdlib_module_names


class Share(NamedTuple):
    """What one package takes to import: its own modules, and the standard library's for it."""

    package: str
    modules: int
    own_ms: float
    standard_ms: float

    @property
    def total_ms(self) -> float:
        """Both together."""
        return self.own_ms + self.standard_ms


def parse(text: str) -> list[Module]:
    """Read the lines of a program's stderr that are of the interpreter's import clock."""
    modules = []
    for line in text.splitlines():
        if not line.startswith(PREFIX):
            continue
        own, _, name = line.removeprefix(PREFIX).split("|")
        if own.strip().isdigit():
            depth = (len(name) - len(name.lstrip()) - 1) // 2
            modules.append(Module(name.strip(), int(own), depth))
    return modules


def owners(modules: Sequence[Module]) -> list[str]:
    """Say for each module which package its time belongs to."""
    found: list[str] = []
    above: dict[int, str] = {}
    # A module's line comes after those of what it imported: read backwards, importers come first.
    for module in reversed(modules):
        inherited = above.get(module.depth - 1, INTERPRETER)
        owner = inherited if module.is_standard else module.package
        above[module.depth] = owner
        found.append(owner)
    return found[::-1]


def shares(modules: Sequence[Module]) -> list[Share]:
    """Add up by package, the dearest first."""
    sums: dict[str, list[int]] = {}
    for module, owner in zip(modules, owners(modules), strict=True):
        counts = sums.setdefault(owner, [0, 0, 0])
        counts[0] += 1
        counts[2 if module.is_standard else 1] += module.own_us
    by_package = (
        Share(package, count, own / 1000, standard / 1000)
        for package, (count, own, standard) in sums.items()
    )
    return sorted(by_package, key=lambda share: share.total_ms, reverse=True)


def standard_packages(modules: Sequence[Module]) -> list[tuple[str, str, float]]:
    """The standard library's packages: name, who wanted it first, and its own time in ms."""
    sums: dict[tuple[str, str], int] = {}
    for module, owner in zip(modules, owners(modules), strict=True):
        if module.is_standard:
            key = (module.package, owner)
            sums[key] = sums.get(key, 0) + module.own_us
    dearest = sorted(sums.items(), key=lambda item: item[1], reverse=True)
    return [(package, owner, own / 1000) for (package, owner), own in dearest]

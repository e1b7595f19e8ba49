"""Repeated measurements, taken in turns so that all contenders meet the same disturbances.

A figure of a shared machine says little alone. So each round measures every contender once, in an
order that rotates, and what is compared are the two values of one round.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple

from tools.bench.errors import BenchError


class Sample(NamedTuple):
    """One measured value of the contender ``name``."""

    name: str
    unit: str
    value: float


@dataclass(frozen=True, slots=True)
class Series:
    """The values of one contender, one a round."""

    name: str
    unit: str
    values: tuple[float, ...]

    @property
    def median(self) -> float:
        """The middle value."""
        return statistics.median(self.values)

    @property
    def lowest(self) -> float:
        """The smallest value."""
        return min(self.values)

    @property
    def highest(self) -> float:
        """The largest value."""
        return max(self.values)


class Relation(Enum):
    """How a subject is set against its reference."""

    RATIO = "x"
    DIFFERENCE = "more"
    NONE = "alone"
    """It stands for itself, and the reference is left empty."""


class Claim(NamedTuple):
    """What is compared with what, and the most that it may be; without ``target`` it is told."""

    subject: str
    reference: str = ""
    relation: Relation = Relation.RATIO
    target: float | None = None


@dataclass(frozen=True, slots=True)
class Comparison:
    """A claim with the values that the rounds gave it."""

    claim: Claim
    series: Series

    @property
    def is_met(self) -> bool | None:
        """Whether the median keeps within the target; None without one."""
        target = self.claim.target
        return None if target is None else self.series.median <= target


@dataclass(frozen=True, slots=True)
class Result:
    """All that one benchmark found; ``notes`` say what could not be measured, and why."""

    name: str
    title: str
    series: tuple[Series, ...]
    comparisons: tuple[Comparison, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Contender:
    """Something to measure: each call of ``measure`` is one round's work.

    A contender that is ``required`` fails the benchmark when it cannot run; another is left out.
    """

    label: str
    measure: Callable[[], Iterable[Sample]]
    required: bool = True


@dataclass(slots=True)
class _Race:
    """Rounds in progress."""

    values: dict[str, list[float]] = field(default_factory=dict)
    units: dict[str, str] = field(default_factory=dict)

    def add(self, samples: Iterable[Sample]) -> None:
        for name, unit, value in samples:
            self.values.setdefault(name, []).append(value)
            self.units[name] = unit


def race(
    name: str,
    title: str,
    contenders: Sequence[Contender],
    claims: Sequence[Claim],
    rounds: int,
) -> Result:
    """Measure all contenders in turns and compare them as claimed.

    Each runs once before that, uncounted: it fills caches, and shows whether it can run at all.
    Raises: BenchError when a required contender cannot.
    """
    able, notes = _warm_up(contenders)
    measured = _Race()
    for round_number in range(rounds):
        at = round_number % len(able)
        for contender in (*able[at:], *able[:at]):
            measured.add(contender.measure())
    series = {
        each: Series(each, measured.units[each], tuple(values))
        for each, values in measured.values.items()
    }
    return Result(name, title, tuple(series.values()), compare(series, claims), tuple(notes))


def _warm_up(contenders: Sequence[Contender]) -> tuple[list[Contender], list[str]]:
    able: list[Contender] = []
    notes: list[str] = []
    for contender in contenders:
        try:
            tuple(contender.measure())
        except BenchError as error:
            if contender.required:
                raise
            notes.append(f"{contender.label} was not measured: {error}")
        else:
            able.append(contender)
    return able, notes


def compare(series: dict[str, Series], claims: Sequence[Claim]) -> tuple[Comparison, ...]:
    """Set subjects against references round by round; claims on what is missing are left out."""
    found = []
    for claim in claims:
        subject, reference = series.get(claim.subject), series.get(claim.reference)
        if subject is not None and claim.relation is Relation.NONE:
            found.append(Comparison(claim, subject))
        elif subject is not None and reference is not None:
            found.append(Comparison(claim, _related(subject, reference, claim.relation)))
    return tuple(found)


def _related(subject: Series, reference: Series, relation: Relation) -> Series:
    pairs = zip(subject.values, reference.values, strict=True)
    if relation is Relation.RATIO:
        return Series(subject.name, "x", tuple(mine / other for mine, other in pairs))
    return Series(subject.name, subject.unit, tuple(mine - other for mine, other in pairs))

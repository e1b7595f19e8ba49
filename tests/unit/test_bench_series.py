"""Rounds of measurements: turns, warm-up, comparisons round by round."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tools.bench.errors import BenchError
from tools.bench.series import Claim, Contender, Relation, Sample, Series, compare, race


def scripted(name: str, values: list[float], log: list[str]) -> Contender:
    """A contender that measures the given values, the first of them in the warm-up."""
    left = iter(values)

    def measure() -> Iterator[Sample]:
        log.append(name)
        yield Sample(name, "ms", next(left))

    return Contender(name, measure)


def failing(*, required: bool) -> Contender:
    def measure() -> Iterator[Sample]:
        raise BenchError("it is not installed")

    return Contender("other", measure, required)


def test_race_leaves_the_warm_up_out() -> None:
    result = race("n", "t", [scripted("a", [100, 1, 2, 3], [])], [], rounds=3)

    assert result.series == (Series("a", "ms", (1, 2, 3)),)


def test_race_rotates_the_order_of_its_contenders() -> None:
    log: list[str] = []

    race("n", "t", [scripted(name, [0] * 4, log) for name in "abc"], [], rounds=3)

    assert "".join(log) == "abc" + "abc" + "bca" + "cab"


def test_race_without_an_optional_contender_says_why() -> None:
    claims = [Claim("a", "other")]

    result = race("n", "t", [failing(required=False), scripted("a", [1, 1], [])], claims, rounds=1)

    assert [each.name for each in result.series] == ["a"]
    assert result.comparisons == ()
    assert result.notes == ("other was not measured: it is not installed",)


def test_race_without_a_required_contender_fails() -> None:
    with pytest.raises(BenchError, match="not installed"):
        race("n", "t", [failing(required=True)], [], rounds=1)


def test_comparison_takes_the_values_of_one_round() -> None:
    series = {"a": Series("a", "µs", (2, 30)), "b": Series("b", "µs", (1, 10))}

    ratio, difference = compare(series, [Claim("a", "b"), Claim("a", "b", Relation.DIFFERENCE)])

    assert ratio.series == Series("a", "x", (2, 3))
    assert difference.series == Series("a", "µs", (1, 20))


@pytest.mark.parametrize(("target", "is_met"), [(2.5, True), (2.4, False), (None, None)])
def test_comparison_judges_the_median(target: float | None, is_met: bool | None) -> None:
    series = {"a": Series("a", "ms", (2, 2.5, 9)), "b": Series("b", "ms", (1, 1, 1))}

    (comparison,) = compare(series, [Claim("a", "b", target=target)])

    assert comparison.is_met is is_met


@pytest.mark.parametrize(("target", "is_met"), [(2.0, True), (1.0, False)])
def test_claim_without_a_reference_is_about_the_values_themselves(
    target: float, is_met: bool
) -> None:
    series = {"a": Series("a", "%", (1, 3, 2))}

    (found,) = compare(series, [Claim("a", relation=Relation.NONE, target=target)])

    assert found.series == series["a"]
    assert found.is_met is is_met

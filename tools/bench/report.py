"""Results as text for people and as JSON for programs."""

from __future__ import annotations

from collections.abc import Iterator

from tools.bench.series import Comparison, Relation, Result, Series


def as_text(result: Result) -> str:
    """Lay a result out: the series, then the comparisons with their targets."""
    return "\n".join(_lines(result))


def _lines(result: Result) -> Iterator[str]:
    yield f"{result.title} ({result.name})"
    names = [each.name for each in result.series]
    names += [_caption(each) for each in result.comparisons]
    width = max(map(len, names), default=0)
    for series in result.series:
        yield f"  {series.name:{width}}  {_spread(series)}"
    for comparison in result.comparisons:
        spread = _spread(comparison.series)
        yield f"  {_caption(comparison):{width}}  {spread}{_verdict(comparison)}"
    yield from (f"  note: {note}" for note in result.notes)


def _caption(comparison: Comparison) -> str:
    if comparison.claim.relation is Relation.NONE:
        return comparison.claim.subject
    sign = "/" if comparison.claim.relation is Relation.RATIO else "-"
    return f"{comparison.claim.subject}  {sign}  {comparison.claim.reference}"


def _spread(series: Series) -> str:
    value, low, high = (_number(each) for each in (series.median, series.lowest, series.highest))
    return f"{value:>8} {series.unit:3} [{low} .. {high}]"


def _number(value: float) -> str:
    """Three significant digits, without an exponent."""
    if abs(value) >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def _verdict(comparison: Comparison) -> str:
    if comparison.is_met is None:
        return ""
    word = "met" if comparison.is_met else "MISSED"
    return f"  target: at most {comparison.claim.target:g}, {word}"


def as_json(result: Result) -> dict[str, object]:
    """The same with every value; units are with each series."""
    return {
        "name": result.name,
        "title": result.title,
        "series": [_series(each) for each in result.series],
        "comparisons": [
            {
                "subject": each.claim.subject,
                "reference": each.claim.reference,
                "relation": each.claim.relation.name.lower(),
                "target": each.claim.target,
                "is_met": each.is_met,
                **_series(each.series),
            }
            for each in result.comparisons
        ],
        "notes": list(result.notes),
    }


def _series(series: Series) -> dict[str, object]:
    return {
        "name": series.name,
        "unit": series.unit,
        "median": series.median,
        "values": list(series.values),
    }

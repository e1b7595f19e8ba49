"""The blocks of a region against a set of their numbers."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from vmm.boot.layout import RamRange
from vmm.machine.memory_blocks import MemoryBlocks

COUNT = 40
BLOCK = 2 << 20
BASE = 5 << 30

RUNS = st.tuples(st.integers(0, COUNT - 1), st.integers(1, COUNT)).filter(
    lambda run: sum(run) <= COUNT
)
CHANGES = st.lists(st.tuples(RUNS, st.booleans()), max_size=12)


def made(changes: list[tuple[tuple[int, int], bool]]) -> tuple[MemoryBlocks, set[int]]:
    blocks, plugged = MemoryBlocks(BASE, COUNT * BLOCK, BLOCK), set[int]()
    for (first, count), is_plugged in changes:
        blocks.mark(BASE + first * BLOCK, count, plugged=is_plugged)
        plugged -= set(range(first, first + count))
        if is_plugged:
            plugged |= set(range(first, first + count))
    return blocks, plugged


@given(CHANGES, RUNS)
def test_blocks_are_those_marked_last(
    changes: list[tuple[tuple[int, int], bool]], asked: tuple[int, int]
) -> None:
    blocks, plugged = made(changes)
    first, count = asked

    assert blocks.plugged_size == len(plugged) * BLOCK
    inside = plugged & set(range(first, first + count))
    assert blocks.plugged_of(BASE + first * BLOCK, count) == len(inside)


@given(CHANGES)
def test_runs_are_ascending_apart_and_all_that_is_plugged(
    changes: list[tuple[tuple[int, int], bool]],
) -> None:
    blocks, plugged = made(changes)

    assert {each for first, count in blocks.runs for each in range(first, first + count)} == plugged
    ends = [first + count for first, count in blocks.runs]
    starts = [first for first, _ in blocks.runs]
    assert all(end < start for end, start in zip(ends, starts[1:], strict=False))
    assert blocks.ranges == [
        RamRange(BASE + first * BLOCK, count * BLOCK) for first, count in blocks.runs
    ]


@given(CHANGES)
def test_gaps_are_apart_and_all_that_is_not_plugged(
    changes: list[tuple[tuple[int, int], bool]],
) -> None:
    blocks, plugged = made(changes)

    ranges = sorted([*blocks.ranges, *blocks.gaps])
    assert sum(gap.size for gap in blocks.gaps) == (COUNT - len(plugged)) * BLOCK
    ends = [BASE, *(each.gpa + each.size for each in ranges)]
    assert ends == [*(each.gpa for each in ranges), BASE + COUNT * BLOCK]
    assert all(gap.size > 0 for gap in blocks.gaps)


@given(CHANGES)
def test_replaced_blocks_are_those_of_the_runs(
    changes: list[tuple[tuple[int, int], bool]],
) -> None:
    blocks, _ = made(changes)
    copy, _ = made([((0, COUNT), True)])

    assert copy.replace(blocks.runs)

    assert copy.runs == blocks.runs


@given(st.integers(0, 1 << 64), st.integers(0, 0xFFFF))
def test_only_whole_blocks_inside_the_region_are_its_own(gpa: int, count: int) -> None:
    blocks, _ = made([])
    end = gpa + count * BLOCK

    is_inside = gpa % BLOCK == 0 and count > 0 and gpa >= BASE and end <= BASE + COUNT * BLOCK
    assert blocks.holds(gpa, count) == is_inside


@given(st.integers(-2, COUNT + 1), st.integers(-2, COUNT + 2))
def test_run_that_leaves_the_region_replaces_nothing(first: int, count: int) -> None:
    blocks, _ = made([((3, 4), True)])
    is_inside = first >= 0 and count > 0 and first + count <= COUNT

    assert blocks.replace([(0, 1), (first, count)]) == is_inside
    if not is_inside:
        assert blocks.runs == [(3, 4)]

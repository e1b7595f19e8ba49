"""Sets of pages in C against sets of numbers: counting, leaving out zeros, and ranges."""

from __future__ import annotations

import mmap

from hypothesis import given
from hypothesis import strategies as st

from vmm.kvm_cffi import PageSet, RangeTable, address_of

PAGE = 4096
GPA = 7 << 30
SETS = st.integers(1, 300).flatmap(
    lambda pages: st.tuples(st.just(pages), st.sets(st.integers(0, pages - 1)))
)


def made(pages: int, members: set[int]) -> PageSet:
    made = PageSet(GPA, pages)
    for page in members:
        made.bits[page // 8] |= 1 << page % 8
    return made


def pages_in(table: RangeTable) -> list[int]:
    data = table.encode()
    numbers = [int.from_bytes(data[at : at + 8], "little") for at in range(0, len(data), 8)]
    found: list[int] = []
    for gpa, length in zip(numbers[::2], numbers[1::2], strict=True):
        assert gpa % PAGE == length % PAGE == 0
        assert length > 0
        found += range((gpa - GPA) // PAGE, (gpa - GPA + length) // PAGE)
    return found


@given(SETS, st.integers(1, 80), st.integers(1, 20))
def test_ranges_name_each_page_once_and_in_order(
    given: tuple[int, set[int]], most_pages: int, room: int
) -> None:
    pages, members = given
    whole = made(pages, members)
    at, found, calls = 0, [], 0
    while True:
        table, at = whole.ranges(at, most_pages, room)
        if not table.count:
            break
        assert table.count <= room
        assert len(pages_in(table)) <= most_pages
        found += pages_in(table)
        calls += 1

    assert found == sorted(members)
    assert len(whole) == len(members)
    assert calls <= len(members)


@given(SETS, st.integers(0, 299), st.integers(0, 300), st.data())
def test_zeros_are_dropped_where_they_were_looked_for(
    given: tuple[int, set[int]], first: int, count: int, data: st.DataObject
) -> None:
    pages, members = given
    first %= pages
    held = data.draw(st.sets(st.sampled_from(range(pages))))
    with mmap.mmap(-1, pages * PAGE) as memory:
        for page in held:
            memory[page * PAGE + data.draw(st.integers(0, PAGE - 1))] = 1
        some = made(pages, members)
        some.drop_zeros(address_of(memory), first, count)

    looked_at = set(range(first, min(first + count, pages)))
    table, _ = some.ranges(0, pages, pages)
    assert set(pages_in(table)) == members - (looked_at - held)


@given(st.integers(1, 300))
def test_full_set_has_all_its_pages(pages: int) -> None:
    full = PageSet(GPA, pages)
    full.fill()

    assert len(full) == pages

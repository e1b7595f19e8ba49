"""The mappings in C agree with a dictionary of pages on everything that can be observed."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from vmm.kvm_cffi import Access, Fault, IommuDomain, IommuEndpoint, Mapping

PAGES = 24
"""Of RAM, of 16 bytes each: the tree does not care about alignment."""
PAGE = 16
TOP = 1 << 64
AREAS = (0, TOP - PAGES * PAGE)
"""Mappings are tried at both ends of the address space."""

PAGE_NUMBERS = st.integers(0, PAGES - 1)
AREA = st.sampled_from(AREAS)


class Translation(RuleBasedStateMachine):
    """Mappings come and go; the model has one entry a page."""

    def __init__(self) -> None:
        super().__init__()
        self.domain = IommuDomain()
        self.endpoint = IommuEndpoint()
        self.endpoint.enter(self.domain)
        self.pages: dict[int, tuple[Mapping, int]] = {}

    @rule(
        area=AREA,
        first=PAGE_NUMBERS,
        count=st.integers(1, 5),
        gpa=PAGE_NUMBERS,
        access=st.sampled_from((1, 2, 3)),
    )
    def add(self, area: int, first: int, count: int, gpa: int, access: int) -> None:
        start = area + first * PAGE
        size = min(count, PAGES - first) * PAGE
        mapping = Mapping(start, start + size - 1, gpa * PAGE, access)
        covered = range(start, start + size, PAGE)
        is_free = not any(page in self.pages for page in covered)

        assert self.domain.map(mapping) == is_free

        if is_free:
            for page in covered:
                self.pages[page] = mapping, mapping.gpa + page - start

    @rule(area=AREA, first=PAGE_NUMBERS, count=st.integers(1, 12), most=st.integers(1, 4))
    def remove(self, area: int, first: int, count: int, most: int) -> None:
        start = area + first * PAGE
        last = start + min(count, PAGES - first) * PAGE - 1
        touched = {
            mapping
            for mapping, _ in self.pages.values()
            if mapping.first <= last and start <= mapping.last
        }
        is_split = any(each.first < start or each.last > last for each in touched)

        removed = self.domain.unmap(start, last, most)

        if is_split:
            assert removed is None
            return
        assert removed == min(most, len(touched))
        left = set(self.domain.mappings)
        assert len(touched - left) == removed
        self.pages = {page: held for page, held in self.pages.items() if held[0] in left}

    @rule(
        area=AREA,
        page=PAGE_NUMBERS,
        offset=st.integers(0, PAGE - 1),
        size=st.one_of(st.integers(1, 6 * PAGE), st.just(TOP - 1)),
        access=st.sampled_from((Access.READ, Access.WRITE)),
    )
    def look_up(self, area: int, page: int, offset: int, size: int, access: Access) -> None:
        address = area + page * PAGE + offset
        held = self.pages.get(address - offset)
        expected = None
        if held is not None and held[0].access & access:
            mapping, gpa = held
            expected = gpa + offset, min(size, mapping.last - address + 1)

        assert self.endpoint.translate(address, size, access) == expected
        fault = None if expected else Fault(address, access, has_domain=True)
        assert self.endpoint.take_fault() == fault

    @invariant()
    def mappings_are_listed_in_order(self) -> None:
        listed = self.domain.mappings
        assert listed == tuple(sorted({mapping for mapping, _ in self.pages.values()}))
        assert self.domain.count == len(listed)


Translation.TestCase.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
TestTranslation = Translation.TestCase

"""Domains of the IOMMU that are gone: what they held is freed in steps, and counts until then."""

from __future__ import annotations

import pytest

from vmm.kvm_cffi import IommuDomain, IommuEndpoint
from vmm.kvm_cffi.iommu import STEP
from vmm.virtio import iommu_domains
from vmm.virtio.iommu_domains import LAST, PAGE, Domains
from vmm.virtio.iommu_spec import MAP_READ, Outcome

COUNT = 2 * STEP + 88


def page(number: int) -> tuple[int, int, int, int]:
    """A mapping of one page."""
    return number * PAGE, (number + 1) * PAGE - 1, 0, MAP_READ


@pytest.mark.parametrize("ends_by", ["reset", "detach", "unplug"])
async def test_mappings_of_a_domain_that_ends_are_freed_in_steps(
    monkeypatch: pytest.MonkeyPatch, ends_by: str
) -> None:
    freed: list[int | None] = []

    class Counted(IommuDomain):
        def unmap(self, first: int, last: int, most: int = STEP) -> int | None:
            freed.append(super().unmap(first, last, most))
            return freed[-1]

    monkeypatch.setattr(iommu_domains, "IommuDomain", Counted)
    monkeypatch.setattr(iommu_domains, "MAPPINGS_MOST", COUNT)
    domains = Domains(LAST)
    with domains.joined(2, IommuEndpoint()):
        with domains.joined(1, IommuEndpoint()):
            domains.attach(5, 1, is_bypass=False)
            outcomes = {domains.map(5, *page(number)) for number in range(COUNT)}
            assert outcomes == {Outcome.OK}
            if ends_by == "reset":
                domains.clear()
            elif ends_by == "detach":
                domains.detach(5, 1)
        assert (domains.count, domains.mapping_count, freed) == (0, 0, [])

        domains.attach(5, 2, is_bypass=False)
        assert domains.map(5, *page(0)) is Outcome.NOMEM
        await domains.free_left()

        assert freed == [STEP, STEP, COUNT - 2 * STEP, 0]
        assert domains.map(5, *page(0)) is Outcome.OK

"""Which device is in which address space: what the IOMMU's requests change.

An endpoint is a device behind the IOMMU, by the number that the tables give it. A domain is there
while an endpoint is in it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Final

import trio

from vmm.errors import ConfigError
from vmm.kvm_cffi import IommuDomain, IommuEndpoint
from vmm.kvm_cffi import Mapping as AddressMapping
from vmm.virtio.iommu_spec import MAP_READ, MAP_WRITE, Outcome

PAGE: Final = 4096
LAST: Final = (1 << 64) - 1
MAPPINGS_MOST: Final = 1 << 20
"""In all domains together: some hundred bytes of the host's memory each."""
NOT_WHOLE: Final = "use the state as it was saved"


class Domain:
    """An address space and who is in it; ``space`` is None when that is all of memory."""

    def __init__(self, *, is_bypass: bool) -> None:
        self.space = None if is_bypass else IommuDomain()
        self.members: set[int] = set()


class Domains:
    """All domains and endpoints; addresses reach to ``input_last``."""

    def __init__(self, input_last: int) -> None:
        self.input_last = input_last
        self.endpoints: dict[int, IommuEndpoint] = {}
        self._bypasses = True
        self._domains: dict[int, Domain] = {}
        self._domain_of: dict[int, int] = {}
        self._left: list[IommuDomain] = []
        self.mapping_count = 0
        """In all domains together."""

    @property
    def bypasses(self) -> bool:
        """Whether an endpoint in no domain has all of memory, or nothing."""
        return self._bypasses

    @bypasses.setter
    def bypasses(self, wanted: bool) -> None:
        self._bypasses = wanted
        for id, endpoint in self.endpoints.items():
            if id not in self._domain_of:
                endpoint.leave(bypasses=wanted)

    @property
    def count(self) -> int:
        """How many domains there are."""
        return len(self._domains)

    @contextmanager
    def joined(self, id: int, endpoint: IommuEndpoint) -> Iterator[None]:
        """Have a device behind the IOMMU, in the domain that its number is in if it was loaded."""
        self.endpoints[id] = endpoint
        self._place(id)
        try:
            yield
        finally:
            self._take_out(id)
            del self.endpoints[id]

    def _place(self, id: int) -> None:
        endpoint = self.endpoints.get(id)
        if endpoint is None:
            return
        domain = self._domains.get(self._domain_of.get(id, -1))
        if domain is None or domain.space is None:
            endpoint.leave(bypasses=self._bypasses if domain is None else True)
        else:
            endpoint.enter(domain.space)

    def _take_out(self, id: int) -> None:
        """Have an endpoint in no domain; one that has none any more is gone."""
        number = self._domain_of.pop(id, None)
        self._place(id)
        if number is None:
            return
        domain = self._domains[number]
        domain.members.remove(id)
        if not domain.members:
            del self._domains[number]
            self._leave(domain)

    def _leave(self, domain: Domain) -> None:
        if domain.space is not None:
            self.mapping_count -= domain.space.count
            self._left.append(domain.space)

    async def free_left(self) -> None:
        """Free the mappings of domains that are gone, a step at a time."""
        while self._left:
            if not self._left[-1].unmap(0, LAST):
                self._left.pop()
            await trio.lowlevel.checkpoint()

    def attach(self, number: int, id: int, *, is_bypass: bool) -> Outcome:
        """Move an endpoint into a domain, which is made if there is none of that number."""
        if id not in self.endpoints:
            return Outcome.NOENT
        domain = self._domains.get(number)
        if domain is not None and (domain.space is None) != is_bypass:
            return Outcome.INVAL
        if self._domain_of.get(id) == number:
            return Outcome.OK
        self._take_out(id)
        self._put_in(number, id, is_bypass=is_bypass)
        return Outcome.OK

    def _put_in(self, number: int, id: int, *, is_bypass: bool) -> Domain:
        domain = self._domains.setdefault(number, Domain(is_bypass=is_bypass))
        domain.members.add(id)
        self._domain_of[id] = number
        self._place(id)
        return domain

    def detach(self, number: int, id: int) -> Outcome:
        """Take an endpoint out of a domain."""
        if id not in self.endpoints:
            return Outcome.NOENT
        if self._domain_of.get(id) != number:
            return Outcome.INVAL
        self._take_out(id)
        return Outcome.OK

    def map(self, number: int, first: int, last: int, gpa: int, flags: int) -> Outcome:
        """Add a mapping to a domain."""
        domain = self._domains.get(number)
        if domain is None:
            return Outcome.NOENT
        if domain.space is None or last < first or flags & ~(MAP_READ | MAP_WRITE):
            return Outcome.INVAL
        is_aligned = not (first % PAGE or (last + 1) % PAGE or gpa % PAGE)
        if not is_aligned or last > self.input_last or gpa + (last - first) > LAST:
            return Outcome.RANGE
        if self.mapping_count + sum(space.count for space in self._left) >= MAPPINGS_MOST:
            return Outcome.NOMEM
        # The bits that allow reading and writing are those of vmm.kvm_cffi.Access.
        if not domain.space.map(AddressMapping(first, last, gpa, flags)):
            return Outcome.INVAL
        self.mapping_count += 1
        return Outcome.OK

    async def unmap(self, number: int, first: int, last: int) -> Outcome:
        """Remove the mappings of a domain that lie in a range; none may reach beyond it."""
        domain = self._domains.get(number)
        if domain is None:
            return Outcome.NOENT
        if domain.space is None or last < first:
            return Outcome.INVAL
        # Meanwhile the last member may be unplugged, and the domain go with it.
        while (
            self._domains.get(number) is domain
            and (removed := domain.space.unmap(first, last)) != 0
        ):
            if removed is None:
                return Outcome.RANGE
            self.mapping_count -= removed
            for id in domain.members & self.endpoints.keys():
                self.endpoints[id].forget()
            await trio.lowlevel.checkpoint()
        return Outcome.OK

    def clear(self) -> None:
        """Have every endpoint in no domain."""
        for domain in self._domains.values():
            self._leave(domain)
        self._domains.clear()
        self._domain_of.clear()
        self.bypasses = self._bypasses

    def save(self) -> dict[str, object]:
        """Domains with their members and mappings, and whether the others bypass."""
        return {
            "bypass": self._bypasses,
            "domains": [
                {
                    "number": number,
                    "endpoints": sorted(domain.members),
                    "mappings": None
                    if domain.space is None
                    else [list(mapping) for mapping in domain.space.mappings],
                }
                for number, domain in sorted(self._domains.items())
            ],
        }

    def load(self, state: Mapping[str, object]) -> None:
        """Take over what ``save`` gave; endpoints may join later. Raises: ConfigError (caller)."""
        self.clear()
        match state:
            case {"bypass": bool(bypasses), "domains": [*domains]}:
                self.bypasses = bypasses
                for domain in domains:
                    self._load_domain(domain)
            case _:
                raise ConfigError(
                    f"The state of the IOMMU has no bypass and no domains; {NOT_WHOLE}"
                )

    def _load_domain(self, state: object) -> None:
        match state:
            case {
                "number": int(number),
                "endpoints": [_, *_] as ids,
                "mappings": None | [*_] as mappings,
            }:
                pass
            case _:
                raise ConfigError(
                    f"The state of an IOMMU domain has no number or no members; {NOT_WHOLE}"
                )
        for id in ids:
            if not isinstance(id, int) or id in self._domain_of:
                raise ConfigError(
                    f"Endpoint {id!r} of IOMMU domain {number} is none, or in two; {NOT_WHOLE}"
                )
            self._put_in(number, id, is_bypass=mappings is None)
        for mapping in mappings or ():
            match mapping:
                case [int(first), int(last), int(gpa), int(flags)] if (
                    min(first, gpa) >= 0 and self.map(number, first, last, gpa, flags) is Outcome.OK
                ):
                    pass
                case _:
                    raise ConfigError(
                        f"IOMMU domain {number} cannot have the mapping {mapping!r}, or one more "
                        f"than {MAPPINGS_MOST} in all; {NOT_WHOLE}"
                    )

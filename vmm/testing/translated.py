"""Guest memory as a device behind the IOMMU sees it: neighbours for it, not in RAM.

memory = TranslatedMemory()
driver = SplitDriver(memory, 256)
queue = Virtqueue(memory.map(), driver.state, endpoint=memory.endpoint)
"""

from __future__ import annotations

from vmm.kvm_cffi import Access, IommuDomain, IommuEndpoint, Mapping
from vmm.testing.memory import FakeMemory

PAGE = 4096


class TranslatedMemory(FakeMemory):
    """RAM whose addresses are a device's; page n of them is the nth page of RAM from its end.

    ``domain`` has a mapping a page, and ``endpoint`` is in it.
    """

    def __init__(self, pages: int = 256) -> None:
        super().__init__((0, pages * PAGE))
        self._pages = pages
        self.domain = IommuDomain()
        self.endpoint = IommuEndpoint()
        for page in range(pages):
            self.domain.map(self.mapping(page))
        self.endpoint.enter(self.domain)

    def mapping(self, page: int, access: Access = Access.READ | Access.WRITE) -> Mapping:
        """What maps a page."""
        first = page * PAGE
        return Mapping(first, first + PAGE - 1, self._backing(page), access)

    def leading(self, gpa: int, size: int) -> memoryview | None:
        """View the part of a range that lies in the page where it begins, None if not RAM."""
        page, offset = divmod(gpa, PAGE)
        return super().leading(self._backing(page) + offset, min(size, PAGE - offset))

    def _backing(self, page: int) -> int:
        return (self._pages - 1 - page) * PAGE

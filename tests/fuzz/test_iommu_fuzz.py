"""Nothing that a guest asks of the IOMMU raises, and what it then has holds together.

A driver makes requests, whole or broken, while a device behind the IOMMU works by what comes of
them; both may be reset. The worst is a device that needs a reset.
"""

from __future__ import annotations

import os
import struct

import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz.test_small_devices_fuzz import Hostile
from vmm.machine.iommu import BehindIommu
from vmm.pci.bdf import Bdf
from vmm.testing.memory import FakeMemory
from vmm.testing.virtio_pci import driven
from vmm.virtio.iommu import Iommu
from vmm.virtio.rng import Rng
from vmm.virtio.spec import Status

RAM_BYTES = 8 << 20
FIRST, SECOND = Bdf(0, 0, 2, 0), Bdf(1, 0, 3, 0)

DOMAINS = st.integers(0, 2)
ENDPOINTS = st.sampled_from([0x10, 0x1_0018, 0x18])
PAGES = st.one_of(st.integers(0, 8), st.sampled_from([1 << 51, (1 << 52) - 1])).map(
    lambda page: page << 12
)
LASTS = st.one_of(PAGES, st.sampled_from([RAM_BYTES, 1 << 64])).map(
    lambda end: (end - 1) % (1 << 64)
)
FLAGS = st.one_of(st.integers(0, 3), st.integers(0, (1 << 32) - 1))
RESERVED = st.sampled_from([bytes(8), bytes(8), bytes(8), b"\1" * 8])

REQUESTS = st.one_of(
    st.builds(
        lambda *fields: struct.pack("<B3xIII4s", 1, *fields), DOMAINS, ENDPOINTS, FLAGS, RESERVED
    ),
    st.builds(lambda *fields: struct.pack("<B3xII8s", 2, *fields), DOMAINS, ENDPOINTS, RESERVED),
    st.builds(
        lambda *fields: struct.pack("<B3xIQQQI", 3, *fields), DOMAINS, PAGES, LASTS, PAGES, FLAGS
    ),
    st.builds(
        lambda *fields: struct.pack("<B3xIQQ4s", 4, *fields), DOMAINS, PAGES, LASTS, RESERVED
    ),
    st.builds(lambda endpoint: struct.pack("<B3xI64x", 5, endpoint), ENDPOINTS),
    st.binary(max_size=80),
)
ASKED = st.tuples(
    st.just("ask"),
    REQUESTS,
    st.sampled_from([0, 2]),
    st.sampled_from([4, 4, 4, 4, 4, 28, 28, 28, 0, 40]),
)
ACTIONS = st.lists(
    st.one_of(
        ASKED,
        ASKED,
        ASKED,
        st.tuples(st.just("use"), st.sampled_from([1, 16, 5000])),
        st.tuples(st.just("take_faults"), st.sampled_from([0, 8, 24, 64])),
        st.tuples(st.just("bypass"), st.integers(0, 2)),
        st.tuples(st.sampled_from(["reset_iommu", "reset_device"])),
    ),
    max_size=25,
)


class Guest:
    """Both drivers."""

    def __init__(self, iommu: Hostile, device: Hostile) -> None:
        self._iommu, self._device = iommu, device

    async def ask(self, request: bytes, cut: int, room: int) -> None:
        await self._iommu.add(0, [request[: len(request) - cut]], [room])

    async def use(self, size: int) -> None:
        await self._device.add(0, [], [size])

    async def take_faults(self, size: int) -> None:
        await self._iommu.add(1, [], [size])

    async def bypass(self, value: int) -> None:
        await self._iommu.config(36, 1, value)

    async def reset_iommu(self) -> None:
        await self._iommu.reset()

    async def reset_device(self) -> None:
        await self._device.reset()


def check(iommu: Iommu) -> None:
    """Mappings are disjoint and counted, and another IOMMU can take all of it over."""
    state = iommu.save()
    domains = state["domains"]
    assert isinstance(domains, list)
    count = 0
    for domain in domains:
        assert domain["endpoints"]
        before = -1
        for first, last, _, _ in domain["mappings"] or ():
            assert before < first <= last < 1 << 64
            before = last
            count += 1
    assert iommu.counters["mappings"] == count
    other = Iommu("__iommu")
    other.load(state)
    assert other.save() == state


async def play(source: int, actions: list[tuple[object, ...]]) -> None:
    memory = FakeMemory((0, RAM_BYTES))
    iommu = Iommu("__iommu")
    behind, other = BehindIommu(iommu), BehindIommu(iommu)
    rng = Rng("__rng", source, "/dev/zero")
    with behind.joined(FIRST), other.joined(SECOND):
        async with driven(iommu, memory) as first, driven(rng, memory, behind) as second:
            guest = Guest(Hostile(first), Hostile(second))
            await guest.reset_iommu()
            await guest.reset_device()
            for name, *arguments in actions:
                await getattr(guest, str(name))(*arguments)
                check(iommu)
            # Whatever it was, resets mend it.
            await guest.bypass(1)
            await guest.reset_iommu()
            await guest.reset_device()
            for bench in (first, second):
                assert not bench.driver.status & Status.NEEDS_RESET


@settings(max_examples=150, deadline=None)
@given(ACTIONS)
def test_no_request_breaks_more_than_its_device(actions: list[tuple[object, ...]]) -> None:
    source = os.open("/dev/zero", os.O_RDONLY)
    try:
        trio.run(play, source, actions)
    finally:
        os.close(source)

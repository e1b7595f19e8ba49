"""MSI-X: the table and its masks, and the sources that are led to its vectors."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator

import pytest

from vmm.errors import ConfigError, InternalError
from vmm.machine.msi import MsixSources
from vmm.pci.msix import ENABLE, FUNCTION_MASK, Message, Msix, VectorChanged
from vmm.testing.virtio_pci import FakeRoutes

ADDRESS = 0xFEE0_1000


def program(msix: Msix, vector: int, *, masked: bool = False, data: int = 0x41) -> None:
    for at, word in enumerate((ADDRESS, 0, data, masked)):
        msix.write_table(16 * vector + 4 * at, 4, word)


def test_vectors_begin_masked_and_read_back_so() -> None:
    msix = Msix(2)

    assert msix.read_table(12, 4) == msix.read_table(28, 4) == 1
    assert msix.read_table(0, 8) == 0
    assert msix.write_control(ENABLE) == []


def test_capability_names_the_table_and_the_pending_bits() -> None:
    body, writable = Msix(5).capability(0, 0x8000, 0x48000)

    assert struct.unpack("<HII", body) == (4, 0x8000, 0x48000)
    assert writable == struct.pack("<H", 0xC000)


def test_unmasking_an_entry_says_what_it_delivers() -> None:
    msix = Msix(2)
    msix.write_control(ENABLE)
    for at, word in enumerate((ADDRESS, 0, 0x41)):
        assert msix.write_table(16 + 4 * at, 4, word) == []

    assert msix.write_table(28, 4, 0) == [VectorChanged(1, Message(ADDRESS, 0x41))]
    assert msix.write_table(24, 4, 0x42) == [VectorChanged(1, Message(ADDRESS, 0x42))]
    assert msix.write_table(24, 4, 0x42) == []
    assert msix.write_table(28, 4, 1) == [VectorChanged(1, None)]


def test_function_mask_and_enable_act_on_every_vector() -> None:
    msix = Msix(3)
    for vector in (0, 2):
        program(msix, vector)
    both = [VectorChanged(0, Message(ADDRESS, 0x41)), VectorChanged(2, Message(ADDRESS, 0x41))]
    none = [VectorChanged(0, None), VectorChanged(2, None)]

    assert msix.write_control(ENABLE | FUNCTION_MASK) == []
    assert msix.write_control(ENABLE) == both
    assert msix.write_control(ENABLE | FUNCTION_MASK) == none
    assert msix.write_control(ENABLE) == both
    assert msix.write_control(0) == none


def test_entry_written_by_quadwords_is_taken() -> None:
    msix = Msix(1)
    msix.write_control(ENABLE)

    msix.write_table(0, 8, ADDRESS)

    assert msix.write_table(8, 8, 0x55) == [VectorChanged(0, Message(ADDRESS, 0x55))]
    assert msix.read_table(8, 8) == 0x55


def test_reserved_bits_of_an_entry_stay_zero() -> None:
    msix = Msix(1)

    msix.write_table(0, 8, (1 << 64) - 1)
    msix.write_table(12, 4, 0xFFFF_FFFF)

    assert msix.read_table(0, 8) == (1 << 64) - 4
    assert msix.read_table(12, 4) == 1


@pytest.mark.parametrize(("offset", "size"), [(12, 1), (12, 2), (13, 4), (4, 8), (32, 4), (-4, 4)])
def test_write_of_no_whole_word_or_past_the_end_is_dropped(offset: int, size: int) -> None:
    msix = Msix(2)
    msix.write_control(ENABLE)

    assert msix.write_table(offset, size, 0) == []
    assert msix.read_table(0, 8) == 0
    assert msix.read_table(12, 4) == msix.read_table(28, 4) == 1


def test_pending_bits_are_those_of_masked_vectors_only() -> None:
    msix = Msix(70)
    msix.write_control(ENABLE)
    program(msix, 3)
    pending = {3, 5, 65}

    assert msix.read_pba(0, 8, pending.__contains__) == 1 << 5
    assert msix.read_pba(0, 4, pending.__contains__) == 1 << 5
    assert msix.read_pba(8, 8, pending.__contains__) == 1 << 1
    assert msix.read_pba(0x1000, 8, pending.__contains__) == 0


def test_reset_masks_everything() -> None:
    msix = Msix(1)
    msix.write_control(ENABLE)
    program(msix, 0)

    assert msix.reset() == [VectorChanged(0, None)]
    assert not msix.is_enabled
    assert msix.read_table(0, 8) == 0
    assert msix.read_table(12, 4) == 1


@pytest.mark.parametrize("vectors", [0, 2049])
def test_table_of_a_size_that_cannot_be_is_an_internal_error(vectors: int) -> None:
    with pytest.raises(InternalError, match=str(vectors)):
        Msix(vectors)


@pytest.fixture
def routes() -> FakeRoutes:
    return FakeRoutes()


@pytest.fixture
def sources(routes: FakeRoutes) -> Iterator[MsixSources]:
    with MsixSources(routes, 3) as made:
        yield made


def unmasked(vector: int, data: int = 0x41) -> VectorChanged:
    return VectorChanged(vector, Message(ADDRESS, data))


def test_source_is_attached_when_its_vector_is_unmasked(
    routes: FakeRoutes, sources: MsixSources
) -> None:
    sources.lead(1, 7)
    assert routes.attached == {}

    sources.apply([unmasked(7)])

    assert routes.attached == {sources.fds[1]: 24}
    assert routes.messages == {24: Message(ADDRESS, 0x41)}


def test_gsis_are_taken_at_the_first_unmasking_and_kept(
    routes: FakeRoutes, sources: MsixSources
) -> None:
    sources.apply([unmasked(5)])
    sources.apply([VectorChanged(5, None), unmasked(2)])
    sources.lead(0, 5)
    sources.apply([unmasked(5, 0x99)])

    assert routes.attached == {sources.fds[0]: 24}
    assert routes.messages == {24: Message(ADDRESS, 0x99), 25: Message(ADDRESS, 0x41)}


def test_sources_that_share_a_vector_raise_one_gsi(
    routes: FakeRoutes, sources: MsixSources
) -> None:
    sources.lead(0, 1)
    sources.lead(2, 1)
    sources.apply([unmasked(1)])

    assert routes.attached == {sources.fds[0]: 24, sources.fds[2]: 24}


def test_event_of_a_masked_vector_stays_pending(routes: FakeRoutes, sources: MsixSources) -> None:
    sources.lead(0, 0)
    sources.apply([unmasked(0)])
    sources.apply([VectorChanged(0, None)])
    assert not sources.is_pending(0)

    sources.signal(0)

    assert sources.is_pending(0)
    assert not sources.is_pending(1)
    assert routes.attached == {}
    assert os.eventfd_read(sources.fds[0]) == 1


def test_source_led_elsewhere_leaves_its_vector(routes: FakeRoutes, sources: MsixSources) -> None:
    sources.lead(0, 0)
    sources.apply([unmasked(0), unmasked(1)])

    sources.lead(0, 1)
    assert routes.attached == {sources.fds[0]: 25}

    sources.lead(0, None)
    assert routes.attached == {}


def test_event_raised_while_there_was_no_vector_is_forgotten(sources: MsixSources) -> None:
    sources.signal(0)

    sources.lead(0, 0)

    assert not sources.is_pending(0)


@pytest.mark.parametrize("address", [0, 0xFEF0_0000, 0x1_FEE0_0000, 0xFED0_0000])
def test_message_that_is_no_interrupt_is_never_routed(
    routes: FakeRoutes, sources: MsixSources, address: int
) -> None:
    sources.lead(0, 0)

    sources.apply([VectorChanged(0, Message(address, 0x41))])

    assert not routes.messages
    assert not routes.attached


def test_vector_without_a_gsi_left_stays_masked(routes: FakeRoutes) -> None:
    def none_left() -> int:
        raise ConfigError("All interrupt routes are taken")

    with MsixSources(routes, 1) as sources:
        sources.lead(0, 0)
        routes.allocate_gsi = none_left  # type: ignore[method-assign]
        sources.apply([unmasked(0)])

        assert routes.attached == {}


def test_close_gives_everything_back(routes: FakeRoutes) -> None:
    with MsixSources(routes, 2) as sources:
        fds = sources.fds
        sources.lead(0, 0)
        sources.apply([unmasked(0)])

    assert not routes.attached
    assert not routes.messages
    for fd in fds:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)

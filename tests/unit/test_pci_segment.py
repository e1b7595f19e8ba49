"""A PCI segment: slots, the shadow that the guest reads, and the two ways to write to it."""

from __future__ import annotations

import mmap

import pytest

from vmm.errors import ConfigError, DuplicateError, InternalError
from vmm.pci.access import ConfigPorts, Ecam
from vmm.pci.bdf import Bdf
from vmm.pci.configuration import COMMAND, Configuration, Identity
from vmm.pci.segment import SHADOW_SIZE, SLOT_STRIDE, Segment

ENABLE = 1 << 31


class RecordingFunction:
    """A function that remembers what was written to it."""

    def __init__(self) -> None:
        self.configuration = Configuration(
            Identity(vendor=0x1AF4, device=0x1044, class_code=0xFF, subclass=0xFF)
        )
        self.writes: list[tuple[int, int, int]] = []

    def write_configuration(self, offset: int, size: int, value: int) -> None:
        self.writes.append((offset, size, value))
        self.configuration.write(offset, size, value)


class FixedAddress:
    def __init__(self, address: int) -> None:
        self.address = address


def make_segment(id: int = 0) -> tuple[Segment, bytearray]:
    shadow = bytearray(SHADOW_SIZE)
    return Segment(id, memoryview(shadow)), shadow


def test_bdf_is_written_in_hexadecimal() -> None:
    bdf = Bdf(segment=0x5F, bus=0, device=0x1E, function=1)

    assert str(bdf) == "005f:00:1e.1"
    assert int(bdf) == 0xF1


def test_segment_0_has_the_host_bridge_and_nothing_else() -> None:
    segment, shadow = make_segment()

    assert shadow[:4] == bytes.fromhex("8680570d")
    assert segment.read(8, 4) == 0x0600_0000
    assert shadow[4096:] == b"\xff" * (SHADOW_SIZE - 4096)


def test_segment_other_than_0_is_empty() -> None:
    segment, shadow = make_segment(1)

    assert list(segment.functions()) == []
    assert shadow == b"\xff" * SHADOW_SIZE


def test_segment_over_a_shadow_of_another_size_is_refused() -> None:
    with pytest.raises(InternalError, match="4096 bytes"):
        Segment(0, memoryview(bytearray(4096)))


def test_add_without_a_slot_takes_the_lowest_that_is_free() -> None:
    segment, _ = make_segment()
    segment.reserve(2)
    segment.add(RecordingFunction(), 3)

    taken = [segment.add(RecordingFunction()) for _ in range(2)]

    assert [str(bdf) for bdf in taken] == ["0000:00:01.0", "0000:00:04.0"]


def test_add_on_another_segment_can_take_slot_0() -> None:
    segment, _ = make_segment(2)

    assert str(segment.add(RecordingFunction())) == "0002:00:00.0"


def test_add_to_a_reserved_slot_uses_the_reservation() -> None:
    segment, _ = make_segment()
    segment.reserve(5)

    assert segment.add(RecordingFunction(), 5).device == 5
    with pytest.raises(DuplicateError, match=r"0000:00:05\.0 is taken"):
        segment.add(RecordingFunction(), 5)


@pytest.mark.parametrize("slot", [-1, 32])
def test_reserve_of_no_slot_is_refused(slot: int) -> None:
    segment, _ = make_segment()

    with pytest.raises(ConfigError, match="not within 0 and 31"):
        segment.reserve(slot)


def test_reserve_of_the_host_bridge_s_slot_is_refused() -> None:
    segment, _ = make_segment()

    with pytest.raises(DuplicateError, match="choose another"):
        segment.reserve(0)


def test_add_to_a_full_segment_is_refused_with_the_way_out() -> None:
    segment, _ = make_segment()
    for _ in range(31):
        segment.add(RecordingFunction())

    with pytest.raises(ConfigError, match="another segment"):
        segment.add(RecordingFunction())


def test_remove_empties_the_slot_and_the_function_keeps_its_bytes() -> None:
    segment, shadow = make_segment()
    function = RecordingFunction()
    bdf = segment.add(function)
    segment.write(SLOT_STRIDE + COMMAND, 2, 4)

    removed = segment.remove(bdf.device)

    assert removed is function
    assert shadow[SLOT_STRIDE : SLOT_STRIDE + 4096] == b"\xff" * 4096
    assert function.configuration.read(COMMAND, 2) == 4
    assert segment.add(RecordingFunction()) == bdf


def test_remove_of_an_empty_slot_is_refused() -> None:
    segment, _ = make_segment()

    with pytest.raises(InternalError, match="is empty"):
        segment.remove(7)


def test_close_leaves_no_view_of_the_shadow_and_functions_their_bytes() -> None:
    with mmap.mmap(-1, SHADOW_SIZE) as mapping:
        segment = Segment(0, memoryview(mapping))
        function = RecordingFunction()
        segment.add(function)

        segment.close()

    assert mapping.closed
    assert function.configuration.read(0, 4) == 0x1044_1AF4


def test_functions_are_given_by_slot() -> None:
    segment, _ = make_segment()
    late, early = RecordingFunction(), RecordingFunction()
    segment.add(late, 9)
    segment.add(early)

    assert list(segment.functions())[1:] == [
        (Bdf(0, 0, 1, 0), early),
        (Bdf(0, 0, 9, 0), late),
    ]


@pytest.mark.parametrize(
    ("offset", "size", "value", "expected"),
    [
        (4, 2, 0x1234, [(4, 2, 0x1234)]),
        (4, 8, 0x1122334455667788, [(4, 4, 0x55667788), (8, 4, 0x11223344)]),
        (6, 4, 0x11223344, [(6, 2, 0x3344), (8, 2, 0x1122)]),
        (0xFFC, 8, 0x1122334455667788, [(0xFFC, 4, 0x55667788)]),
        (0x1004, 4, 1, []),
    ],
)
def test_write_reaches_the_function_in_pieces_of_one_register(
    offset: int, size: int, value: int, expected: list[tuple[int, int, int]]
) -> None:
    segment, _ = make_segment()
    function = RecordingFunction()
    segment.add(function, 3)

    segment.write(3 * SLOT_STRIDE + offset, size, value)

    assert function.writes == expected


def test_write_to_an_empty_slot_leaves_all_ones() -> None:
    segment, _ = make_segment()

    segment.write(4 * SLOT_STRIDE, 4, 0)

    assert segment.read(4 * SLOT_STRIDE, 4) == 0xFFFF_FFFF


def test_read_past_the_end_gives_all_ones() -> None:
    segment, _ = make_segment()

    assert segment.read(SHADOW_SIZE, 4) == 0xFFFF_FFFF
    assert segment.read(SHADOW_SIZE - 2, 8) == 0xFFFF_FFFF_FFFF_FFFF


def test_ecam_reads_and_writes_the_segment() -> None:
    segment, _ = make_segment()
    function = RecordingFunction()
    segment.add(function, 1)
    ecam = Ecam(segment)

    ecam.write(SLOT_STRIDE + COMMAND, 2, 7)

    assert ecam.read(SLOT_STRIDE + COMMAND, 2) == 7
    assert function.writes == [(COMMAND, 2, 7)]


@pytest.mark.parametrize(
    ("address", "offset", "size", "expected"),
    [
        (ENABLE | 1 << 11 | 0x04, 0, 4, 0x0010_0000),
        (ENABLE | 1 << 11 | 0x07, 2, 2, 0x0010),
        (ENABLE | 1 << 11 | 0x00, 1, 1, 0x1A),
        (1 << 11, 0, 4, 0xFFFF_FFFF),
        (ENABLE | 1 << 16 | 1 << 11, 0, 4, 0xFFFF_FFFF),
        (ENABLE | 1 << 11 | 1 << 8, 0, 4, 0xFFFF_FFFF),
        (ENABLE | 1 << 11, 2, 4, 0xFFFF_FFFF),
    ],
)
def test_config_ports_read_what_the_address_selects(
    address: int, offset: int, size: int, expected: int
) -> None:
    segment, _ = make_segment()
    function = RecordingFunction()
    function.configuration.add_capability(0x09, bytes(2))
    segment.add(function, 1)

    assert ConfigPorts(FixedAddress(address), segment).read(offset, size) == expected


@pytest.mark.parametrize(
    ("address", "offset", "size", "expected"),
    [
        (ENABLE | 1 << 11 | COMMAND, 0, 4, [(COMMAND, 4, 7)]),
        (ENABLE | 1 << 11 | COMMAND, 1, 1, [(COMMAND + 1, 1, 7)]),
        (1 << 11 | COMMAND, 0, 4, []),
        (ENABLE | 1 << 16 | 1 << 11 | COMMAND, 0, 4, []),
        (ENABLE | 1 << 11 | 1 << 8 | COMMAND, 0, 4, []),
        (ENABLE | 1 << 11 | COMMAND, 3, 2, []),
    ],
)
def test_config_ports_write_what_the_address_selects(
    address: int, offset: int, size: int, expected: list[tuple[int, int, int]]
) -> None:
    segment, _ = make_segment()
    function = RecordingFunction()
    segment.add(function, 1)

    ConfigPorts(FixedAddress(address), segment).write(offset, size, 7)

    assert function.writes == expected

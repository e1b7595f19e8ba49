"""A function's configuration space: identity, masks, BARs, capabilities, events."""

from __future__ import annotations

import pytest

from vmm.errors import InternalError
from vmm.pci.bar import Bar, BarKind
from vmm.pci.configuration import (
    COMMAND,
    INTERRUPT_LINE,
    BarMoved,
    CapabilityWritten,
    Command,
    CommandChanged,
    Configuration,
    Identity,
)

IDENTITY = Identity(
    vendor=0x1AF4,
    device=0x1042,
    class_code=0x01,
    subclass=0x80,
    programming_interface=0x02,
    revision=1,
    subsystem_vendor=0x1AF4,
    subsystem=0x1042,
)
BAR0 = 0x10
ALL_ONES = 0xFFFF_FFFF
HIGH = 0x3F_FF80_0000
LOW = 0xE000_0000
MSIX = 0x11


def with_bar(kind: BarKind, size: int, address: int) -> tuple[Configuration, Bar]:
    configuration = Configuration(IDENTITY)
    bar = Bar(0, kind, size)
    configuration.add_bar(bar, address)
    return configuration, bar


def test_identity_is_laid_out_as_a_type_0_header() -> None:
    configuration = Configuration(IDENTITY)

    assert configuration.read(0x00, 4) == 0x1042_1AF4
    assert configuration.read(0x08, 4) == 0x0180_0201
    assert configuration.read(0x0E, 1) == 0
    assert configuration.read(0x2C, 4) == 0x1042_1AF4
    assert configuration.read(0x34, 1) == 0


@pytest.mark.parametrize("offset", [0x00, 0x04, 0x08, 0x0C, 0x10, 0x2C, 0x34, 0x3C, 0x40, 0x100])
def test_write_of_all_ones_changes_only_the_bits_that_can_be_written(offset: int) -> None:
    configuration = Configuration(IDENTITY)
    writable = {0x04: 0x0547, 0x0C: 0xFF, 0x3C: 0xFF}.get(offset, 0)
    before = configuration.read(offset, 4)

    configuration.write(offset, 4, ALL_ONES)

    assert configuration.read(offset, 4) == before | writable


def test_write_of_one_byte_leaves_its_neighbours() -> None:
    configuration = Configuration(IDENTITY)
    configuration.write(COMMAND, 2, 0x0547)

    configuration.write(COMMAND + 1, 1, 0)
    configuration.write(INTERRUPT_LINE, 1, 11)

    assert configuration.read(COMMAND, 2) == 0x47
    assert configuration.read(INTERRUPT_LINE, 4) == 11


def test_write_of_the_command_register_gives_the_change_once() -> None:
    configuration = Configuration(IDENTITY)

    first = configuration.write(COMMAND, 2, Command.BUS_MASTER)
    second = configuration.write(COMMAND, 2, Command.BUS_MASTER)

    assert first == [CommandChanged(Command(0), Command.BUS_MASTER)]
    assert second == []


def test_bar_of_64_bits_is_placed_and_decoded_from_the_start() -> None:
    configuration, bar = with_bar(BarKind.MEMORY64, 512 << 10, HIGH)

    assert configuration.read(BAR0, 8) == HIGH | 0x4
    assert configuration.command == Command.MEMORY
    assert bar.address == HIGH


def test_bar_of_io_is_decoded_from_the_start_and_others_are_not_touched() -> None:
    configuration, memory = with_bar(BarKind.MEMORY32, 4096, LOW)
    ports = Bar(1, BarKind.IO, 64)

    configuration.add_bar(ports, 0xC000)

    assert configuration.read(BAR0 + 4, 4) == 0xC001
    assert configuration.command == Command.MEMORY | Command.IO
    assert (memory.address, ports.address) == (LOW, 0xC000)


def test_bar_that_is_prefetchable_says_so() -> None:
    configuration = Configuration(IDENTITY)

    configuration.add_bar(Bar(2, BarKind.MEMORY64, 4096, is_prefetchable=True), HIGH)

    assert configuration.read(BAR0 + 8, 4) & 0xF == 0xC


@pytest.mark.parametrize(
    ("kind", "size", "address", "shown"),
    [
        (BarKind.MEMORY32, 16, LOW, 0xFFFF_FFF0),
        (BarKind.MEMORY32, 512 << 10, LOW, 0xFFF8_0000),
        (BarKind.IO, 8, 0xC000, 0xFFFF_FFF9),
    ],
)
def test_probe_shows_the_size_in_plain_memory(
    kind: BarKind, size: int, address: int, shown: int
) -> None:
    configuration, _ = with_bar(kind, size, address)

    configuration.write(BAR0, 4, ALL_ONES)

    assert configuration.read(BAR0, 4) == shown


@pytest.mark.parametrize(
    ("size", "shown"), [(512 << 10, 0xFFFF_FFFF_FFF8_0004), (16 << 30, 0xFFFF_FFFC_0000_0004)]
)
def test_probe_of_64_bits_shows_the_size_over_both_registers(size: int, shown: int) -> None:
    configuration, _ = with_bar(BarKind.MEMORY64, size, 1 << 40)

    configuration.write(BAR0, 4, ALL_ONES)
    configuration.write(BAR0 + 4, 4, ALL_ONES)

    assert configuration.read(BAR0, 8) == shown


def test_probe_with_decoding_on_takes_the_bar_away_until_it_is_restored() -> None:
    configuration, bar = with_bar(BarKind.MEMORY64, 512 << 10, HIGH)

    away = configuration.write(BAR0, 4, ALL_ONES)
    still = configuration.write(BAR0 + 4, 4, ALL_ONES)
    half = configuration.write(BAR0, 4, HIGH & ALL_ONES)
    back = configuration.write(BAR0 + 4, 4, HIGH >> 32)

    assert away == [BarMoved(0, HIGH, None)]
    assert still == half == []
    assert back == [BarMoved(0, None, HIGH)]
    assert bar.address == HIGH


def test_move_to_the_address_that_a_probe_would_show_is_no_probe() -> None:
    configuration, bar = with_bar(BarKind.MEMORY32, 512 << 10, LOW)

    events = configuration.write(BAR0, 4, 0xFFF8_0000)

    assert events == [BarMoved(0, LOW, 0xFFF8_0000)]
    assert bar.address == 0xFFF8_0000


def test_move_with_decoding_on_gives_both_addresses() -> None:
    configuration, bar = with_bar(BarKind.MEMORY32, 4096, LOW)

    events = configuration.write(BAR0, 4, LOW + 0x1234)

    assert events == [BarMoved(0, LOW, LOW + 0x1000)]
    assert bar.address == LOW + 0x1000


def test_move_with_decoding_off_shows_when_it_is_turned_on() -> None:
    configuration, _ = with_bar(BarKind.MEMORY64, 4096, HIGH)

    off = configuration.write(COMMAND, 2, 0)
    low = configuration.write(BAR0, 4, 0x8000)
    high = configuration.write(BAR0 + 4, 4, 1)
    on = configuration.write(COMMAND, 2, Command.MEMORY)

    assert off == [CommandChanged(Command.MEMORY, Command(0)), BarMoved(0, HIGH, None)]
    assert low == high == []
    assert on == [CommandChanged(Command(0), Command.MEMORY), BarMoved(0, None, 0x1_0000_8000)]


def test_memory_enable_leaves_io_bars_off() -> None:
    configuration, ports = with_bar(BarKind.IO, 8, 0xC000)

    events = configuration.write(COMMAND, 2, Command.MEMORY)

    assert BarMoved(0, 0xC000, None) in events
    assert ports.address is None


def test_capabilities_are_linked_in_order_on_aligned_positions() -> None:
    configuration = Configuration(IDENTITY)

    first = configuration.add_capability(0x09, bytes(3))
    second = configuration.add_capability(MSIX, b"\x01\x00" + bytes(8))

    assert (first, second) == (0x40, 0x48)
    assert configuration.read(0x06, 2) == 1 << 4
    assert configuration.read(0x34, 1) == first
    assert configuration.read(first, 2) == second << 8 | 0x09
    assert configuration.read(second, 4) == 0x0001_0011


def test_write_of_msix_control_gives_an_event_and_keeps_the_table_size() -> None:
    configuration = Configuration(IDENTITY)
    configuration.add_capability(0x09, bytes(14))
    position = configuration.add_capability(
        MSIX, b"\x01\x00" + bytes(8), writable=(0xC000).to_bytes(2, "little")
    )

    narrow = configuration.write(position + 2, 2, 0x8000)
    wide = configuration.write(position, 4, 0xFFFF_FFFF)

    assert narrow == wide == [CapabilityWritten(MSIX, position)]
    assert configuration.read(position, 4) == 0xC001_0011


def test_write_of_read_only_capability_bytes_gives_no_event() -> None:
    configuration = Configuration(IDENTITY)
    position = configuration.add_capability(MSIX, bytes(10), writable=b"\x00\xc0")

    assert configuration.write(position + 4, 4, ALL_ONES) == []


def test_capability_past_the_header_page_is_refused() -> None:
    configuration = Configuration(IDENTITY)
    configuration.add_capability(0x09, bytes(100))

    with pytest.raises(InternalError, match="does not fit"):
        configuration.add_capability(0x09, bytes(100))


def test_move_to_keeps_the_bytes_and_writes_to_the_new_place() -> None:
    configuration, _ = with_bar(BarKind.MEMORY32, 4096, LOW)
    place = bytearray(b"\xff" * 4096)

    configuration.move_to(memoryview(place))
    configuration.write(BAR0, 4, ALL_ONES)

    assert place[:4] == bytes.fromhex("f41a4210")
    assert place[BAR0 : BAR0 + 4] == bytes.fromhex("00f0ffff")
    assert not any(place[0x40:])


def test_set_changes_bytes_that_the_guest_cannot() -> None:
    configuration = Configuration(IDENTITY)

    configuration.set(0x3D, b"\x01")

    assert configuration.read(0x3C, 4) == 0x100


@pytest.mark.parametrize(
    ("index", "kind", "size"),
    [
        (0, BarKind.MEMORY32, 8),
        (0, BarKind.MEMORY32, 48),
        (0, BarKind.MEMORY32, 1 << 32),
        (0, BarKind.IO, 2),
        (6, BarKind.MEMORY32, 16),
        (5, BarKind.MEMORY64, 16),
        (-1, BarKind.IO, 8),
    ],
)
def test_bar_that_cannot_be_is_refused(index: int, kind: BarKind, size: int) -> None:
    with pytest.raises(InternalError, match="BAR"):
        Bar(index, kind, size)


@pytest.mark.parametrize("address", [LOW + 0x800, 1 << 32, -4096])
def test_bar_at_an_address_that_does_not_suit_it_is_refused(address: int) -> None:
    with pytest.raises(InternalError, match="cannot lie"):
        with_bar(BarKind.MEMORY32, 4096, address)


@pytest.mark.parametrize("index", [0, 1])
def test_bar_over_another_is_refused(index: int) -> None:
    configuration, _ = with_bar(BarKind.MEMORY64, 4096, HIGH)

    with pytest.raises(InternalError, match="overlaps"):
        configuration.add_bar(Bar(index, BarKind.MEMORY32, 4096), LOW)

"""The IOAPIC: registers, and the routes that redirection entries make."""

from __future__ import annotations

import pytest

from vmm.errors import ConfigError
from vmm.legacy.ioapic import Ioapic, message_of
from vmm.legacy.saved import SavedIoapic

MASKED = 1 << 16
LEVEL = 1 << 15
REMOTE_IRR = 1 << 14
DELIVERY_STATUS = 1 << 12


class Routes:
    """The calls that a redirection entry led to, and the pins that are let through."""

    def __init__(self) -> None:
        self.calls: list[tuple[object, ...]] = []

    def set_route(self, pin: int, address: int, data: int) -> None:
        self.calls.append(("route", pin, address, data))

    def mask(self, pin: int) -> None:
        self.calls.append(("mask", pin))

    def unmask(self, pin: int) -> None:
        self.calls.append(("unmask", pin))


@pytest.fixture
def routes() -> Routes:
    return Routes()


@pytest.fixture
def ioapic(routes: Routes) -> Ioapic:
    return Ioapic(routes)


def read(ioapic: Ioapic, register: int) -> int:
    ioapic.write(0x00, 4, register)
    return ioapic.read(0x10, 4)


def write(ioapic: Ioapic, register: int, value: int) -> None:
    ioapic.write(0x00, 4, register)
    ioapic.write(0x10, 4, value)


def write_entry(ioapic: Ioapic, pin: int, entry: int) -> None:
    write(ioapic, 0x11 + 2 * pin, entry >> 32)
    write(ioapic, 0x10 + 2 * pin, entry & 0xFFFF_FFFF)


@pytest.mark.parametrize(
    ("register", "value"),
    [(0x00, 0), (0x01, 0x0017_0011), (0x02, 0), (0x10, MASKED), (0x11, 0), (0x3E, MASKED)],
)
def test_ioapic_register_after_reset(ioapic: Ioapic, register: int, value: int) -> None:
    assert read(ioapic, register) == value


@pytest.mark.parametrize("register", [0x03, 0x0F, 0x40, 0xFF])
def test_ioapic_register_that_does_not_exist_reads_zero(ioapic: Ioapic, register: int) -> None:
    write(ioapic, register, 0xFFFF_FFFF)

    assert read(ioapic, register) == 0


def test_ioapic_id_keeps_four_bits_and_version_is_read_only(ioapic: Ioapic) -> None:
    write(ioapic, 0x00, 0xFFFF_FFFF)
    write(ioapic, 0x01, 0xFFFF_FFFF)

    assert read(ioapic, 0x00) == read(ioapic, 0x02) == 0x0F00_0000
    assert read(ioapic, 0x01) == 0x0017_0011


def test_ioapic_selected_register_reads_back(ioapic: Ioapic) -> None:
    ioapic.write(0x00, 4, 0x1234)

    assert ioapic.read(0x00, 4) == 0x34


@pytest.mark.parametrize(("offset", "size"), [(0x10, 1), (0x10, 8), (0x12, 4), (0x04, 4)])
def test_ioapic_access_of_another_shape_does_nothing(
    ioapic: Ioapic, offset: int, size: int
) -> None:
    ioapic.write(0x00, 4, 0x10)

    ioapic.write(offset, size, 0)

    assert ioapic.read(offset, size) == 0
    assert read(ioapic, 0x10) == MASKED


def test_ioapic_status_bits_of_an_entry_are_read_only(ioapic: Ioapic) -> None:
    write(ioapic, 0x10, MASKED | LEVEL | REMOTE_IRR | DELIVERY_STATUS | 0x31)

    assert read(ioapic, 0x10) == MASKED | LEVEL | 0x31


@pytest.mark.parametrize(
    ("entry", "address", "data"),
    [
        (0x31, 0xFEE0_0000, 0x31),
        (0x02 << 56 | 0x31, 0xFEE0_2000, 0x31),
        (0xFF << 56 | 1 << 11 | 1 << 8 | 0x31, 0xFEEF_F004, 0x131),
        (0x7F << 49 | 0x34 << 56 | 0x22, 0xFEE3_4FE0, 0x22),
        (1 << 49 | 0x22, 0xFEE0_0020, 0x22),
        (1 << 48 | 0x22, 0xFEE0_0000, 0x22),
        (LEVEL | 1 << 13 | 0x40, 0xFEE0_0000, 0xC040),
        (4 << 8, 0xFEE0_0000, 0x400),
        (REMOTE_IRR | DELIVERY_STATUS | 0x40, 0xFEE0_0000, 0x40),
    ],
)
def test_ioapic_entry_decodes_to_its_message(entry: int, address: int, data: int) -> None:
    assert message_of(entry) == (address, data)


def test_ioapic_masked_entry_makes_no_route(ioapic: Ioapic, routes: Routes) -> None:
    write_entry(ioapic, 4, 3 << 56 | MASKED | 0x30)

    assert routes.calls == []


def test_ioapic_unmasked_entry_is_routed_before_it_is_let_through(
    ioapic: Ioapic, routes: Routes
) -> None:
    write_entry(ioapic, 4, 3 << 56 | 0x30)

    assert routes.calls == [("route", 4, 0xFEE0_3000, 0x30), ("unmask", 4)]


def test_ioapic_entry_written_again_changes_only_what_changed(
    ioapic: Ioapic, routes: Routes
) -> None:
    write_entry(ioapic, 4, 0x30)
    routes.calls.clear()

    write_entry(ioapic, 4, 0x30)
    write_entry(ioapic, 4, 1 << 56 | 0x30)
    write_entry(ioapic, 4, 1 << 56 | MASKED | 0x30)
    write_entry(ioapic, 4, 1 << 56 | MASKED | 0x31)

    assert routes.calls == [("route", 4, 0xFEE0_1000, 0x30), ("mask", 4)]


def test_ioapic_end_of_interrupt_clears_remote_irr_of_level_pins(ioapic: Ioapic) -> None:
    for pin, entry in ((5, LEVEL | 0x50), (6, LEVEL | 0x50), (7, LEVEL | 0x51), (8, 0x50)):
        write_entry(ioapic, pin, entry)
        ioapic.mark_delivered(pin)
    held = read(ioapic, 0x10 + 2 * 5)

    ended = ioapic.end_of_interrupt(0x50)

    assert held == LEVEL | REMOTE_IRR | 0x50
    assert ended == (5, 6)
    assert read(ioapic, 0x10 + 2 * 5) == LEVEL | 0x50
    assert read(ioapic, 0x10 + 2 * 7) == LEVEL | REMOTE_IRR | 0x51
    assert read(ioapic, 0x10 + 2 * 8) == 0x50


def test_ioapic_pin_made_edge_forgets_its_remote_irr(ioapic: Ioapic) -> None:
    write_entry(ioapic, 5, LEVEL | 0x50)
    ioapic.mark_delivered(5)

    write_entry(ioapic, 5, MASKED | 0x50)
    write_entry(ioapic, 5, LEVEL | 0x50)

    assert read(ioapic, 0x10 + 2 * 5) == LEVEL | 0x50


def test_ioapic_loaded_state_sets_its_routes(ioapic: Ioapic) -> None:
    write(ioapic, 0x00, 0x0200_0000)
    write_entry(ioapic, 4, 3 << 56 | 0x30)
    write_entry(ioapic, 9, LEVEL | 0x40)
    ioapic.mark_delivered(9)
    state = ioapic.save()
    routes = Routes()

    restored = Ioapic(routes)
    restored.load(state)

    assert restored.save() == state
    assert routes.calls == [
        ("route", 4, 0xFEE0_3000, 0x30),
        ("unmask", 4),
        ("route", 9, 0xFEE0_0000, 0xC040),
        ("unmask", 9),
    ]


@pytest.mark.parametrize("entries", [(), (MASKED,) * 25])
def test_ioapic_state_of_another_shape_is_refused(ioapic: Ioapic, entries: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="24 of 64 bits are needed"):
        ioapic.load(SavedIoapic(identification=0, selected=0, entries=entries))

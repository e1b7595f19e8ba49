"""The CMOS memory and clock."""

from __future__ import annotations

import calendar

import pytest

from vmm.legacy.cmos import Cmos

MIB = 1 << 20
GIB = 1 << 30
# A Sunday, and in a century whose digits differ from the year's.
MOMENT_NS = calendar.timegm((2023, 12, 31, 23, 59, 58)) * 1_000_000_000


class Requests:
    """The guest's requests, in order."""

    def __init__(self) -> None:
        self.made: list[str] = []

    def request_reset(self) -> None:
        self.made.append("reset")

    def request_shutdown(self) -> None:
        self.made.append("shutdown")


def cmos(
    *,
    now_ns: int = MOMENT_NS,
    below: int = 3 * GIB,
    above: int = 0,
    requests: Requests | None = None,
) -> Cmos:
    return Cmos(below, above, requests or Requests(), clock=lambda: now_ns)


def register(device: Cmos, index: int) -> int:
    device.write(0, 1, index)
    return device.read(1, 1)


@pytest.mark.parametrize(
    ("index", "bcd"),
    [
        (0x00, 0x58),
        (0x02, 0x59),
        (0x04, 0x23),
        (0x06, 0x01),
        (0x07, 0x31),
        (0x08, 0x12),
        (0x09, 0x23),
        (0x32, 0x20),
    ],
)
def test_cmos_time_register_is_utc_in_decimal(index: int, bcd: int) -> None:
    assert register(cmos(), index) == bcd


@pytest.mark.parametrize(
    ("into_second_ns", "value"),
    [(0, 0x20), (999_755_999, 0x20), (999_756_000, 0xA0), (999_999_999, 0xA0)],
)
def test_cmos_register_a_announces_the_update(into_second_ns: int, value: int) -> None:
    assert register(cmos(now_ns=MOMENT_NS + into_second_ns), 0x0A) == value


def test_cmos_register_a_stopped_clock_announces_nothing() -> None:
    device = cmos(now_ns=MOMENT_NS + 999_999_999)
    device.write(0, 1, 0x0B)
    device.write(1, 1, 0x82)

    assert register(device, 0x0A) == 0x20


@pytest.mark.parametrize(("index", "value"), [(0x0B, 0x02), (0x0C, 0x00), (0x0D, 0x80)])
def test_cmos_status_register_written_keeps_what_the_clock_is(index: int, value: int) -> None:
    device = cmos()
    device.write(0, 1, index)
    device.write(1, 1, 0x7F)

    assert device.read(1, 1) == value


@pytest.mark.parametrize(
    ("below", "above", "low", "high"),
    [
        (8 * MIB, 0, 0, 0),
        (512 * MIB, 0, (496 * MIB) >> 16, 0),
        (3 * GIB, 5 * GIB, (3 * GIB - 16 * MIB) >> 16, (5 * GIB) >> 16),
        (3 * GIB, 2 << 40, (3 * GIB - 16 * MIB) >> 16, 0xFFFFFF),
    ],
)
def test_cmos_memory_registers_give_64_kib_units(
    below: int, above: int, low: int, high: int
) -> None:
    device = cmos(below=below, above=above)

    assert register(device, 0x34) | register(device, 0x35) << 8 == low
    assert sum(register(device, 0x5B + at) << 8 * at for at in range(3)) == high


def test_cmos_other_registers_are_memory_and_ignore_the_nmi_bit() -> None:
    device = cmos()
    device.write(0, 1, 0x0F)
    device.write(1, 1, 0x0A)

    assert register(device, 0x8F) == 0x0A
    assert device.read(0, 1) == 0x8F


def test_cmos_reset_index_with_zero_requests_reset() -> None:
    requests = Requests()
    device = cmos(requests=requests)

    device.write(0, 1, 0x0F)
    device.write(1, 1, 0)
    device.write(0, 1, 0x8F)
    device.write(1, 1, 1)
    assert requests.made == []
    device.write(1, 1, 0)

    assert requests.made == ["reset"]


def test_cmos_word_write_selects_and_writes() -> None:
    device = cmos()

    device.write(0, 2, 0x5A_40)

    assert register(device, 0x40) == 0x5A
    assert device.read(0, 4) == 0xFFFF_5A40

"""The bus: which handler a guest's address reaches."""

from __future__ import annotations

import pytest

from vmm.errors import InternalError
from vmm.machine.bus import Bus


class Register:
    """Remembers what was written and answers with its own number."""

    def __init__(self, value: int) -> None:
        self.value = value
        self.writes: list[tuple[int, int, int]] = []

    def read(self, offset: int, size: int) -> int:
        return self.value + offset

    def write(self, offset: int, size: int, value: int) -> None:
        self.writes.append((offset, size, value))


def test_read_inside_a_range_reaches_its_handler_with_the_offset() -> None:
    bus = Bus("port")
    bus.claim(0x100, 8, Register(0x10))
    bus.claim(0x200, 8, Register(0x20))

    assert bus.read(0x203, 1) == 0x23
    assert bus.read(0x100, 1) == 0x10


def test_write_inside_a_range_reaches_its_handler() -> None:
    bus, register = Bus("port"), Register(0)
    bus.claim(0x100, 8, register)

    bus.write(0x104, 2, 0xBEEF)

    assert register.writes == [(4, 2, 0xBEEF)]


@pytest.mark.parametrize("address", [0, 0xFF, 0x108, 1 << 63])
def test_read_outside_every_range_gives_all_ones(address: int) -> None:
    bus = Bus("port")
    bus.claim(0x100, 8, Register(0))

    assert bus.read(address, 4) == 0xFFFF_FFFF


def test_read_of_a_too_wide_answer_is_cut_to_the_access() -> None:
    bus = Bus("port")
    bus.claim(0x100, 8, Register(0x1FF))

    assert bus.read(0x100, 1) == 0xFF


@pytest.mark.parametrize(("base", "size"), [(0x100, 8), (0xF8, 9), (0x107, 1), (0x0, 0x1000)])
def test_claim_of_an_overlapping_range_is_refused(base: int, size: int) -> None:
    bus = Bus("port")
    bus.claim(0x100, 8, Register(0))

    with pytest.raises(InternalError, match="overlaps"):
        bus.claim(base, size, Register(0))


def test_release_lets_the_range_be_claimed_again() -> None:
    bus = Bus("port")
    bus.claim(0x100, 8, Register(1))
    bus.release(0x100)
    bus.claim(0x104, 8, Register(2))

    assert bus.read(0x104, 1) == 2
    with pytest.raises(InternalError, match="No port range"):
        bus.release(0x100)

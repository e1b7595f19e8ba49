"""The mechanisms without a guest."""

from __future__ import annotations

import gc
import os

import pytest

from vmm.errors import InternalError
from vmm.kvm_cffi import (
    AllOnes,
    ByteRing,
    ConfigAddress,
    Constant,
    Loop,
    PmTimer,
    Shadow,
    address_of,
)

CF8, CFC = 0, 4
BUS_BYTES = 1 << 20


def make_config() -> tuple[ConfigAddress, bytearray]:
    shadow = bytearray(b"\xff") * BUS_BYTES
    return ConfigAddress(address_of(shadow), len(shadow)), shadow


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_all_ones_reads_ones_of_each_size(size: int) -> None:
    assert AllOnes().read(0, size) == (1 << 8 * size) - 1
    assert AllOnes().write(0, 0, size)


def test_constant_is_cut_to_the_access() -> None:
    constant = Constant(0x1122_3344_5566_7788)

    assert [constant.read(3, size) for size in (1, 2, 4, 8)] == [
        0x88,
        0x7788,
        0x5566_7788,
        0x1122_3344_5566_7788,
    ]


def test_loop_declines_everything() -> None:
    assert Loop().read(0, 4) is None
    assert not Loop().write(0, 0, 4)


def test_byte_ring_takes_wide_writes_little_endian() -> None:
    with ByteRing(0) as ring:
        ring.write(0, 0x6463_6261, 4)

        assert ring.drain() == b"abcd"


def test_byte_ring_announces_only_the_step_from_empty() -> None:
    with ByteRing(0) as ring:
        ring.write(0, 1)
        ring.write(0, 2)
        first = os.eventfd_read(ring.fd)
        ring.drain()
        ring.write(0, 3)

        assert (first, os.eventfd_read(ring.fd)) == (1, 1)


def test_byte_ring_full_drops_and_counts() -> None:
    with ByteRing(0, capacity=3) as ring:
        for byte in range(5):
            ring.write(0, byte)

        assert ring.dropped == 2
        assert ring.drain() == bytes([0, 1, 2])


def test_byte_ring_wraps_without_mixing_up_bytes() -> None:
    with ByteRing(0, capacity=5) as ring:
        for start in range(0, 200, 3):
            for byte in range(start, start + 3):
                ring.write(0, byte)

            assert ring.drain() == bytes(range(start, start + 3))


def test_byte_ring_without_capacity_is_refused() -> None:
    with pytest.raises(InternalError, match="1 or more"):
        ByteRing(0, capacity=0)


def test_config_address_keeps_the_bits_that_exist() -> None:
    config, _ = make_config()
    config.write(CF8, 0xFFFF_FFFF, 4)

    assert config.address == config.read(CF8, 4) == 0x80FF_FFFC


def test_config_address_narrow_reads_see_its_bytes_and_narrow_writes_nothing() -> None:
    config, _ = make_config()
    config.write(CF8, 0x8012_3454, 4)

    config.write(CF8 + 3, 0x01)
    config.write(CF8, 0x0000, 2)

    assert [config.read(at) for at in range(4)] == [0x54, 0x34, 0x12, 0x80]
    assert config.read(2, 2) == 0x8012
    assert config.read(3, 2) == 0xFFFF


def test_config_data_reads_the_shadow_at_device_function_register() -> None:
    config, shadow = make_config()
    shadow[31 << 15 | 7 << 12 | 0xFC : (31 << 15 | 7 << 12 | 0xFC) + 4] = b"\x01\x02\x03\x04"
    config.address = 0x8000_0000 | 31 << 11 | 7 << 8 | 0xFC

    assert config.read(CFC, 4) == 0x0403_0201
    assert [config.read(CFC + at) for at in range(4)] == [1, 2, 3, 4]
    assert config.read(CFC + 2, 2) == 0x0403
    assert config.read(CFC + 1, 2) == 0x0302


@pytest.mark.parametrize("address", [0x0000_0000, 0x7FFF_FFFC, 0x8001_0000, 0x80FF_0000], ids=hex)
def test_config_data_disabled_or_on_another_bus_reads_ones(address: int) -> None:
    config, shadow = make_config()
    shadow[:] = bytes(BUS_BYTES)
    config.address = address

    assert config.read(CFC, 4) == 0xFFFF_FFFF


def test_config_data_across_the_port_end_reads_ones() -> None:
    config, shadow = make_config()
    shadow[:] = bytes(BUS_BYTES)
    config.address = 0x8000_0000

    assert config.read(CFC + 3, 2) == 0xFFFF
    assert config.read(CFC + 4, 4) == 0xFFFF_FFFF


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_shadow_reads_what_its_views_hold_in_any_width_and_place(size: int) -> None:
    shadow = Shadow([(0x100, 24), (0x200, 8)])
    for view in shadow.views:
        view[:] = bytes(range(1, 1 + len(view)))

    for base, view in zip((0x100, 0x200), shadow.views, strict=True):
        for at in range(len(view) - size + 1):
            expected = int.from_bytes(bytes(view[at : at + size]), "little")
            assert shadow.read(base + at, size) == expected


@pytest.mark.parametrize(
    ("offset", "size"),
    [(0, 1), (0xFF, 2), (0x117, 2), (0x115, 4), (0x111, 8), (0x118, 1), (0x204, 8), (1 << 63, 8)],
)
def test_shadow_leaves_a_read_that_is_not_wholly_in_a_part_to_the_loop(
    offset: int, size: int
) -> None:
    assert Shadow([(0x100, 24), (0x200, 8)]).read(offset, size) is None


def test_shadow_leaves_every_write_to_the_loop() -> None:
    shadow = Shadow([(0, 8)])

    assert not shadow.write(0, 0xFF, 4)
    assert bytes(shadow.views[0]) == bytes(8)


def test_shadow_s_views_outlive_it() -> None:
    [view] = Shadow([(0, 1 << 16)]).views
    gc.collect()

    view[:] = b"\x5a" * len(view)

    assert view[-1] == 0x5A


def test_config_data_beyond_a_short_shadow_reads_ones() -> None:
    shadow = bytearray(0x1002)
    config = ConfigAddress(address_of(shadow), len(shadow))
    config.address = 0x8000_0100

    assert config.read(CFC, 2) == 0
    assert config.read(CFC, 4) == 0xFFFF_FFFF


def test_config_data_write_goes_to_the_loop() -> None:
    config, _ = make_config()

    assert not config.write(CFC, 0, 4)
    assert not config.write(CFC + 3, 0, 1)


def test_config_shadow_unaligned_is_refused() -> None:
    with pytest.raises(InternalError, match="4-byte aligned"):
        ConfigAddress(0x1002, BUS_BYTES)


def test_pm_timer_moves_forward_at_its_rate() -> None:
    timer = PmTimer()
    first = timer.ticks

    elapsed = (timer.ticks - first) % (1 << 32)

    assert 0 <= elapsed < 3_579_545


def test_pm_timer_offset_shifts_the_counter_and_wraps() -> None:
    plain, shifted = PmTimer(), PmTimer(-0x1000_0000)
    before = plain.ticks

    behind = (before - shifted.ticks) % (1 << 32)

    assert 0x1000_0000 - 3_579_545 < behind <= 0x1000_0000
    assert shifted.offset == 0xF000_0000
    shifted.offset = 5
    assert shifted.offset == 5


def test_pm_timer_is_read_only_and_narrow_reads_see_its_bytes() -> None:
    timer = PmTimer()

    assert timer.write(0, 0, 4)
    assert timer.read(4) == 0xFF
    assert (timer.read(3) or 0) <= 0xFF
    whole = timer.ticks
    assert ((timer.read(2, 2) or 0) - (whole >> 16)) % (1 << 16) < 60

"""Rate limits: the buckets by a clock of the test's own, and disks that obey them."""

from __future__ import annotations

from collections import deque
from pathlib import Path

import pytest
import trio

from tests.unit.block_fixture import (
    FLUSH,
    IN,
    OK,
    SECTOR,
    BlockDriver,
    block_device,
    drivers_of,
    header,
    make_image,
    running_disk,
)
from vmm.config.rate_limit import RateLimiterConfig
from vmm.kvm_cffi.block import BlockEngine, DiskAbility, DiskHandle, Outcome
from vmm.kvm_cffi.limiter import MOST, UNLIMITED, Bucket, Limiter
from vmm.virtio.rate_limit import limiter_of

SECOND = 1_000_000_000
START = 5 * SECOND
SLOW_HOST_S = 2.0
"""What two tenths of a second may take where others use the processor too."""


def limiter(bandwidth: Bucket = UNLIMITED, ops: Bucket = UNLIMITED) -> Limiter:
    return Limiter(bandwidth, ops, now_ns=START)


def test_bucket_starts_full_and_says_when_it_has_enough_again() -> None:
    limit = limiter(Bucket(1000, SECOND))

    assert limit.take(1000, now_ns=START) == 0
    assert limit.take(250, now_ns=START) == SECOND // 4
    assert limit.take(250, now_ns=START + SECOND // 5) == SECOND // 20
    assert limit.take(250, now_ns=START + SECOND // 4) == 0


def test_bucket_does_not_fill_beyond_its_size() -> None:
    limit = limiter(Bucket(1000, SECOND))

    assert limit.take(1000, now_ns=START + 100 * SECOND) == 0
    assert limit.take(1, now_ns=START + 100 * SECOND) == SECOND // 1000


def test_burst_is_spent_first_and_never_comes_back() -> None:
    limit = limiter(Bucket(1000, SECOND, burst=500))

    assert limit.take(1500, now_ns=START) == 0
    later = START + 100 * SECOND
    assert limit.take(1000, now_ns=later) == 0
    assert limit.take(1, now_ns=later) > 0


def test_request_larger_than_the_bucket_leaves_a_debt() -> None:
    limit = limiter(Bucket(1000, SECOND))

    assert limit.take(3000, now_ns=START) == 0
    assert limit.take(1, now_ns=START) == 2 * SECOND + SECOND // 1000
    assert limit.take(3000, now_ns=START) == 2 * SECOND + SECOND // 1000


def test_both_buckets_must_have_enough_or_neither_is_touched() -> None:
    limit = limiter(Bucket(1000, SECOND), Bucket(2, SECOND))

    assert limit.take(900, now_ns=START) == 0
    assert limit.take(900, now_ns=START) > 0
    assert limit.take(100, now_ns=START) == 0
    assert limit.take(0, now_ns=START) == SECOND // 2


@pytest.mark.parametrize("bucket", [Bucket(0, SECOND), Bucket(1, 0), Bucket(0, 0, burst=1)])
def test_bucket_of_nothing_limits_nothing(bucket: Bucket) -> None:
    limit = limiter(bucket, bucket)

    assert [limit.take(1 << 31, now_ns=START) for _ in range(3)] == [0, 0, 0]


def test_steps_of_time_too_short_for_a_token_add_up() -> None:
    limit = limiter(ops=Bucket(10, SECOND))
    limit.take(0, ops=10, now_ns=START)

    waits = [limit.take(0, now_ns=START + step * SECOND // 100) for step in range(21)]

    assert waits.count(0) == 2


def test_largest_numbers_are_taken() -> None:
    most = (1 << 64) - 1
    limit = limiter(Bucket(most, most, burst=most), Bucket(most, most))

    assert limit.take(1 << 40, now_ns=START) == 0
    assert limit.take(1 << 40, now_ns=most) == 0


@pytest.mark.parametrize(
    ("given", "limits"),
    [
        (None, False),
        ({}, False),
        ({"ops": {"size": 0, "refill_time": 100}}, False),
        ({"ops": {"size": 5, "refill_time": 0}}, False),
        ({"bandwidth": {"size": 5, "refill_time": 1}}, True),
        ({"ops": {"size": 5, "refill_time": 1, "one_time_burst": 9}}, True),
    ],
)
def test_configuration_becomes_a_limiter(given: dict[str, object] | None, limits: bool) -> None:
    config = None if given is None else RateLimiterConfig.model_validate(given)

    assert (limiter_of(config) is not None) is limits


async def take_time(path: Path, limit: Limiter, requests: int, wants_ring: bool) -> float:
    """How many seconds so many reads of 8 sectors take, after those that the buckets hold."""
    async with running_disk(path, limiter=limit, wants_ring=wants_ring) as disk:
        tokens = [disk.driver.send([header(IN, 8)], [8 * SECTOR, 1]) for _ in range(requests)]
        disk.driver.kick()
        start = trio.current_time()
        for token in tokens:
            assert (await disk.driver.answer(token)).status == OK
        return trio.current_time() - start


@pytest.mark.parametrize("wants_ring", [True, False], ids=["ring", "threads"])
async def test_disk_keeps_to_its_operations(tmp_path: Path, wants_ring: bool) -> None:
    limit = Limiter(ops=Bucket(10, SECOND // 10))

    seconds = await take_time(tmp_path / "disk.raw", limit, 30, wants_ring)

    assert 0.199 <= seconds < SLOW_HOST_S


async def test_disk_keeps_to_its_bandwidth(tmp_path: Path) -> None:
    limit = Limiter(Bucket(10 * 8 * SECTOR, SECOND // 10))

    seconds = await take_time(tmp_path / "disk.raw", limit, 30, wants_ring=True)

    assert 0.199 <= seconds < SLOW_HOST_S


async def test_disks_of_a_group_share_one_budget(tmp_path: Path) -> None:
    limit = Limiter(ops=Bucket(10, SECOND // 10))
    took: list[float] = []

    async def one(name: str) -> None:
        took.append(await take_time(tmp_path / name, limit, 15, wants_ring=True))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(one, "a.raw")
        nursery.start_soon(one, "b.raw")

    assert 0.199 <= max(took) < SLOW_HOST_S


async def test_large_requests_have_their_turn_beside_the_small_ones_of_a_group(
    tmp_path: Path,
) -> None:
    limit = Limiter(Bucket(128 * SECTOR, SECOND // 10))

    async def be_busy(driver: BlockDriver) -> None:
        tokens = deque(driver.send([header(IN, 0)], [SECTOR, 1]) for _ in range(32))
        while True:
            driver.kick()
            assert (await driver.answer(tokens.popleft())).status == OK
            tokens.append(driver.send([header(IN, 0)], [SECTOR, 1]))

    async with (
        running_disk(tmp_path / "small.raw", limiter=limit) as small,
        running_disk(tmp_path / "large.raw", limiter=limit) as large,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(be_busy, small.driver)
        with trio.fail_after(SLOW_HOST_S):
            for _ in range(4):
                assert (await large.driver.read(0, 128)).status == OK
        nursery.cancel_scope.cancel()


async def test_disk_that_stops_while_it_waits_lets_the_others_of_its_group_go_on(
    tmp_path: Path,
) -> None:
    limit = Limiter(Bucket(8 * SECTOR, 1000 * SECOND))
    assert limit.take(4 * SECTOR) == 0
    async with running_disk(tmp_path / "b.raw", limiter=limit) as second:
        async with running_disk(tmp_path / "a.raw", limiter=limit) as first:
            first.driver.send([header(IN, 0)], [8 * SECTOR, 1])
            first.driver.kick()
            await trio.testing.wait_all_tasks_blocked()
            token = second.driver.send([header(IN, 0)], [SECTOR, 1])
            second.driver.kick()
            await trio.testing.wait_all_tasks_blocked()
            assert second.device.counters["read_ops"] == 0
            assert limit.take(SECTOR) == 0  # There is enough, but it is the other's turn.

        assert (await second.driver.answer(token)).status == OK


async def test_limited_disk_still_flushes_once_its_turn_has_come(tmp_path: Path) -> None:
    limit = Limiter(ops=Bucket(1, SECOND // 20))
    async with running_disk(tmp_path / "disk.raw", limiter=limit) as disk:
        for _ in range(3):
            assert (await disk.driver.ask([header(FLUSH, 0)])).status == OK
        assert (await disk.driver.read(0)).status == OK
        assert limit.take(0) > 0


async def test_limited_disk_can_be_stopped_at_once(tmp_path: Path) -> None:
    limit = Limiter(ops=Bucket(1, 1000 * SECOND))
    with trio.fail_after(5):
        async with running_disk(tmp_path / "disk.raw", limiter=limit) as disk:
            first = disk.driver.send([header(IN, 0)], [SECTOR, 1])
            disk.driver.send([header(IN, 0)], [SECTOR, 1])
            disk.driver.kick()
            assert (await disk.driver.answer(first)).status == OK

    assert disk.driver.queue.in_flight == 0


def test_disk_whose_bucket_takes_centuries_to_fill_waits_and_does_not_spin(tmp_path: Path) -> None:
    make_image(tmp_path / "disk", SECTOR)
    with block_device(tmp_path / "disk") as device, drivers_of(device) as (driver,):
        for _ in range(2):
            driver.send([header(IN, 0)], [SECTOR, 1])
        with (
            (tmp_path / "disk").open("rb") as file,
            BlockEngine(
                DiskHandle(file.fileno(), 1, DiskAbility(0), alignment=1, serial=b""),
                [driver.queue],
                limiter=Limiter(Bucket(SECTOR, MOST)),
            ) as engine,
        ):
            assert engine.serve() & Outcome.IS_TIMED
            assert engine.wait_seconds > 1e9
            request = engine.take()
            assert request is not None
            engine.complete(request, engine.perform(request))
            assert engine.in_flight == 0

"""The block device: what it offers, shows, counts and keeps; disks from their configuration."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.unit.block_fixture import (
    OK,
    SECTOR,
    block_device,
    drivers_of,
    make_image,
    running_disk,
    serving,
)
from vmm.config.disk import DiskConfig, LockGranularity
from vmm.config.rate_limit import RateLimitGroupConfig
from vmm.errors import ConfigError, HostError, InternalError, UnsupportedError
from vmm.kvm_cffi._kvm import lib
from vmm.machine.disks import DiskPool, open_disk, pool_of
from vmm.testing.driver import SplitDriver
from vmm.testing.memory import FakeMemory
from vmm.testing.virtio_pci import driven
from vmm.virtio.block import Block, BlockFeature
from vmm.virtio.device import Active
from vmm.virtio.queue import SplitQueue
from vmm.virtio.spec import DeviceId

SIZE = 1 << 20
UNKNOWN = (1 << 64) - 1
ALWAYS = (
    BlockFeature.FLUSH
    | BlockFeature.CONFIG_WCE
    | BlockFeature.BLK_SIZE
    | BlockFeature.TOPOLOGY
    | BlockFeature.SEG_MAX
)
RANGES = BlockFeature.DISCARD | BlockFeature.WRITE_ZEROES
NOTHING_SHARED = DiskPool({}, frozenset())


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """An image of zeros."""
    path = tmp_path / "disk.raw"
    make_image(path, SIZE)
    return path


@pytest.fixture
def device(image: Path) -> Iterator[Block]:
    """A disk as it is by default, but with two queues."""
    with block_device(image, queue_sizes=(64, 64)) as device:
        yield device


def field(device: Block, offset: int, kind: str) -> int:
    """A field of the configuration space."""
    (value,) = struct.unpack(f"<{kind}", device.read_config(offset, struct.calcsize(f"<{kind}")))
    return int(value)


def test_identity_is_that_of_a_mass_storage_device(device: Block) -> None:
    assert (device.DEVICE_ID, device.PCI_CLASS) == (DeviceId.BLOCK, (0x01, 0x80))
    assert device.RING_FEATURES == 1 << 28 | 1 << 29 | 1 << 34 | 1 << 40
    assert device.queue_sizes == (64, 64)


@pytest.mark.parametrize(
    ("options", "features"),
    [
        ({}, ALWAYS | RANGES),
        ({"queue_sizes": (8, 8)}, ALWAYS | RANGES | BlockFeature.MQ),
        ({"sparse": False}, ALWAYS | BlockFeature.WRITE_ZEROES),
        ({"read_only": True}, ALWAYS | BlockFeature.RO),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_features_follow_from_the_image(
    image: Path, options: dict[str, Any], features: BlockFeature
) -> None:
    with block_device(image, **options) as device:
        assert device.features == features


def test_configuration_space_shows_size_limits_and_topology(device: Block) -> None:
    shown = {
        "capacity": field(device, 0, "Q"),
        "size_max": field(device, 8, "I"),
        "seg_max": field(device, 12, "I"),
        "blk_size": field(device, 20, "I"),
        "physical_block_exp": field(device, 24, "B"),
        "min_io_size": field(device, 26, "H"),
        "opt_io_size": field(device, 28, "I"),
        "writeback": field(device, 32, "B"),
        "num_queues": field(device, 34, "H"),
        "max_discard_sectors": field(device, 36, "I"),
        "max_discard_seg": field(device, 40, "I"),
        "discard_sector_alignment": field(device, 44, "I"),
        "max_write_zeroes_sectors": field(device, 48, "I"),
        "max_write_zeroes_seg": field(device, 52, "I"),
        "write_zeroes_may_unmap": field(device, 56, "B"),
    }

    assert shown == {
        "capacity": SIZE // 512,
        "size_max": 0,
        "seg_max": 62,
        "blk_size": 512,
        "physical_block_exp": 0,
        "min_io_size": 1,
        "opt_io_size": 0,
        "writeback": 1,
        "num_queues": 2,
        "max_discard_sectors": 0xFFFFFFFF,
        "max_discard_seg": 1,
        "discard_sector_alignment": 1,
        "max_write_zeroes_sectors": 0xFFFFFFFF,
        "max_write_zeroes_seg": 1,
        "write_zeroes_may_unmap": 1,
    }
    assert len(device.read_config(0, 4096)) == 60
    assert device.read_config(58, 8) == bytes(2)
    assert device.read_config(4000, 8) == b""


@pytest.mark.parametrize(
    ("offset", "data", "writeback"),
    [(32, b"\0", 0), (32, b"\x02", 1), (31, b"\0\0", 0), (0, bytes(60), 0), (33, b"\0", 1)],
)
def test_only_writeback_can_be_written(
    device: Block, offset: int, data: bytes, writeback: int
) -> None:
    before = device.read_config(0, 60)

    device.write_config(offset, data)

    after = device.read_config(0, 60)
    assert after[32] == writeback
    assert (after[:32], after[33:]) == (before[:32], before[33:])


def test_saved_cache_mode_is_loaded(image: Path, device: Block) -> None:
    device.write_config(32, b"\0")

    with block_device(image) as other:
        other.load(device.save())
        assert field(other, 32, "B") == 0
        with pytest.raises(ConfigError, match="writeback"):
            other.load({"writeback": 2})


async def test_counters_before_and_after_the_first_operations(image: Path) -> None:
    async with running_disk(image) as disk:
        before = disk.device.counters
        for at in range(3):
            await disk.driver.read(at, 2)
        await disk.driver.write(0, bytes(SECTOR))
        await disk.driver.flush()
        await disk.driver.read(SIZE)
        after = disk.device.counters

    latencies = {
        f"{way}_latency_{what}": UNKNOWN // 10_000 if what == "avg" else UNKNOWN
        for way in ("read", "write")
        for what in ("min", "max", "avg")
    }
    nothing = {"read_bytes": 0, "write_bytes": 0, "read_ops": 0, "write_ops": 0}
    assert before == nothing | latencies
    assert (after["read_ops"], after["read_bytes"]) == (3, 6 * SECTOR)
    assert (after["write_ops"], after["write_bytes"]) == (1, SECTOR)
    assert after["read_latency_min"] <= after["read_latency_avg"] <= after["read_latency_max"]
    assert after["read_latency_max"] < 10_000_000
    assert after["write_latency_min"] == after["write_latency_max"]


async def test_resized_disk_has_its_new_size_at_once_and_tells_the_driver(image: Path) -> None:
    told = []
    async with running_disk(image) as disk:
        disk.device.attach(lambda: told.append(field(disk.device, 0, "Q")))
        beyond = await disk.driver.read(SIZE // SECTOR)
        disk.device.resize(2 * SIZE)
        within = await disk.driver.read(SIZE // SECTOR)
        disk.device.resize(SIZE // 2)
        cut = await disk.driver.read(SIZE // SECTOR - 1)

    assert told == [2 * SIZE // SECTOR, SIZE // 2 // SECTOR]
    assert (beyond.status, within.status, cut.status) == (1, 0, 1)
    assert os.stat(image).st_size == SIZE // 2


@pytest.mark.parametrize("size", [0, 511, 1000, -512])
def test_size_that_is_no_multiple_of_a_sector_is_refused(device: Block, size: int) -> None:
    with pytest.raises(ConfigError, match=f"{size}.*512"):
        device.resize(size)

    assert field(device, 0, "Q") == SIZE // SECTOR


async def test_disk_whose_only_queue_is_being_reset_says_nothing_of_threads(
    image: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with block_device(image) as device:
        async with driven(device) as bench:
            await bench.driver.start()
            await bench.driver.reset_queue(0)
            await trio.testing.wait_all_tasks_blocked()

    assert caplog.messages == []


class Strict:
    """The C library on a host that does not permit io_uring."""

    def __getattr__(self, name: str) -> object:
        return getattr(lib, name)

    def vk_blk_open_ring(self, engine: object) -> int:
        return -errno.EPERM


async def test_host_that_does_not_permit_io_uring_is_told_what_to_change(
    image: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("vmm.kvm_cffi.block.lib", Strict())

    async with running_disk(image) as disk:
        assert (await disk.driver.read(0)).status == OK

    [told] = caplog.messages
    assert "served by threads" in told
    assert "kernel.io_uring_disabled" in told
    assert "seccomp" in told


async def test_queue_in_python_is_refused(device: Block) -> None:
    memory = FakeMemory()
    queue = SplitQueue(memory, SplitDriver(memory, 8).state)

    with pytest.raises(InternalError, match="Queue 0"):
        await device.run_queues(Active(0, (queue,), memory, lambda: None))


async def test_disk_of_a_configuration_is_locked_while_it_is_open(image: Path) -> None:
    config = DiskConfig(path=str(image), serial="one", queue_size=16, num_queues=2)
    async with open_disk(config, "_disk0", NOTHING_SHARED) as disk:
        assert (disk.id, disk.queue_sizes) == ("_disk0", (16, 16))
        with pytest.raises(HostError, match="lock"):
            async with open_disk(config, "_disk1", NOTHING_SHARED):
                pass

    async with open_disk(config, "_disk1", NOTHING_SHARED):
        pass


async def test_readers_of_an_image_do_not_exclude_each_other(image: Path) -> None:
    config = DiskConfig(path=str(image), readonly=True)
    async with (
        open_disk(config, "a", NOTHING_SHARED) as one,
        open_disk(config, "b", NOTHING_SHARED) as two,
    ):
        assert one.features & two.features & BlockFeature.RO


async def test_lock_granularity_decides_whether_the_lock_grows_with_the_image(image: Path) -> None:
    grown = DiskConfig(path=str(image), readonly=True, lock_granularity=LockGranularity.FULL)
    async with open_disk(DiskConfig(path=str(image)), "a", NOTHING_SHARED):
        with pytest.raises(HostError, match="lock"):
            async with open_disk(grown, "b", NOTHING_SHARED):
                pass


async def test_disk_that_is_not_sparse_is_preallocated(image: Path) -> None:
    async with open_disk(DiskConfig(path=str(image), sparse=False), "a", NOTHING_SHARED) as disk:
        assert os.stat(image).st_blocks * 512 >= SIZE
        assert not disk.features & BlockFeature.DISCARD


async def test_vhost_user_disk_is_refused_by_name() -> None:
    config = DiskConfig(vhost_user=True, vhost_socket="/tmp/none")
    with pytest.raises(UnsupportedError, match="vhost_user"):
        async with open_disk(config, "a", NOTHING_SHARED):
            pass


def test_group_is_one_limiter_for_all_its_disks() -> None:
    groups = RateLimitGroupConfig.model_validate(
        {"id": "slow", "rate_limiter_config": {"ops": {"size": 1, "refill_time": 1000}}}
    )

    pool = pool_of([], [groups])

    limiter = pool.groups["slow"]
    assert limiter is not None
    assert [limiter.take(1) > 0 for _ in range(2)] == [False, True]


def affine(queue: int, cpus: list[int]) -> DiskConfig:
    return DiskConfig.model_validate(
        {"path": "x", "queue_affinity": [{"queue_index": queue, "host_cpus": cpus}]}
    )


def test_affinities_of_all_queues_come_together() -> None:
    cpus = sorted(os.sched_getaffinity(0))

    pool = pool_of([affine(0, cpus[:1]), affine(0, cpus[-1:])], [])

    assert pool.worker_cpus == {cpus[0], cpus[-1]}


@pytest.mark.parametrize(
    ("queue", "cpu", "words"), [(1, 0, r"disks\[0\].*queue 1"), (0, 65535, "CPU 65535")]
)
def test_affinity_to_what_is_not_there_is_refused(queue: int, cpu: int, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        pool_of([affine(queue, [cpu])], [])


async def test_kernel_s_workers_of_a_disk_with_affinity_are_on_its_cpus(image: Path) -> None:
    cpus = frozenset({max(os.sched_getaffinity(0))})
    config = DiskConfig(path=str(image), queue_size=16)
    others = workers_of_this_process()  # Those of disks that are closed end when they like.
    async with open_disk(config, "a", DiskPool({}, cpus)) as disk:
        with drivers_of(disk) as drivers:
            async with serving(disk, drivers):
                assert (await drivers[0].write(1, bytes(512))).status == OK
                assert (await drivers[0].flush()).status == OK  # Always a worker's.
                workers = workers_of_this_process()

    ours = {allowed for worker, allowed in workers.items() if worker not in others}
    if not ours:
        pytest.skip("io_uring is not permitted here, so the kernel has no workers")
    assert ours == {cpus}


def workers_of_this_process() -> dict[int, frozenset[int]]:
    """The threads in which the kernel does this process's I/O, and the CPUs each may use."""
    workers = {}
    for task in Path("/proc/self/task").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):  # It has ended meanwhile.
            if (task / "comm").read_text().startswith("iou-wrk"):
                workers[int(task.name)] = frozenset(os.sched_getaffinity(int(task.name)))
    return workers

"""From a disk of the configuration to a block device over its open, locked image."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING

import trio

from vmm.block.formats import Format
from vmm.block.image import open_image
from vmm.block.locks import WHOLE_FILE, image_lock
from vmm.config.disk import ImageType, LockGranularity
from vmm.errors import ConfigError, UnsupportedError
from vmm.virtio.block import Block
from vmm.virtio.rate_limit import limiter_of

if TYPE_CHECKING:
    from vmm.block.locks import ImageLock
    from vmm.block.raw import RawImage
    from vmm.config.disk import DiskConfig
    from vmm.config.rate_limit import RateLimitGroupConfig
    from vmm.kvm_cffi.limiter import Limiter


class DiskPool:
    """What the disks of one machine share.

    ``groups`` are the rate limits by name. ``worker_cpus`` are where the kernel's I/O workers may
    run, all if there are none: the kernel has one pool of workers for all rings of a thread, so the
    affinities of all queues of all disks come together here.
    """

    def __init__(
        self, groups: Mapping[str, Limiter | None], worker_cpus: Iterable[int] = ()
    ) -> None:
        self.groups = groups
        self.locks: set[ImageLock] = set()
        """Those of the images that are open."""
        self._worker_cpus = set(worker_cpus)

    @property
    def worker_cpus(self) -> frozenset[int]:
        """The host CPUs of all queues so far."""
        return frozenset(self._worker_cpus)

    def admit(self, disk: DiskConfig, name: str) -> None:
        """Let a disk's queues have their CPUs. Raises: ConfigError (caller) when one is absent."""
        present = os.sched_getaffinity(0)
        for affinity in disk.queue_affinity or ():
            place = f"{name}.queue_affinity (--disk queue_affinity=…)"
            if affinity.queue_index >= disk.num_queues:
                raise ConfigError(
                    f"{place} names queue {affinity.queue_index}; the disk has queues 0 to "
                    f"{disk.num_queues - 1}"
                )
            if absent := set(affinity.host_cpus) - present:
                raise ConfigError(
                    f"{place} names host CPU {min(absent)}, which this process may not run on; "
                    f"give some of {sorted(present)}"
                )
            self._worker_cpus |= set(affinity.host_cpus)


def pool_of(disks: Iterable[DiskConfig], groups: Iterable[RateLimitGroupConfig]) -> DiskPool:
    """Make what disks share, those of the boot at first.

    Raises: ConfigError (caller) for a queue or CPU that is absent.
    """
    pool = DiskPool({group.id: limiter_of(group.rate_limiter_config) for group in groups})
    for index, disk in enumerate(disks):
        pool.admit(disk, f"disks[{index}]")
    return pool


@asynccontextmanager
async def open_disk(config: DiskConfig, id: str, pool: DiskPool) -> AsyncIterator[Block]:
    """The disk over its image, which stays locked until the scope is left.

    Raises: ConfigError (caller), UnsupportedError, HostError.
    """
    if config.vhost_user or config.path is None:
        raise UnsupportedError(
            f"Disk {id} has vhost_user on (--disk vhost_user=on), which is not in this version of "
            "the VMM; give it an image (path)"
        )
    pool.admit(config, id)
    wanted = None if config.image_type is ImageType.UNKNOWN else Format(config.image_type)
    opened = open_image(config.path, wanted=wanted, read_only=config.readonly, direct=config.direct)
    with opened as image, _lock(image.file, config.lock_granularity, pool):
        if not config.sparse:
            await trio.to_thread.run_sync(image.file.preallocate)
        yield Block(
            id,
            image.file,
            (config.queue_size,) * config.num_queues,
            serial=config.serial,
            sparse=config.sparse,
            guards_first_sector=image.guards_first_sector,
            limiter=_limiter(config, pool),
            worker_cpus=pool.worker_cpus,
            wants_ring=not config.disable_io_uring,
        )


def _limiter(config: DiskConfig, pool: DiskPool) -> Limiter | None:
    if config.rate_limit_group is not None:
        return pool.groups[config.rate_limit_group]
    return limiter_of(config.rate_limiter_config)


@contextmanager
def _lock(image: RawImage, granularity: LockGranularity, pool: DiskPool) -> Iterator[None]:
    """Keep other writers away. What is locked is what the image holds or may hold now."""
    length = WHOLE_FILE
    if granularity is LockGranularity.BYTE_RANGE:
        length = max(image.size, image.allocated)
    exclusive = not image.read_only
    with image_lock(image.fd, image.path, exclusive=exclusive, length=length) as lock:
        pool.locks.add(lock)
        try:
            yield
        finally:
            pool.locks.discard(lock)

"""The block device: a disk image as its driver sees it.

Queues: ``num_queues``, all alike: requests, each a header, data and a status byte.
Features: FLUSH, CONFIG_WCE, BLK_SIZE, TOPOLOGY, SEG_MAX always; RO for a read-only disk, MQ with
more than one queue, WRITE_ZEROES and DISCARD where the host can give parts of the image back.
Refused: BARRIER and SCSI, which only old devices have, SIZE_MAX and GEOMETRY, which limit nothing
here, LIFETIME, SECURE_ERASE and ZONED.
Configuration space: the capacity, limits and topology; ``writeback`` is the driver's to write.
Snapshot: ``writeback``.
Spec: Virtio 1.2, section 5.2.
"""

from __future__ import annotations

import logging
import os
import struct
from collections.abc import Mapping
from enum import IntFlag
from typing import TYPE_CHECKING, ClassVar, Protocol

from vmm.errors import ConfigError, HostError, InternalError
from vmm.kvm_cffi import Virtqueue
from vmm.kvm_cffi.block import BlockEngine, DiskAbility, DiskHandle
from vmm.virtio.block_service import serve_disk
from vmm.virtio.device import OWN_QUEUES, Active, VirtioDevice
from vmm.virtio.spec import DeviceId, Feature

if TYPE_CHECKING:
    from typing import Any

    from vmm.kvm_cffi.block import IoCounters
    from vmm.kvm_cffi.limiter import Limiter
    from vmm.virtio.queue import Queue

logger = logging.getLogger(__name__)

SECTOR = 512
NO_LIMIT = 0xFFFF_FFFF
WRITEBACK_AT = 32
POLL_NS = 20_000
"""How long the rings are watched after a batch, at most: about what waking the loop costs."""

UNKNOWN = (1 << 64) - 1
"""A latency before the first operation."""
UNKNOWN_AVERAGE = UNKNOWN // 10_000
"""The same for the mean, which clients know in this form."""


class BlockFeature(IntFlag):
    """Section 5.2.3."""

    SEG_MAX = 1 << 2
    RO = 1 << 5
    BLK_SIZE = 1 << 6
    FLUSH = 1 << 9
    TOPOLOGY = 1 << 10
    CONFIG_WCE = 1 << 11
    MQ = 1 << 12
    DISCARD = 1 << 13
    WRITE_ZEROES = 1 << 14


class Topology(Protocol):
    """Sizes in bytes of what a disk reads and writes at once."""

    @property
    def logical_block(self) -> int: ...
    @property
    def physical_block(self) -> int: ...
    @property
    def minimum_io(self) -> int: ...
    @property
    def optimal_io(self) -> int: ...


class Image(Protocol):
    """An open image; ``size`` in bytes. It outlives its device."""

    @property
    def fd(self) -> int: ...
    @property
    def path(self) -> str: ...
    @property
    def size(self) -> int: ...
    @property
    def read_only(self) -> bool: ...
    @property
    def alignment(self) -> int: ...
    @property
    def has_holes(self) -> bool: ...
    @property
    def topology(self) -> Topology: ...
    @property
    def host_serial(self) -> bytes: ...
    def resize(self, size: int) -> None: ...


class Block(VirtioDevice):
    """A disk over an open image.

    ``sparse`` lets the guest give parts of the image back, ``guards_first_sector`` keeps it from
    writing that sector. ``worker_cpus`` are where the kernel's I/O workers may run, if anything.
    """

    DEVICE_ID: ClassVar[DeviceId] = DeviceId.BLOCK
    PCI_CLASS: ClassVar[tuple[int, int]] = (0x01, 0x80)
    RING_FEATURES: ClassVar[Feature] = (
        OWN_QUEUES | Feature.RING_INDIRECT_DESC | Feature.RING_EVENT_IDX
    )

    def __init__(
        self,
        id: str,
        image: Image,
        queue_sizes: tuple[int, ...],
        *,
        serial: str | None = None,
        sparse: bool = True,
        guards_first_sector: bool = False,
        limiter: Limiter | None = None,
        worker_cpus: frozenset[int] = frozenset(),
        wants_ring: bool = True,
    ) -> None:
        super().__init__(id)
        self._image = image
        self._queue_sizes = queue_sizes
        self._may_discard = image.has_holes and sparse
        self._limiter = limiter
        self._worker_cpus = worker_cpus
        self._wants_ring = wants_ring
        self._writeback = True
        self._agreed = 0
        self._disk = DiskHandle(
            image.fd,
            image.size // SECTOR,
            self._abilities(guards_first_sector),
            alignment=image.alignment,
            serial=image.host_serial if serial is None else serial.encode(),
        )

    def _abilities(self, guards_first_sector: bool) -> DiskAbility:
        abilities = DiskAbility.GUARD_FIRST if guards_first_sector else DiskAbility(0)
        if not self._image.read_only:
            abilities |= DiskAbility.WRITE
        if self._image.has_holes:
            abilities |= DiskAbility.ZERO
        if self._may_discard:
            abilities |= DiskAbility.DISCARD
        return abilities

    @property
    def queue_sizes(self) -> tuple[int, ...]:
        """One size for each queue, all the same."""
        return self._queue_sizes

    @property
    def features(self) -> int:
        """What the image and the number of queues allow."""
        always = BlockFeature.FLUSH | BlockFeature.CONFIG_WCE | BlockFeature.BLK_SIZE
        features = always | BlockFeature.TOPOLOGY | BlockFeature.SEG_MAX
        for feature, is_offered in (
            (BlockFeature.RO, self._image.read_only),
            (BlockFeature.MQ, len(self._queue_sizes) > 1),
            (BlockFeature.WRITE_ZEROES, self._image.has_holes),
            (BlockFeature.DISCARD, self._may_discard),
        ):
            if is_offered:
                features |= feature
        return features

    def read_config(self, offset: int, size: int) -> bytes:
        """struct virtio_blk_config up to write_zeroes_may_unmap, section 5.2.4."""
        topology = self._image.topology
        block = topology.logical_block
        config = struct.pack(
            "<QIIIIBBHIBxHIIIIIB3x",
            self._image.size // SECTOR,
            0,  # size_max
            self._queue_sizes[0] - 2,
            0,  # geometry
            block,
            (topology.physical_block // block).bit_length() - 1,
            0,  # alignment_offset
            min(topology.minimum_io // block, 0xFFFF),
            topology.optimal_io // block,
            self._writeback,
            len(self._queue_sizes),
            NO_LIMIT,  # max_discard_sectors
            1,
            block // SECTOR,
            NO_LIMIT,  # max_write_zeroes_sectors
            1,
            self._may_discard,
        )
        return config[offset : offset + size]

    def write_config(self, offset: int, data: bytes) -> None:
        """Take ``writeback``; the rest is read-only."""
        if offset <= WRITEBACK_AT < offset + len(data):
            self._writeback = bool(data[WRITEBACK_AT - offset])
            self._choose_cache_mode()

    def _choose_cache_mode(self) -> None:
        """Section 5.2.6.2: a driver that does not know FLUSH relies on every write being stable."""
        if self._agreed & BlockFeature.CONFIG_WCE:
            cached = self._writeback
        else:
            cached = bool(self._agreed & BlockFeature.FLUSH)
        self._disk.set_written_through(not cached)

    async def run_queues(self, active: Active) -> None:
        """Serve all queues in one task. Raises: GuestError, HostError."""
        self._agreed = active.features
        self._choose_cache_mode()
        queues = [_in_c(queue) for queue in active.queues]
        with BlockEngine(self._disk, queues, limiter=self._limiter, poll_ns=POLL_NS) as engine:
            if queues:  # The kernel makes no ring for nothing, as while the only queue is reset.
                self._choose_io(engine)
            await serve_disk(engine, self._note_errors)

    def _choose_io(self, engine: BlockEngine) -> None:
        """Have the kernel's ring do the I/O where there is one, else threads."""
        if not self._wants_ring:
            return
        try:
            engine.open_ring()
        except HostError as error:
            logger.warning("Disk %s is served by threads, which is slow: %s", self.id, error)
            return
        if self._worker_cpus:
            engine.set_worker_cpus(self._worker_cpus)

    def _note_errors(self) -> None:
        """Log the host's errors: the first, and then ever fewer, for a guest can cause them."""
        counters = self._disk.count()
        if counters.errors & (counters.errors - 1) == 0:
            logger.warning(
                "Disk %s: I/O on %s has failed (error %d of this disk): %s",
                self.id,
                self._image.path,
                counters.errors,
                os.strerror(counters.last_errno),
            )

    def resize(self, size: int) -> None:
        """Give the disk another size in bytes and tell the driver.

        Raises: ConfigError (caller) for a size that cannot be, HostError.
        """
        if size < SECTOR or size % SECTOR:
            raise ConfigError(
                f"desired_size is {size}; it must be a positive multiple of {SECTOR} bytes"
            )
        self._image.resize(size)
        self._disk.set_sectors(size // SECTOR)
        self.config_changed()

    def save(self) -> dict[str, object]:
        """The cache mode that the driver chose."""
        return {"writeback": self._writeback}

    def load(self, state: Mapping[str, object]) -> None:
        """Take the cache mode over. Raises: ConfigError (caller)."""
        writeback = state.get("writeback")
        if not isinstance(writeback, bool):
            raise ConfigError(f"The state of disk {self.id} has writeback {writeback!r}, no bool")
        self._writeback = writeback

    @property
    def counters(self) -> dict[str, int]:
        """Operations, bytes, and latencies in microseconds."""
        counters = self._disk.count()
        return {
            "read_bytes": counters.reads.bytes,
            "write_bytes": counters.writes.bytes,
            "read_ops": counters.reads.ops,
            "write_ops": counters.writes.ops,
            **_latencies("read", counters.reads),
            **_latencies("write", counters.writes),
        }


def _latencies(name: str, io: IoCounters) -> dict[str, int]:
    known = io.ops > 0
    return {
        f"{name}_latency_min": io.least_ns // 1000 if known else UNKNOWN,
        f"{name}_latency_max": io.most_ns // 1000 if known else UNKNOWN,
        f"{name}_latency_avg": io.total_ns // io.ops // 1000 if known else UNKNOWN_AVERAGE,
    }


def _in_c(queue: Queue) -> Virtqueue[Any]:
    if not isinstance(queue, Virtqueue):
        raise InternalError(f"Queue {queue.index} is not one in C, which a disk needs")
    return queue

"""The request engine of virtio-blk in C: one call serves one wake, no request enters Python.

With an io_uring the kernel does the I/O; where a host does not permit one, threads of the caller's
do it through ``take``, ``perform`` and ``complete``.
"""

from __future__ import annotations

import errno
from enum import IntFlag
from typing import TYPE_CHECKING, NamedTuple

from vmm.errors import HostError
from vmm.kvm_cffi._kvm import ffi, lib
from vmm.kvm_cffi.check import check
from vmm.kvm_cffi.closing import Closing
from vmm.kvm_cffi.mechanisms import allocated

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from vmm.kvm_cffi._kvm import CData
    from vmm.kvm_cffi.limiter import Limiter
    from vmm.kvm_cffi.virtqueue import State, Virtqueue

SECTOR = 512
SERIAL_BYTES = 20

RING_HINTS = {
    errno.EPERM: "set kernel.io_uring_disabled to 0, or have a container's seccomp pass it",
    errno.ENOSYS: "use a kernel that has it",
    errno.ENOMEM: "free memory of the host, or raise the limit of locked memory (ulimit -l)",
    errno.EOPNOTSUPP: "use a newer kernel",
}
"""What to do where there is no io_uring to be had."""


class DiskAbility(IntFlag):
    """What a guest may do with a disk beside reading it."""

    WRITE = lib.VK_DISK_WRITE
    DISCARD = lib.VK_DISK_DISCARD
    ZERO = lib.VK_DISK_ZERO
    GUARD_FIRST = lib.VK_DISK_GUARD_FIRST
    """It may not change sector 0."""


class Outcome(IntFlag):
    """What serving leaves to do; without any of these, wait for the engine's descriptor."""

    HAS_MORE = lib.VK_BLK_HAS_MORE
    IS_TIMED = lib.VK_BLK_IS_TIMED
    HAS_WORK = lib.VK_BLK_HAS_WORK
    HAS_ERRORS = lib.VK_BLK_HAS_ERRORS


class IoCounters(NamedTuple):
    """Transfers in one direction that succeeded; times in nanoseconds, from pop to push."""

    ops: int
    bytes: int
    total_ns: int
    least_ns: int
    most_ns: int


class DiskCounters(NamedTuple):
    """What a disk's guests have done; ``errors`` are the host's, ``last_errno`` is the newest."""

    reads: IoCounters
    writes: IoCounters
    errors: int
    last_errno: int


class DiskHandle:
    """An open image as engines use it; the descriptor is the caller's and outlives it.

    ``alignment`` is what O_DIRECT asks of addresses, offsets and lengths, in bytes: a power of two,
    1 without. ``serial`` is cut or filled up with zeros to 20 bytes.
    """

    def __init__(
        self, fd: int, sectors: int, abilities: DiskAbility, *, alignment: int, serial: bytes
    ) -> None:
        setup = ffi.new(
            "struct vk_disk_setup *",
            {"fd": fd, "alignment": alignment, "abilities": int(abilities), "sectors": sectors},
        )
        setup.serial[0:SERIAL_BYTES] = serial[:SERIAL_BYTES].ljust(SERIAL_BYTES, b"\0")
        self.handle = ffi.gc(allocated(lib.vk_disk_new(setup)), lib.vk_disk_free)
        """The C object, ``vk_disk *``."""

    def set_sectors(self, sectors: int) -> None:
        """Give it another size, for requests taken from now on."""
        lib.vk_disk_set_sectors(self.handle, sectors)

    def set_written_through(self, wanted: bool) -> None:
        """Whether every write is on stable storage before the guest hears of its end."""
        lib.vk_disk_set_written_through(self.handle, wanted)

    def count(self) -> DiskCounters:
        """What has been done so far."""
        counters = ffi.new("struct vk_disk_counters *")
        lib.vk_disk_count(self.handle, counters)
        reads, writes = _io(counters.reads), _io(counters.writes)
        return DiskCounters(reads, writes, counters.errors, counters.last_errno)


def can_punch_holes(fd: int, size: int) -> bool:
    """Whether the host can take parts of a writable file of ``size`` bytes back."""
    return bool(lib.vk_punch_hole_past(fd, size) == 0)


def _io(io: CData) -> IoCounters:
    return IoCounters(io.ops, io.bytes, io.total_ns, io.least_ns, io.most_ns)


class BlockEngine(Closing):
    """Serves some queues of one disk, until closed; a context manager.

    ``poll_ns`` is how long, at most, the rings are watched after a batch before the caller is
    asked to wait. Queues that are still in use must not be served by anything else. The engine
    belongs to one thread, but for ``perform``.
    """

    def __init__(
        self,
        disk: DiskHandle,
        queues: Sequence[Virtqueue[State]],
        *,
        limiter: Limiter | None = None,
        poll_ns: int = 0,
    ) -> None:
        made = ffi.new("vk_blk **")
        handles = ffi.new("vk_queue *[]", [queue.handle for queue in queues])
        limit = ffi.NULL if limiter is None else limiter.handle
        result = lib.vk_blk_new(disk.handle, limit, handles, len(queues), poll_ns, made)
        check("making a block engine", result)
        self._engine: CData | None = made[0]
        self._kept = (disk, limiter)
        self._queues = queues
        self.fd: int = lib.vk_blk_fd(made[0])
        """Readable when there is something to serve."""

    @property
    def _handle(self) -> CData:
        assert self._engine is not None, "a closed engine serves nothing"
        return self._engine

    def open_ring(self) -> None:
        """Have the kernel do the I/O. Raises: HostError where io_uring is not to be had."""
        result = lib.vk_blk_open_ring(self._handle)
        if result < 0:
            raise HostError("io_uring_setup", -result, hint=RING_HINTS.get(-result))

    def set_worker_cpus(self, host_cpus: Iterable[int]) -> None:
        """Keep the kernel's I/O workers of this process on some host CPUs. Raises: HostError."""
        cpus = sorted(host_cpus)
        result = lib.vk_blk_set_worker_cpus(self._handle, ffi.new("uint32_t[]", cpus), len(cpus))
        check("io_uring_register(IORING_REGISTER_IOWQ_AFF)", result)

    def serve(self) -> Outcome:
        """Do all there is to do.

        Raises: GuestError when a driver broke its queue, HostError when the host fails the engine;
        requests in flight go on in either case.
        """
        result: int = lib.vk_blk_serve(self._handle)
        if result == -errno.EPROTO:
            for queue in self._queues:
                queue.check()
        if result < 0:
            raise HostError("serving of a disk's queues", -result)
        return Outcome(result)

    @property
    def wait_seconds(self) -> float:
        """In how many seconds to serve again at the latest, after ``Outcome.IS_TIMED``."""
        return float(lib.vk_blk_wait_ns(self._handle)) / 1e9

    @property
    def in_flight(self) -> int:
        """Requests that were taken and not yet answered."""
        return int(lib.vk_blk_in_flight(self._handle))

    def stop(self) -> None:
        """Take no more requests from the queues."""
        lib.vk_blk_stop(self._handle)

    def take(self) -> int | None:
        """The next request that a thread has to perform, if there is one now."""
        request: int = lib.vk_blk_take(self._handle)
        return None if request < 0 else request

    def perform(self, request: int) -> int:
        """Do a request's I/O, in any thread; its result, or a negative errno."""
        return int(lib.vk_blk_perform(self._handle, request))

    def complete(self, request: int, result: int) -> None:
        """Take in what ``perform`` gave."""
        lib.vk_blk_complete(self._handle, request, result)

    def close(self) -> None:
        """Let go of everything; requests still in flight are the kernel's to end."""
        engine, self._engine = self._engine, None
        if engine is not None:
            lib.vk_blk_free(engine)

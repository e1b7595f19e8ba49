"""The packet engine of virtio-net in C: one call serves one wake, no packet enters Python."""

from __future__ import annotations

import errno
from enum import IntFlag
from typing import TYPE_CHECKING, Generic, NamedTuple

from vmm.errors import GuestError, HostError
from vmm.kvm_cffi._kvm import ffi, lib
from vmm.kvm_cffi.virtqueue import State

if TYPE_CHECKING:
    from types import TracebackType

    from vmm.kvm_cffi._kvm import CData
    from vmm.kvm_cffi.limiter import Limiter
    from vmm.kvm_cffi.virtqueue import Virtqueue

GONE = "the tap has been deleted, or is no tap; make one, and boot again"
GONE_HINTS = dict.fromkeys((errno.EBADF, errno.EBADFD, errno.ENODEV), GONE)


class NetOutcome(IntFlag):
    """What serving leaves to do; without any of these, wait for the engine's descriptor."""

    HAS_MORE = lib.VK_NET_HAS_MORE
    IS_TIMED = lib.VK_NET_IS_TIMED


class NetCount(NamedTuple):
    """Packets that passed, their bytes without virtio's header, and packets that were lost."""

    rx_frames: int
    rx_bytes: int
    rx_dropped: int
    tx_frames: int
    tx_bytes: int
    tx_dropped: int


class NetCounters:
    """Where the engines of one device count; it outlives them."""

    def __init__(self) -> None:
        self.handle = ffi.new("struct vk_net_counters *")
        """The C object, ``struct vk_net_counters *``."""

    def read(self) -> NetCount:
        """What has been counted so far."""
        return NetCount(*(getattr(self.handle, name) for name in NetCount._fields))


class NetEngine(Generic[State]):
    """Carries packets between a pair of queues and one queue of a tap; a context manager.

    ``tap_fd`` does not block, and its packets begin with virtio's header of 12 bytes. A queue that
    is None is not served. ``rx`` and ``tx`` are the driver's words: what it receives and sends. The
    engine does nothing until ``set_enabled``. Descriptor, queues, limiters and counters outlive it.
    ``poll_ns`` is how long, at most, rings and tap are watched after a batch before the caller is
    asked to wait. ``tap`` is its name, for errors.
    """

    def __init__(
        self,
        tap_fd: int,
        counters: NetCounters,
        *,
        rx: Virtqueue[State] | None,
        tx: Virtqueue[State] | None,
        rx_limiter: Limiter | None = None,
        tx_limiter: Limiter | None = None,
        poll_ns: int = 0,
        tap: str | None = None,
    ) -> None:
        parts = {"rx": rx, "tx": tx, "rx_limiter": rx_limiter, "tx_limiter": tx_limiter}
        setup = ffi.new("struct vk_net_setup *", {"tap_fd": tap_fd, "poll_most_ns": poll_ns})
        for name, part in parts.items():
            setattr(setup, name, ffi.NULL if part is None else part.handle)
        made = ffi.new("vk_net **")
        self._tap = tap
        self._check("making a packet engine", lib.vk_net_new(setup, counters.handle, made))
        self._engine: CData | None = made[0]
        self._kept = (parts, counters)
        self._queues = tuple(queue for queue in (rx, tx) if queue is not None)
        self.fd: int = lib.vk_net_fd(made[0])
        """Readable when there is something to serve."""

    @property
    def _handle(self) -> CData:
        assert self._engine is not None, "a closed engine serves nothing"
        return self._engine

    def set_enabled(self, enabled: bool) -> None:
        """Carry packets from the next ``serve`` on, or leave tap and queues alone.

        Raises: HostError when the tap is gone.
        """
        self._check("watching the tap", lib.vk_net_set_enabled(self._handle, enabled))

    def serve(self) -> NetOutcome:
        """Carry what packets there are, for a bounded time.

        Raises: GuestError when the driver broke a queue, HostError when the tap is gone.
        """
        result: int = lib.vk_net_serve(self._handle)
        if result == -errno.EPROTO:
            for queue in self._queues:
                queue.check()
        if result == -errno.EBADMSG:
            raise GuestError("A packet's buffer is too short for virtio's header of 12 bytes")
        return NetOutcome(self._check("carrying packets to and from the tap", result))

    def _check(self, operation: str, result: int) -> int:
        if result < 0:
            raise HostError(operation, -result, path=self._tap, hint=GONE_HINTS.get(-result))
        return result

    @property
    def wait_seconds(self) -> float:
        """In how many seconds to serve again at the latest, after ``NetOutcome.IS_TIMED``."""
        return float(lib.vk_net_wait_ns(self._handle)) / 1e9

    def stop(self) -> None:
        """Give back the chain that a rate limit has it hold; nothing is in flight then."""
        lib.vk_net_stop(self._handle)

    def close(self) -> None:
        """Stop, and let go of everything."""
        if self._engine is not None:
            self.stop()
            lib.vk_net_free(self._engine)
            self._engine = None

    def __enter__(self) -> NetEngine[State]:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

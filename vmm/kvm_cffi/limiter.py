"""Token buckets in C, for device code in C and, where that is not hot, for Python."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from vmm.kvm_cffi._kvm import ffi, lib
from vmm.kvm_cffi.mechanisms import allocated

if TYPE_CHECKING:
    from vmm.kvm_cffi._kvm import CData

MOST = (1 << 64) - 1


class Bucket(NamedTuple):
    """A budget of ``size`` tokens that refills within ``refill_ns``; 0 of either limits nothing.

    ``burst`` tokens beside it are spent first and never come back.
    """

    size: int
    refill_ns: int
    burst: int = 0


UNLIMITED = Bucket(0, 0)


class Limiter:
    """A limit of bytes and of operations; whoever shares the object shares the budget.

    ``now_ns`` is the time of its beginning on the monotonic clock, for tests.
    """

    def __init__(
        self, bandwidth: Bucket = UNLIMITED, ops: Bucket = UNLIMITED, *, now_ns: int | None = None
    ) -> None:
        start = lib.vk_now_ns() if now_ns is None else now_ns
        made = lib.vk_limiter_new(_in_c(bandwidth), _in_c(ops), start)
        self.handle = ffi.gc(allocated(made), lib.vk_limiter_free)
        """The C object, ``vk_limiter *``."""

    def take(self, size: int, ops: int = 1, *, now_ns: int | None = None) -> int:
        """Take bytes and operations, or nothing.

        0 when they were taken, else in how many nanoseconds it is worth asking again.
        """
        now = lib.vk_now_ns() if now_ns is None else now_ns
        return int(lib.vk_limiter_take_ops(self.handle, size, ops, now))


def _in_c(bucket: Bucket) -> CData:
    return ffi.new(
        "struct vk_bucket_setup *",
        {
            "size": min(bucket.size, MOST),
            "burst": min(bucket.burst, MOST),
            "refill_ns": min(bucket.refill_ns, MOST),
        },
    )

"""Rate limits of disks and networks, from the configuration to the token buckets in C.

A limiter belongs to one device, or to a group of disks that share it; see vmm.kvm_cffi.Limiter for
what one of its buckets does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm.kvm_cffi.limiter import Bucket, Limiter

if TYPE_CHECKING:
    from vmm.config.rate_limit import RateLimiterConfig, TokenBucket

NS_PER_MS = 1_000_000


def limiter_of(config: RateLimiterConfig | None) -> Limiter | None:
    """Make the limiter that a configuration describes; None when it limits nothing."""
    if config is None:
        return None
    bandwidth, ops = _bucket(config.bandwidth), _bucket(config.ops)
    if not _limits(bandwidth) and not _limits(ops):
        return None
    return Limiter(bandwidth, ops)


def _bucket(config: TokenBucket | None) -> Bucket:
    if config is None:
        return Bucket(0, 0)
    return Bucket(config.size, config.refill_time * NS_PER_MS, config.one_time_burst or 0)


def _limits(bucket: Bucket) -> bool:
    return bucket.size > 0 and bucket.refill_ns > 0

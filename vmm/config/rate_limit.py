"""``RateLimiterConfig``: token buckets for bytes and operations, alone or shared by a group."""

from collections.abc import Iterator, Mapping
from typing import Annotated, ClassVar, Final

from pydantic import ConfigDict

from vmm.config.model import ConfigModel
from vmm.config.syntax import convert
from vmm.config.units import U64, Milliseconds, Text
from vmm.config.values import INTEGER, Cli


class TokenBucket(ConfigModel):
    """A budget of ``size`` tokens, refilled at a constant rate within ``refill_time``."""

    size: U64
    one_time_burst: U64 | None = None
    refill_time: Milliseconds


class RateLimiterConfig(ConfigModel):
    """Limits of bytes and of operations; the one object that refuses fields it does not know."""

    model_config = ConfigDict(extra="forbid")

    bandwidth: TokenBucket | None = None
    ops: TokenBucket | None = None

    def shows(self, name: str, value: object) -> bool:
        """As the original: a bucket that is not set is shown as null."""
        return True


_PREFIXES: Final = {"bandwidth": "bw", "ops": "ops"}


class BucketKeys:
    """The keys of a limiter: ``bw_size``, ``bw_one_time_burst``, …, ``ops_refill_time``.

    A bucket needs both its size and its refill time, and a limiter at least one bucket; with
    less there is none.
    """

    def __init__(self, _: type) -> None:
        self.keys: Mapping[str, bool] = {
            f"{prefix}_{name}": True
            for prefix in _PREFIXES.values()
            for name in TokenBucket.model_fields
        }

    def read(self, given: Mapping[str, str]) -> object:
        buckets = {bucket: self._bucket(prefix, given) for bucket, prefix in _PREFIXES.items()}
        return {name: values for name, values in buckets.items() if values} or None

    @staticmethod
    def _bucket(prefix: str, given: Mapping[str, str]) -> dict[str, object] | None:
        values = {
            name: convert(INTEGER, key, given[key])
            for name in TokenBucket.model_fields
            if given.get(key := f"{prefix}_{name}")
        }
        return values if values.get("size") and values.get("refill_time") else None

    def write(self, value: object) -> Iterator[str]:
        assert isinstance(value, RateLimiterConfig)
        for name, prefix in _PREFIXES.items():
            bucket = getattr(value, name)
            for part, number in () if bucket is None else bucket:
                if number is not None:
                    yield f"{prefix}_{part}={number}"


class RateLimitGroupConfig(ConfigModel):
    """A rate limit that several disks share."""

    FLAG: ClassVar[str] = "--rate-limit-group"

    id: Text
    rate_limiter_config: Annotated[RateLimiterConfig, Cli(keys=BucketKeys, default={})]

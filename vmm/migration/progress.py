"""How far a migration is and how fast it goes: what ``vm.migration`` shows, and what decides when
the VM is to stand still for the rest."""

from __future__ import annotations

import time
from enum import Enum
from typing import TYPE_CHECKING

import trio

from vmm.config.info import MigrationInfo, MigrationPhase

if TYPE_CHECKING:
    from collections.abc import Callable

ENDS = (MigrationPhase.COMPLETED, MigrationPhase.FAILED, MigrationPhase.CANCELLED)


class Fate(Enum):
    """Where a VM that is sent is, as its source knows."""

    HERE = "here"
    UNKNOWN = "unknown"
    GONE = "gone"


class Progress:
    """One migration, from its begin. ``clock`` counts seconds."""

    def __init__(self, *, is_incoming: bool, clock: Callable[[], float] = time.monotonic) -> None:
        self.is_incoming = is_incoming
        self.phase = MigrationPhase.CONNECTING
        self.memory_bytes = 0
        self.transferred_bytes = 0
        self.iteration = 0
        self.throttle_percent = 0
        self.error: str | None = None
        self._fate = Fate.HERE
        self._has_arrived = False
        self.settled = trio.Event()
        """Set once the VM has changed sides, or it has ended without that."""
        self.stands = False
        """Whether the VM was stopped for the move and could not be woken again."""
        self.downtime_s: float | None = None
        """Measured, once the VM has moved."""
        self._clock = clock
        self._began = clock()
        self._ended: float | None = None
        self._left_bytes = 0
        self._moved_bytes = 0
        self._moving_s = 0.0
        self._moving_since: float | None = None
        self._dirty_rate = 0.0
        self._pass_began = self._began

    @property
    def fate(self) -> Fate:
        """Where the VM is, of one that is sent."""
        return self._fate

    @fate.setter
    def fate(self, fate: Fate) -> None:
        self._fate = fate
        self._settle()

    @property
    def has_arrived(self) -> bool:
        """Whether the VM is here, of one that comes; its memory may still follow."""
        return self._has_arrived

    @has_arrived.setter
    def has_arrived(self, has_arrived: bool) -> None:
        self._has_arrived = has_arrived
        self._settle()

    def _settle(self) -> None:
        if self.is_decided:
            self.settled.set()

    @property
    def is_decided(self) -> bool:
        """Whether the VM has changed sides, if not yet all of its memory."""
        return self.fate is Fate.GONE or self.has_arrived

    @property
    def may_stop(self) -> bool:
        """Whether it may be stopped; whoever gives a VM away, or has, goes through with it."""
        return self.fate is Fate.HERE and not self.has_arrived

    @property
    def elapsed_s(self) -> float:
        """How long it has taken so far."""
        return (self._clock() if self._ended is None else self._ended) - self._began

    def begin_pass(self, dirty_bytes: int, *, is_first: bool) -> None:
        """A pass begins: so much is to be sent, which changed since the one before began."""
        now = self._clock()
        if not is_first:
            self.iteration += 1
            self._dirty_rate = dirty_bytes / max(now - self._pass_began, 1e-6)
        self._pass_began = now
        self._left_bytes = dirty_bytes

    def start_moving(self) -> None:
        """Memory is sent from now on, until ``stop_moving``."""
        self._moving_since = self._clock()

    def stop_moving(self) -> None:
        """No memory is sent for a while: that time does not count against the throughput."""
        if self._moving_since is not None:
            self._moving_s += self._clock() - self._moving_since
        self._moving_since = None

    def moved(self, size: int) -> None:
        """So many bytes of memory went over."""
        self.transferred_bytes += size
        self._moved_bytes += size
        self._left_bytes = max(0, self._left_bytes - size)

    def remains(self, left_bytes: int) -> None:
        """Of the memory that follows, so much is still to come."""
        self.moved(self._left_bytes - left_bytes)

    def skipped(self, size: int) -> None:
        """So many bytes need not go over, for they are zeros at both ends."""
        self._left_bytes = max(0, self._left_bytes - size)

    def end(self, phase: MigrationPhase, error: str | None = None) -> None:
        """It has ended, in one way or another."""
        self.stop_moving()
        self.phase = phase
        self.error = error
        self._ended = self._clock()
        self.settled.set()

    @property
    def throughput(self) -> float | None:
        """Bytes a second, None as long as nothing can be said."""
        seconds = self._moving_s
        if self._moving_since is not None:
            seconds += self._clock() - self._moving_since
        if self._moved_bytes == 0 or seconds <= 0:
            return None
        return self._moved_bytes / seconds

    def time_for(self, size: int) -> float | None:
        """How many seconds so many bytes would take, None as long as nothing can be said."""
        throughput = self.throughput
        return None if throughput is None else size / throughput

    def describe(self) -> MigrationInfo:
        """What ``vm.migration`` shows."""
        is_over = self.phase in ENDS
        remaining = None if is_over else self.time_for(self._left_bytes)
        downtime = self.downtime_s if is_over or self.downtime_s is not None else remaining
        return MigrationInfo(
            is_incoming=self.is_incoming,
            phase=self.phase,
            iteration=self.iteration,
            memory_bytes=self.memory_bytes,
            transferred_bytes=self.transferred_bytes,
            dirty_bytes=0 if self.phase is MigrationPhase.COMPLETED else self._left_bytes,
            dirty_rate=round(self._dirty_rate),
            throttle_percent=self.throttle_percent,
            throughput=round(self.throughput or 0),
            elapsed_ms=round(self.elapsed_s * 1000),
            remaining_ms=None if remaining is None else round(remaining * 1000),
            downtime_ms=None if downtime is None else round(downtime * 1000),
            error=self.error,
        )

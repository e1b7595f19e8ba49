"""What a migration says of itself, by a clock that the test turns."""

from __future__ import annotations

import pytest

from vmm.config.info import MigrationPhase
from vmm.migration.progress import Progress


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_throughput_counts_only_the_time_in_which_memory_is_sent(clock: Clock) -> None:
    progress = Progress(is_incoming=False, clock=clock)
    assert progress.throughput is None
    clock.now += 50
    progress.start_moving()
    progress.moved(600)
    clock.now += 2
    assert progress.throughput == 300
    progress.stop_moving()
    clock.now += 100

    assert progress.throughput == 300
    assert progress.time_for(900) == 3
    assert progress.elapsed_s == 152


def test_passes_give_the_rate_at_which_memory_changes(clock: Clock) -> None:
    progress = Progress(is_incoming=False, clock=clock)
    progress.begin_pass(1000, is_first=True)
    progress.skipped(400)
    progress.start_moving()
    clock.now += 4
    progress.moved(600)
    progress.stop_moving()
    progress.begin_pass(300, is_first=False)

    shown = progress.describe()

    assert (shown.iteration, shown.dirty_bytes, shown.dirty_rate) == (1, 300, 75)
    assert (shown.throughput, shown.remaining_ms, shown.downtime_ms) == (150, 2000, 2000)


def test_end_keeps_the_measured_downtime_and_the_reason(clock: Clock) -> None:
    progress = Progress(is_incoming=True, clock=clock)
    progress.downtime_s = 0.25
    clock.now += 2
    progress.end(MigrationPhase.FAILED, "it rained")
    clock.now += 2

    shown = progress.describe()

    assert (shown.phase, shown.error) == (MigrationPhase.FAILED, "it rained")
    assert (shown.elapsed_ms, shown.downtime_ms, shown.remaining_ms) == (2000, 250, None)

"""When a guest that moves is slowed, by how much, and that it is let go in the end."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from vmm.migration.progress import Progress
from vmm.migration.throttle import MOST_PERCENT, PERIOD_S, Brake, Throttle


class FakeMachine:
    def __init__(self) -> None:
        self.calls: list[str] = []

    def rest(self) -> None:
        self.calls.append("rest")

    def go_on(self) -> None:
        self.calls.append("go on")


def test_guest_that_keeps_up_twice_in_a_row_rests_and_more_and_more() -> None:
    throttle = Throttle()
    seen = []
    for _ in range(24):
        throttle.after_pass(1000, 1000)
        seen.append(throttle.percent)

    assert seen[:6] == [0, 20, 20, 30, 30, 40]
    assert seen[15:19] == [90, 90, MOST_PERCENT, MOST_PERCENT]
    assert seen[-1] == MOST_PERCENT


@pytest.mark.parametrize("changed", [0, 499])
def test_guest_whose_passes_become_shorter_never_rests(changed: int) -> None:
    throttle = Throttle()

    for _ in range(10):
        assert not throttle.after_pass(1000, changed)

    assert throttle.percent == 0


def test_one_pass_that_keeps_up_between_others_is_forgiven() -> None:
    throttle = Throttle()

    for changed in (900, 100, 900, 100):
        assert not throttle.after_pass(1000, changed)

    assert throttle.percent == 0


async def test_brake_rests_the_vcpus_for_their_share_of_each_period(
    autojump_clock: trio.testing.MockClock,
) -> None:
    machine, progress = FakeMachine(), Progress(is_incoming=False)
    async with Brake.open(machine, progress) as brake:
        await trio.sleep(1)
        assert machine.calls == []
        brake.after_pass(10, 10)
        brake.after_pass(10, 10)
        assert progress.throttle_percent == 20
        await trio.sleep(0.1 * PERIOD_S)
        assert machine.calls == ["rest"]
        await trio.sleep(0.2 * PERIOD_S)
        assert machine.calls == ["rest", "go on"]
        await trio.sleep(PERIOD_S)
        assert machine.calls == ["rest", "go on"] * 2


async def test_brake_lets_the_vcpus_go_on_when_it_is_left_while_they_rest(
    autojump_clock: trio.testing.MockClock,
) -> None:
    machine = FakeMachine()
    with trio.move_on_after(PERIOD_S / 10) as scope:
        async with Brake.open(machine, Progress(is_incoming=False)) as brake:
            brake.after_pass(10, 10)
            brake.after_pass(10, 10)
            await trio.sleep_forever()

    assert scope.cancelled_caught
    assert machine.calls == ["rest", "go on"]

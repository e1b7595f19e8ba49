"""A guest moves fifty times in a row, and no VMM that has it holds more than the first did."""

from __future__ import annotations

import re
from collections import Counter
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import trio

from tests.kvm.guests.meddling import free_port
from tests.kvm.guests.moving import Host, host, move
from tests.kvm.guests.processes import SECONDS, short_folder

pytestmark = [pytest.mark.kvm, pytest.mark.usefixtures("kvm")]

place = short_folder

MOVES = 50
CONNECTIONS = (1, 4)
WORKER = "Trio thread"
"""trio's idle worker threads end by themselves."""


def held(one: Host) -> Counter[str]:
    """What a VMM holds, without the numbers and folders of its own."""
    names = [name.rsplit("/", 1)[-1] for name in one.vmm.open_descriptors()]
    names += [name for name in one.vmm.threads() if not name.startswith(WORKER)]
    return Counter(re.sub(r"\d+", "N", name) for name in names)


async def until_held(one: Host, usual: Counter[str]) -> None:
    """Wait until a VMM holds no more than usual."""
    with trio.move_on_after(SECONDS):
        while held(one) - usual:  # noqa: ASYNC110  the last connections end by themselves
            await trio.sleep(0.02)
        return
    raise AssertionError(f"It holds {held(one) - usual} more than the VMM without a move")


async def test_guest_moves_fifty_times_and_leaves_nothing_behind(place: Path) -> None:
    async with AsyncExitStack() as stack:
        one = await stack.enter_async_context(host(place, "m0"))
        await one.boot(place)
        await one.rounds(2)
        usual = held(one)
        for number in range(MOVES):
            other = await stack.enter_async_context(host(place, f"m{number + 1}"))
            if number % 3:
                url = f"tcp:127.0.0.1:{free_port()}"
                await move(one, other, url, connections=CONNECTIONS[number % 2])
            else:
                await move(one, other, f"unix:{place}/{number}.sock")
            await other.rounds(2)
            await until_held(other, usual)
            with trio.fail_after(SECONDS):
                assert await one.vmm.process.wait() == 0
            one = other

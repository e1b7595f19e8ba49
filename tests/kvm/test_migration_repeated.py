"""A guest moves fifty times in a row, and no VMM that has it holds more than the first did."""

from __future__ import annotations

from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import trio

from tests.holding import held, until_held
from tests.kvm.guests.meddling import free_port
from tests.kvm.guests.moving import host, move
from tests.kvm.guests.processes import SECONDS, short_folder

pytestmark = [pytest.mark.kvm, pytest.mark.usefixtures("kvm")]

place = short_folder

MOVES = 50
CONNECTIONS = (1, 4)


async def test_guest_moves_fifty_times_and_leaves_nothing_behind(place: Path) -> None:
    async with AsyncExitStack() as stack:
        one = await stack.enter_async_context(host(place, "m0"))
        await one.boot(place)
        await one.rounds(2)
        usual = held(one.vmm.process.pid)
        for number in range(MOVES):
            other = await stack.enter_async_context(host(place, f"m{number + 1}"))
            if number % 3:
                url = f"tcp:127.0.0.1:{free_port()}"
                await move(one, other, url, connections=CONNECTIONS[number % 2])
            else:
                await move(one, other, f"unix:{place}/{number}.sock")
            await other.rounds(2)
            await until_held(other.vmm.process.pid, usual)
            with trio.fail_after(SECONDS):
                assert await one.vmm.process.wait() == 0
            one = other

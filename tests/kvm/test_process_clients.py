"""Several clients at once: changes one after the other, reads at any time, nobody held up."""

from __future__ import annotations

from collections import Counter
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import trio

from tests.kvm.guests import programs
from tests.kvm.guests.image import write_kernel
from tests.kvm.guests.processes import SECONDS, machine, running, short_folder
from vmm.testing.process import VmmProcess

pytestmark = [pytest.mark.kvm, pytest.mark.usefixtures("kvm")]

place = short_folder

CLIENTS = 10
ROUNDS = 5
RAM = 256 << 20


async def boot(vmm: VmmProcess, place: Path, **sections: object) -> None:
    await vmm.put("vm.create", machine(write_kernel(place, programs.SPIN), **sections))
    await vmm.put("vm.boot")


async def test_changes_of_ten_clients_are_carried_out_one_after_the_other(place: Path) -> None:
    statuses: Counter[tuple[str, int]] = Counter()
    states: Counter[str] = Counter()

    async def change_and_look(vmm: VmmProcess) -> None:
        for _ in range(ROUNDS):
            for name in ("vm.pause", "vm.resume"):
                statuses[name, (await vmm.api("PUT", name)).status] += 1
                states[(await vmm.info())["state"]] += 1

    async with running(place) as vmm:
        await boot(vmm, place)
        with trio.fail_after(SECONDS):
            async with trio.open_nursery() as nursery:
                for _ in range(CLIENTS):
                    nursery.start_soon(change_and_look, vmm)
        events = [event for event in vmm.events() if "paus" in event or "resum" in event]

    # Each was done or refused for the state it met, and what was done was never mixed up.
    assert {status for _, status in statuses} <= {204, 405}
    assert statuses.total() == states.total() == 2 * CLIENTS * ROUNDS
    assert set(states) <= {"Running", "Paused"}
    done = statuses["vm.pause", 204]
    assert done - statuses["vm.resume", 204] in (0, 1)
    cycle = ["vm:pausing", "vm:paused", "vm:resuming", "vm:resumed"]
    assert events == (cycle * done)[: len(events)]
    assert len(events) == 2 * statuses.total() - 2 * sum(
        count for (_, status), count in statuses.items() if status == 405
    )


async def test_reads_do_not_wait_for_a_change_that_takes_long(place: Path) -> None:
    async with running(place) as vmm:
        await boot(vmm, place, memory={"size": RAM, "prefault": True})
        answered_meanwhile = 0
        ended = trio.Event()

        async def dump() -> None:
            url = f"file://{place / 'core'}"
            assert (await vmm.api("PUT", "vm.coredump", {"destination_url": url})).status == 204
            ended.set()

        with trio.fail_after(SECONDS):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(dump)
                while not ended.is_set():
                    for name in ("vmm.ping", "vm.info", "vm.counters"):
                        assert (await vmm.api("GET", name)).status == 200
                        answered_meanwhile += not ended.is_set()

    assert answered_meanwhile > 3


async def test_clients_that_stall_or_vanish_hold_nobody_up(place: Path) -> None:
    async with running(place) as vmm, AsyncExitStack() as stack:
        path = str(vmm.directory / "api.sock")
        halves = (b"", b"GET /api/v1/vm", b"PUT /api/v1/vm.create HTTP/1.1\r\nHost: x\r\n")
        body = b"PUT /api/v1/vm.create HTTP/1.1\r\nHost: x\r\nContent-Length: 900\r\n\r\n{"
        for half in (*halves, body) * 5:
            stream = await stack.enter_async_context(await trio.open_unix_socket(path))
            await stream.send_all(half)
        for _ in range(20):
            async with await trio.open_unix_socket(path) as gone:
                await gone.send_all(b"GET /api/v1/vmm.ping HTTP/1.1\r\nHost: x\r\n\r\n")

        with trio.fail_after(SECONDS):
            await boot(vmm, place)
            assert (await vmm.info())["state"] == "Running"


async def test_clients_that_never_read_their_answers_hold_nobody_up(place: Path) -> None:
    ask = b"GET /api/v1/openapi.json HTTP/1.1\r\nHost: x\r\n\r\n"
    async with running(place) as vmm, AsyncExitStack() as stack:
        for _ in range(CLIENTS):
            path = str(vmm.directory / "api.sock")
            stream = await stack.enter_async_context(await trio.open_unix_socket(path))
            # Many times what a socket holds; the rest of the requests stays unread as well.
            with trio.move_on_after(0.2):
                await stream.send_all(ask * 200)

        with trio.fail_after(SECONDS):
            await boot(vmm, place)
            await vmm.put("vm.pause")
            assert (await vmm.info())["state"] == "Paused"

"""Clients that wait, hang up, do not read or die; and how the server ends."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import trio
import trio.testing
from hypercorn.trio.tcp_server import TCPServer

from tests.unit.api_fixture import ABOUT, PATIENCE_S, FakeOwner, is_refused, read_answer, serving
from vmm.api.server import GRACE_S, serve
from vmm.api.socket import open_api_socket
from vmm.machine import commands

PING = b"GET /api/v1/vmm.ping HTTP/1.1\r\nHost: localhost\r\n\r\n"
BOOT = b"PUT /api/v1/vm.boot HTTP/1.1\r\nHost: localhost\r\n\r\n"
AT_ONCE_S = GRACE_S / 2
"""An end within this time waited for nobody."""


def open_descriptors() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


def living_tasks() -> int:
    return trio.lowlevel.current_statistics().tasks_living


async def test_requests_that_only_look_are_answered_while_a_command_runs(tmp_path: Path) -> None:
    gate = trio.Event()
    owner = FakeOwner(gate=gate)
    async with serving(owner, tmp_path) as api, await api.connect() as waiting:
        await waiting.send_all(BOOT)
        await owner.asked.wait()
        answers = [await api.ask("GET", path) for path in ("/vmm.ping", "/vm.info", "/vm.counters")]
        gate.set()
        boot, _ = await read_answer(waiting)

    assert [answer.status_code for answer in answers] == [200, 200, 200]
    assert b" 204 " in boot


async def test_client_that_hangs_up_leaves_its_command_and_no_task(tmp_path: Path) -> None:
    owner = FakeOwner(gate=trio.Event())
    async with serving(owner, tmp_path) as api:
        await trio.testing.wait_all_tasks_blocked()
        tasks, descriptors = living_tasks(), open_descriptors()
        stream = await api.connect()
        await stream.send_all(BOOT)
        await owner.asked.wait()
        await stream.aclose()
        await trio.testing.wait_all_tasks_blocked()

        assert (living_tasks(), open_descriptors()) == (tasks, descriptors)
        assert owner.commands == [commands.Boot()]


async def test_client_that_hangs_up_at_any_byte_leaves_no_task(tmp_path: Path) -> None:
    request = (
        b"PUT /api/v1/vm.create HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n{}" + PING
    )
    async with serving(FakeOwner(), tmp_path) as api:
        await trio.testing.wait_all_tasks_blocked()
        tasks, descriptors = living_tasks(), open_descriptors()
        for end in range(len(request) + 1):
            async with await api.connect() as stream:
                await stream.send_all(request[:end])
        await trio.testing.wait_all_tasks_blocked()

        assert (living_tasks(), open_descriptors()) == (tasks, descriptors)
        assert (await api.ask("GET", "/vmm.ping")).status_code == 200


async def test_client_that_never_reads_holds_up_nobody(tmp_path: Path) -> None:
    async with serving(FakeOwner(), tmp_path) as api, await api.connect() as stream:
        await fill(stream)
        answer = await api.ask("GET", "/vmm.ping")

    assert answer.status_code == 200


async def test_client_that_sends_half_a_request_holds_up_nobody(tmp_path: Path) -> None:
    async with serving(FakeOwner(), tmp_path) as api, await api.connect() as stream:
        await stream.send_all(PING[:20])
        answer = await api.ask("GET", "/vmm.ping")

    assert answer.status_code == 200


async def test_server_ends_at_once_with_idle_clients(tmp_path: Path) -> None:
    async with serving(FakeOwner(), tmp_path) as api:
        fresh = await api.connect()
        used = await api.connect()
        await used.send_all(PING)
        await read_answer(used)
        await trio.testing.wait_all_tasks_blocked()
        start = trio.current_time()
        api.server.cancel_scope.cancel()
    took_s = trio.current_time() - start

    assert took_s < AT_ONCE_S
    assert (await fresh.receive_some(), await used.receive_some()) == (b"", b"")
    await fresh.aclose()
    await used.aclose()


async def test_request_that_ends_the_server_is_answered(tmp_path: Path) -> None:
    class EndingOwner(FakeOwner):
        async def submit(self, command: commands.Command) -> None:
            api.server.cancel_scope.cancel()

    async with serving(EndingOwner(), tmp_path) as api:
        stream = await api.connect()
        await stream.send_all(BOOT.replace(b"vm.boot", b"vmm.shutdown"))
        start = trio.current_time()
        await trio.sleep_forever()  # Until the owner ends it.
    took_s = trio.current_time() - start
    head, _ = await read_answer(stream)
    await stream.aclose()

    assert b" 204 " in head
    assert took_s < AT_ONCE_S


async def test_server_ends_though_an_owner_never_answers(tmp_path: Path) -> None:
    owner = FakeOwner(gate=trio.Event())
    async with serving(owner, tmp_path) as api:
        stream = await api.connect()
        await stream.send_all(BOOT)
        await owner.asked.wait()
        start = trio.current_time()
        api.server.cancel_scope.cancel()
    took_s = trio.current_time() - start
    await stream.aclose()

    assert GRACE_S <= took_s < PATIENCE_S


async def test_server_ends_though_a_client_never_reads(tmp_path: Path) -> None:
    async with serving(FakeOwner(), tmp_path) as api:
        stream = await api.connect()
        await fill(stream)
        start = trio.current_time()
        api.server.cancel_scope.cancel()
    took_s = trio.current_time() - start
    await stream.aclose()

    assert took_s < PATIENCE_S


async def test_cancelled_server_leaves_no_descriptor_task_or_file(tmp_path: Path) -> None:
    path = str(tmp_path / "api.sock")
    tasks, descriptors = living_tasks(), open_descriptors()
    with open_api_socket(path) as listener:
        async with trio.open_nursery() as nursery:
            await nursery.start(serve, FakeOwner(), listener, ABOUT)
            stream = await trio.open_unix_socket(path)
            await stream.send_all(PING)
            await read_answer(stream)
            nursery.cancel_scope.cancel()
    await stream.aclose()

    assert (living_tasks(), open_descriptors()) == (tasks, descriptors)
    assert (os.listdir(tmp_path), is_refused(path)) == ([], True)


async def test_server_cancelled_before_it_serves_ends(tmp_path: Path) -> None:
    with open_api_socket(str(tmp_path / "api.sock")) as listener, trio.CancelScope() as scope:
        scope.cancel()
        await serve(FakeOwner(), listener, ABOUT)

    assert scope.cancelled_caught
    assert listener.fileno() == -1


async def test_client_that_came_before_the_server_is_served(tmp_path: Path) -> None:
    path = str(tmp_path / "api.sock")
    with trio.fail_after(PATIENCE_S), open_api_socket(path) as listener:
        async with await trio.open_unix_socket(path) as early, trio.open_nursery() as nursery:
            await early.send_all(PING)
            await nursery.start(serve, FakeOwner(), listener, ABOUT)
            head, _ = await read_answer(early)
            nursery.cancel_scope.cancel()

    assert b" 200 " in head


async def fill(stream: trio.SocketStream) -> None:
    """Ask, without reading an answer, until the server cannot answer and the client not ask."""
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask_forever, stream)
            await trio.testing.wait_all_tasks_blocked()
            scope.cancel()


async def ask_forever(stream: trio.SocketStream) -> None:
    while True:
        await stream.send_all(PING * 100)


async def test_connection_that_fails_inside_the_server_ends_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail(_self: TCPServer) -> None:
        raise RuntimeError("a fault nobody foresaw")

    async with serving(FakeOwner(), tmp_path) as api:
        with monkeypatch.context() as patch:
            patch.setattr(TCPServer, "run", fail)
            async with await api.connect() as stream:
                end = await stream.receive_some()
        after = await api.ask("GET", "/vmm.ping")

    assert (end, after.status_code) == (b"", 200)
    assert "The connection to a client was cut" in caplog.text


async def test_handler_that_fails_unforeseen_gives_500_and_a_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class FaultyOwner(FakeOwner):
        async def submit(self, command: commands.Command) -> None:
            raise ZeroDivisionError("a fault nobody foresaw")

    async with serving(FaultyOwner(), tmp_path) as api:
        answer = await api.ask("PUT", "/vm.boot")
        after = await api.ask("GET", "/vmm.ping")

    assert (answer.status_code, after.status_code) == (500, 200)
    assert answer.json() == ["Internal Server Error", "a fault nobody foresaw"]
    assert "ZeroDivisionError" in caplog.text

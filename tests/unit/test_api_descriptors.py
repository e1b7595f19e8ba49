"""Descriptors beside a request: they reach the one handler that takes them, and never stay open."""

from __future__ import annotations

import array
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from tests.unit.api_fixture import PATIENCE_S, Api, FakeOwner, read_answer, serving
from vmm.api.descriptors import LIMIT, Descriptors
from vmm.errors import ConfigError
from vmm.machine.commands import AddDevice

TWO_QUEUES = b'{"num_queues": 4, "id": "lan"}'


class Pipe:
    """A pipe whose writing end is sent away: its reading end tells when all copies are closed."""

    def __init__(self) -> None:
        self.read_end, self.write_end = os.pipe()

    async def wait_until_closed(self) -> None:
        """Wait until nobody has the writing end any more."""
        os.close(self.write_end)
        self.write_end = -1
        with trio.fail_after(PATIENCE_S):
            await trio.lowlevel.wait_readable(self.read_end)
        assert os.read(self.read_end, 1) == b""

    def close(self) -> None:
        os.close(self.read_end)
        if self.write_end >= 0:
            os.close(self.write_end)


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    made = Pipe()
    yield made
    made.close()


def request(path: str, body: bytes = b"", method: str = "PUT") -> bytes:
    head = f"{method} /api/v1{path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}"
    return head.encode() + b"\r\n\r\n" + body


def rights(*fds: int) -> list[tuple[int, int, bytes]]:
    return [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds).tobytes())]


async def send(stream: trio.SocketStream, data: bytes, *fds: int) -> None:
    assert await stream.socket.sendmsg([data], rights(*fds)) == len(data)


async def ask(api: Api, data: bytes, *fds: int) -> tuple[bytes, bytes]:
    """Send a request with descriptors on a connection that stays until it is answered."""
    async with await api.connect() as stream:
        await send(stream, data, *fds)
        return await read_answer(stream)


def sent_to(owner: FakeOwner) -> tuple[int, ...]:
    """The descriptors of the last command."""
    command = owner.commands[-1]
    assert isinstance(command, AddDevice)
    assert command.entry.to_json().get("fds", []) == list(command.descriptors)
    return command.descriptors


async def test_descriptors_of_add_net_become_its_queues_in_their_order(
    tmp_path: Path, pipe: Pipe
) -> None:
    owner = FakeOwner()
    async with serving(owner, tmp_path) as api:
        ends = pipe.read_end, pipe.write_end
        head, _ = await ask(api, request("/vm.add-net", TWO_QUEUES), *ends)

    assert b" 204" in head.split(b"\r\n")[0]
    files = [os.fstat(fd).st_ino for fd in sent_to(owner)]
    assert files == [os.fstat(fd).st_ino for fd in ends]
    assert not any(os.get_inheritable(fd) for fd in sent_to(owner))
    assert set(sent_to(owner)).isdisjoint(ends)
    os.write(sent_to(owner)[1], b"x")
    assert os.read(pipe.read_end, 1) == b"x"
    owner.commands[-1].release()
    await pipe.wait_until_closed()


async def test_descriptors_that_come_after_the_head_belong_to_the_request(
    tmp_path: Path, pipe: Pipe
) -> None:
    owner = FakeOwner()
    data = request("/vm.add-net", TWO_QUEUES)
    async with serving(owner, tmp_path) as api, await api.connect() as stream:
        await send(stream, data[:-10], pipe.read_end)
        await send(stream, data[-10:], pipe.write_end)
        await read_answer(stream)

    assert len(sent_to(owner)) == 2
    owner.commands[-1].release()


async def test_descriptors_of_one_request_are_not_those_of_the_next(
    tmp_path: Path, pipe: Pipe
) -> None:
    owner = FakeOwner()
    async with serving(owner, tmp_path) as api, await api.connect() as stream:
        await send(stream, request("/vm.pause"), pipe.write_end)
        await read_answer(stream)
        await pipe.wait_until_closed()
        await send(stream, request("/vm.add-net", b"{}"))
        await read_answer(stream)

    assert sent_to(owner) == ()


async def test_descriptors_that_come_at_once_after_an_answer_are_the_next_requests(
    tmp_path: Path, pipe: Pipe
) -> None:
    owner = FakeOwner()
    async with serving(owner, tmp_path) as api, await api.connect() as stream:
        for number in range(20):
            body = b'{"id": "lan%d"}' % number
            await send(stream, request("/vm.add-net", body), pipe.write_end)
            # Without a wait for anything else, be it the server.
            while not (await stream.receive_some(4096)).endswith(b"\r\n\r\n"):
                pass

    assert len(owner.commands) == 20
    for command in owner.commands:
        assert isinstance(command, AddDevice)
        assert len(command.descriptors) == 1
        command.release()


@pytest.mark.parametrize(
    "data",
    [
        request("/vm.info", method="GET"),
        request("/vm.nonsense"),
        request("/vm.add-disk", b'{"path": "/a"}'),
        request("/vm.add-net", b"{"),
        request("/vm.add-net", b'{"num_queues": "two"}'),
        request("/vm.add-net"),
        request("/vm.add-net", method="GET"),
        b"no request at all\r\n\r\n",
    ],
    ids=lambda data: data[:30].decode(),
)
async def test_descriptors_that_nobody_takes_are_closed_with_the_answer(
    data: bytes, tmp_path: Path, pipe: Pipe
) -> None:
    async with serving(FakeOwner(), tmp_path) as api, await api.connect() as stream:
        await send(stream, data, pipe.write_end)
        await pipe.wait_until_closed()


@pytest.mark.parametrize("size", [1, 40, -1], ids=["one byte", "half a head", "half a body"])
async def test_descriptors_of_a_client_that_leaves_are_closed(
    size: int, tmp_path: Path, pipe: Pipe
) -> None:
    async with serving(FakeOwner(), tmp_path) as api:
        async with await api.connect() as stream:
            await send(stream, request("/vm.add-net", TWO_QUEUES)[:size], pipe.write_end)
        await pipe.wait_until_closed()


async def test_descriptors_of_a_request_in_progress_are_its_commands_when_the_client_leaves(
    tmp_path: Path, pipe: Pipe
) -> None:
    owner = FakeOwner(gate=trio.Event())
    async with serving(owner, tmp_path) as api:
        async with await api.connect() as stream:
            await send(stream, request("/vm.add-net", b"{}"), pipe.write_end)
            await owner.asked.wait()
        await trio.testing.wait_all_tasks_blocked()
        (fd,) = sent_to(owner)
        os.write(fd, b"still open")
        assert os.read(pipe.read_end, 10) == b"still open"
        owner.commands[-1].release()
        await pipe.wait_until_closed()


async def test_descriptors_of_a_waiting_client_are_closed_when_the_server_ends(
    tmp_path: Path, pipe: Pipe
) -> None:
    async with serving(FakeOwner(), tmp_path) as api:
        stream = await api.connect()
        await send(stream, b"PUT", pipe.write_end)
    await stream.aclose()
    await pipe.wait_until_closed()


async def test_more_descriptors_than_a_request_may_have_are_refused_and_closed(
    tmp_path: Path, pipe: Pipe
) -> None:
    owner = FakeOwner()
    data = request("/vm.add-net", b"{}")
    async with serving(owner, tmp_path) as api, await api.connect() as stream:
        for at in range(3):
            await send(stream, data[at : at + 1], *[pipe.write_end] * 100)
        await stream.send_all(data[3:])
        head, body = await read_answer(stream)
        await pipe.wait_until_closed()

    assert b" 400" in head.split(b"\r\n")[0]
    assert str(LIMIT).encode() in body
    assert owner.commands == []


def test_descriptors_that_the_kernel_cut_off_are_refused(pipe: Pipe) -> None:
    came = Descriptors()
    copy = os.dup(pipe.write_end)
    came.receive(rights(copy), socket.MSG_CTRUNC)

    with pytest.raises(ConfigError, match="RLIMIT_NOFILE"):
        came.take()
    came.close()

    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(copy)
    assert came.take() == ()

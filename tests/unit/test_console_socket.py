"""The mode Socket: one client at a time, the newest one."""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path

import pytest
import trio
import trio.testing

from vmm.console import open_backend
from vmm.console.outbox import KEPT_BYTES
from vmm.errors import HostError


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "serial.sock")


def fill(path: str, data: bytes) -> None:
    Path(path).write_bytes(data)


def content(path: str) -> bytes:
    return Path(path).read_bytes()


def exists(path: str) -> bool:
    return os.path.lexists(path)


async def read_exactly(stream: trio.SocketStream, count: int) -> bytes:
    data = b""
    while len(data) < count:
        more = await stream.receive_some(count - len(data))
        assert more, f"the connection ended after {data!r}"
        data += more
    return data


async def test_socket_output_before_the_first_client_is_replayed(path: str) -> None:
    with trio.fail_after(10):
        async with open_backend("Socket", name="serial", socket=path) as backend:
            await backend.write(b"early ")
            async with await trio.open_unix_socket(path) as client:
                replayed = await read_exactly(client, 6)
                await backend.write(b"live")
                live = await read_exactly(client, 4)

    assert (replayed, live) == (b"early ", b"live")


async def test_socket_long_output_before_a_client_keeps_the_newest(path: str) -> None:
    output = b"".join(b"%07d\n" % at for at in range(2 * KEPT_BYTES // 8))
    with trio.fail_after(10):
        async with open_backend("Socket", name="serial", socket=path) as backend:
            await backend.write(output)
            async with await trio.open_unix_socket(path) as client:
                received = await read_exactly(client, KEPT_BYTES)

    assert received == output[-KEPT_BYTES:]


async def test_socket_input_of_the_client_is_read(path: str) -> None:
    with trio.fail_after(10):
        async with (
            open_backend("Socket", name="serial", socket=path) as backend,
            await trio.open_unix_socket(path) as client,
        ):
            await client.send_all(b"ls\r")
            typed = await backend.read()

    assert typed == b"ls\r"


async def test_socket_client_that_leaves_is_followed_by_another(path: str) -> None:
    with trio.fail_after(10):
        async with open_backend("Socket", name="serial", socket=path) as backend:
            async with await trio.open_unix_socket(path) as first:
                await backend.write(b"one")
                assert await read_exactly(first, 3) == b"one"
            await backend.write(b"nobody, ")
            async with await trio.open_unix_socket(path) as second:
                await backend.write(b"two")
                received = await read_exactly(second, 11)

    assert received == b"nobody, two"


async def test_socket_newer_client_replaces_older(path: str) -> None:
    typed = b""
    with trio.fail_after(10):
        async with open_backend("Socket", name="serial", socket=path) as backend:
            async with trio.open_nursery() as nursery:

                async def read_once() -> None:
                    nonlocal typed
                    typed = await backend.read()

                nursery.start_soon(read_once)
                older = await trio.open_unix_socket(path)
                await backend.write(b"to the older")
                assert await read_exactly(older, 12) == b"to the older"
                newer = await trio.open_unix_socket(path)
                older_end = await older.receive_some(1)
                await newer.send_all(b"k")
                await backend.write(b"to the newer")
                received = await read_exactly(newer, 12)
            await older.aclose()
            await newer.aclose()

    assert (older_end, received, typed) == (b"", b"to the newer", b"k")


async def test_socket_stalled_client_is_replaced_without_loss(path: str) -> None:
    output = b"0123456789abcdef" * (1 << 15) + b"end"
    before, after = bytearray(), bytearray()
    with trio.fail_after(20):
        async with open_backend("Socket", name="serial", socket=path) as backend:
            async with trio.open_nursery() as nursery:
                stalled = await trio.open_unix_socket(path)
                nursery.start_soon(backend.write, output)
                before += await read_exactly(stalled, 16)
                newer = await trio.open_unix_socket(path)
                while not after.endswith(b"end"):
                    after += await newer.receive_some(65536)
                while more := await stalled.receive_some(65536):
                    before += more
            await stalled.aclose()
            await newer.aclose()

    assert len(before) < len(output)
    assert bytes(before + after) == output


async def test_socket_half_closed_client_still_gets_output(path: str) -> None:
    with trio.fail_after(10):
        async with (
            open_backend("Socket", name="serial", socket=path) as backend,
            trio.open_nursery() as nursery,
            await trio.open_unix_socket(path) as client,
        ):
            await client.send_all(b"date\r")
            await client.send_eof()
            typed = await backend.read()
            nursery.start_soon(backend.read)
            await trio.testing.wait_all_tasks_blocked()
            await backend.write(b"answer")
            received = await read_exactly(client, 6)
            nursery.cancel_scope.cancel()

    assert (typed, received) == (b"date\r", b"answer")


async def test_socket_existing_path_raises_address_in_use_with_the_fix(path: str) -> None:
    fill(path, b"somebody's")

    with pytest.raises(HostError, match="remove the file if no other program uses it") as caught:
        async with open_backend("Socket", name="serial", socket=path):
            pass

    assert (caught.value.errno, caught.value.path) == (errno.EADDRINUSE, path)
    assert content(path) == b"somebody's"


async def test_socket_path_beyond_the_kernels_limit_raises_with_the_limit(tmp_path: Path) -> None:
    path = str(tmp_path / ("x" * 108))

    with pytest.raises(HostError, match="at most 107 bytes"):
        async with open_backend("Socket", name="serial", socket=path):
            pass


async def test_socket_left_by_cancellation_removes_file_and_descriptors(path: str) -> None:
    before = os.listdir("/proc/self/fd")

    with trio.CancelScope() as scope:
        async with open_backend("Socket", name="serial", socket=path):
            client = await trio.open_unix_socket(path)
            scope.cancel()
            await trio.sleep_forever()
    client.socket.close()

    assert not exists(path)
    assert os.listdir("/proc/self/fd") == before


async def test_socket_file_replaced_by_another_is_not_removed(path: str) -> None:
    async with open_backend("Socket", name="serial", socket=path):
        os.unlink(path)
        other = socket.socket(socket.AF_UNIX)
        other.bind(path)

    other.close()
    assert exists(path)

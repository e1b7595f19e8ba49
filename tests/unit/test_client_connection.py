"""The clients before sockets that are no VMM, and the open files that go with a request."""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from tests.unit.client_calls import Case
from tests.unit.test_client import Ask, ask, case_of
from vmm.client import ApiError, ConnectError, NoVmmError, calls
from vmm.config.device import DeviceConfig
from vmm.config.model import ConfigModel
from vmm.config.net import NetConfig
from vmm.config.requests import (
    ReceiveMigrationData,
    RestoreConfig,
    RestoredDeviceConfig,
    RestoredNetConfig,
)
from vmm.errors import HostError

__all__ = ["ask"]

SECONDS = 10


@asynccontextmanager
async def answering(path: str, answer: bytes) -> AsyncIterator[None]:
    """Accept clients that read nothing but ``answer``."""

    async def serve(stream: trio.SocketStream) -> None:
        async with stream:
            await stream.receive_some()
            await stream.send_all(answer)

    with trio.fail_after(SECONDS), socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        async with trio.open_nursery() as nursery:
            ours = trio.SocketListener(trio.socket.from_stdlib_socket(listener.dup()))
            nursery.start_soon(trio.serve_listeners, serve, [ours])
            yield
            nursery.cancel_scope.cancel()


async def test_missing_socket_is_named(ask: Ask, tmp_path: Path) -> None:
    path = str(tmp_path / "none.sock")

    with pytest.raises(ConnectError, match=f"{path} failed: No such file.*start a VMM"):
        await ask(path, case_of("ping"))


async def test_socket_that_nobody_listens_on_is_named(ask: Ask, tmp_path: Path) -> None:
    path = str(tmp_path / "dead.sock")
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(path)

    with pytest.raises(ConnectError, match=r"Connection refused.*nobody listens there"):
        await ask(path, case_of("ping"))


async def test_path_too_long_for_a_socket_is_refused(ask: Ask, tmp_path: Path) -> None:
    with pytest.raises(ConnectError, match="File name too long"):
        await ask(str(tmp_path / ("x" * 120)), case_of("ping"))


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", "its answer is not HTTP"),
        (b"", "before it had answered"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{", "before it had answered"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", "not what the API documents"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}", "not what the API documents"),
    ],
    ids=["no HTTP", "nothing", "half", "no JSON", "another JSON"],
)
async def test_whoever_is_no_vmm_is_told_so(
    answer: bytes, text: str, ask: Ask, tmp_path: Path
) -> None:
    path = str(tmp_path / "other.sock")
    async with answering(path, answer):
        with pytest.raises(NoVmmError, match=text):
            await ask(path, case_of("ping"))


@pytest.mark.parametrize("body", [b'{"counters": 1}', b'{"_disk0": {"reads": "many"}}', b"[]"])
async def test_counters_that_are_none_are_refused(body: bytes, ask: Ask, tmp_path: Path) -> None:
    path = str(tmp_path / "other.sock")
    head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body)
    async with answering(path, head + body):
        with pytest.raises(NoVmmError, match=r"The answer to /vm\.counters is not"):
            await ask(path, case_of("counters"))


async def test_refusal_without_a_chain_keeps_its_words(ask: Ask, tmp_path: Path) -> None:
    path = str(tmp_path / "other.sock")
    async with answering(path, b"HTTP/1.1 503 X\r\nContent-Length: 8\r\n\r\ntoo busy"):
        with pytest.raises(ApiError) as caught:
            await ask(path, case_of("ping"))

    assert (caught.value.status, caught.value.messages) == (503, ("too busy",))
    assert not caught.value.is_chain


@pytest.fixture
def pipes() -> Iterator[Callable[[], int]]:
    """Makes the reading ends of pipes that hold their own number."""
    opened: list[int] = []

    def make() -> int:
        reader, writer = os.pipe()
        os.write(writer, str(reader).encode())
        os.close(writer)
        opened.append(reader)
        return reader

    yield make
    for each in opened:
        os.close(each)


async def received(path: str, ask: Ask, case: Case) -> tuple[bytes, list[int]]:
    """What one request brings to a listener: its bytes, and what its pipes hold."""
    found: list[int] = []
    request = b""
    with trio.fail_after(SECONDS), socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, path, case)
            ours = trio.socket.from_stdlib_socket(listener.dup())
            with ours:
                connection, _ = await ours.accept()
            with connection:
                while not request.endswith(b"}"):
                    await trio.lowlevel.wait_readable(connection.fileno())
                    plain = socket.socket(fileno=os.dup(connection.fileno()))
                    with plain:
                        data, descriptors, _, _ = socket.recv_fds(plain, 65536, 253)
                    assert not request or not descriptors, "they come with the first bytes"
                    request += data
                    for each in descriptors:
                        found.append(int(os.read(each, 9)))
                        os.close(each)
                await connection.send(b"HTTP/1.1 204 No Content\r\n\r\n")
    return request, found


async def test_taps_go_beside_the_body(ask: Ask, pipes: Callable[[], int], tmp_path: Path) -> None:
    taps = (pipes(), pipes())
    config = NetConfig(id="net0", num_queues=4, fds=taps)

    request, found = await received(
        str(tmp_path / "api.sock"), ask, Case("add_net", "", arguments=(config,))
    )

    assert found == list(taps)
    assert b"fds" not in request
    assert request.startswith(b"PUT /api/v1/vm.add-net HTTP/1.1\r\n")


async def test_closed_descriptor_is_the_callers_fault(ask: Ask, tmp_path: Path) -> None:
    path = str(tmp_path / "api.sock")
    config = NetConfig(fds=(1 << 20,))

    async with answering(path, b""):
        with pytest.raises(HostError, match="Passing open files to the VMM failed"):
            await ask(path, Case("add_net", "", arguments=(config,)))


NETS = (RestoredNetConfig(id="a", fds=(7, 8)), RestoredNetConfig(id="b", fds=(9,)))
DEVICES = (RestoredDeviceConfig(id="c", fd=10),)


@pytest.mark.parametrize(
    ("method", "config", "descriptors", "body"),
    [
        ("add_device", DeviceConfig(path="/a", fd=6), (6,), b'"path":"/a"'),
        (
            "restore",
            RestoreConfig(source_url="u", net_fds=NETS, vfio_fds=DEVICES, iommufd_fd=11),
            (7, 8, 9, 10, 11),
            b'"net_fds":[{"num_fds":2,"id":"a"},{"num_fds":1,"id":"b"}],"vfio_fds":[{"id":"c"}]',
        ),
        (
            "receive_migration",
            ReceiveMigrationData(receiver_url="u", net_fds=NETS, vfio_fds=DEVICES, iommufd_fd=11),
            (7, 8, 9, 10, 11),
            b'"net_fds":[{"num_fds":2,"id":"a"},{"num_fds":1,"id":"b"}],"vfio_fds":[{"id":"c"}]',
        ),
    ],
)
def test_descriptors_keep_the_order_the_server_takes_them_in(
    method: str, config: ConfigModel, descriptors: tuple[int, ...], body: bytes
) -> None:
    call = getattr(calls, method)(config)

    assert call.descriptors == descriptors
    assert body in call.body
    assert b"fd" not in call.body.replace(b"net_fds", b"").replace(b"vfio_fds", b"").replace(
        b"num_fds", b""
    )

"""The bench's bare client, against a peer that has already written its replies."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tools.bench import qemu
from tools.bench.connection import PING, Connection, connected
from tools.bench.errors import BenchError

REPLY = b"HTTP/1.1 200 \r\nContent-Length: 5\r\ndate: today\r\n\r\nhello"


@pytest.fixture
def ends() -> Iterator[tuple[Connection, socket.socket]]:
    """The client under test and the server's socket."""
    client, server = socket.socketpair()
    with client, server:
        yield Connection(client, Path("/run/vmm.sock")), server


def test_ping_takes_exactly_one_reply(ends: tuple[Connection, socket.socket]) -> None:
    connection, server = ends
    server.sendall(REPLY + REPLY)

    connection.ping()
    connection.ping()

    assert server.recv(1000) == PING + PING


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (b"HTTP/1.1 500 \r\ncontent-length: 0\r\n\r\n", "replied b'http/1.1 500"),
        (b"HTTP/1.1 200 \r\n\r\n", "replied without a content-length"),
        (REPLY[:-1], "closed the connection and owes a reply"),
    ],
)
def test_ping_refuses_what_is_no_reply(
    ends: tuple[Connection, socket.socket], reply: bytes, words: str
) -> None:
    connection, server = ends
    server.sendall(reply)
    server.shutdown(socket.SHUT_WR)

    with pytest.raises(BenchError, match=f"The server at /run/vmm.sock {words}"):
        connection.ping()


def test_qmp_reply_is_found_behind_events(ends: tuple[Connection, socket.socket]) -> None:
    connection, server = ends
    server.sendall(b'{"event": "RESUME"}\n{"return": {}}\n')

    qemu.execute(connection, "query-status")

    assert server.recv(1000) == b'{"execute": "query-status"}\n'


def test_qmp_error_is_no_reply(ends: tuple[Connection, socket.socket]) -> None:
    connection, server = ends
    server.sendall(b'{"error": {"class": "CommandNotFound"}}\n')

    with pytest.raises(BenchError, match="answered query-status with"):
        qemu.execute(connection, "query-status")


def test_server_that_is_gone_is_said_to_be(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="is gone: No such file"), connected(tmp_path / "socket"):
        pass

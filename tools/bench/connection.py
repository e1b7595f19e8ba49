"""The client's side of a unix socket, as bare as can be: what it costs itself is measured too."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tools.bench.errors import BenchError
from tools.bench.processes import PATIENCE_S, Launch

PING = b"GET /api/v1/vmm.ping HTTP/1.1\r\nHost: localhost\r\n\r\n"
PING_AND_CLOSE = PING[:-2] + b"Connection: close\r\n\r\n"
READ_SIZE = 65536
KNOCK_INTERVAL_S = 0.001
LENGTH_HEADER = b"\r\ncontent-length:"


class Connection:
    """A connected socket and what has been read of it too far."""

    def __init__(self, connected: socket.socket, path: Path) -> None:
        self._socket = connected
        self._path = path
        self._ahead = b""

    def send(self, data: bytes) -> None:
        """Send all of it. Raises: BenchError when the peer is gone."""
        try:
            self._socket.sendall(data)
        except OSError as error:
            raise self._failure(f"took no request: {error.strerror}") from error

    def line(self) -> bytes:
        """Read up to the next line feed. Raises: BenchError at the end of the stream."""
        return self._up_to(b"\n")

    def ping(self, request: bytes = PING) -> None:
        """Send an HTTP request and read the whole reply. Raises: BenchError unless it is a 200."""
        self.send(request)
        head = self._up_to(b"\r\n\r\n").lower()
        self.expect(head.startswith(b"http/1.1 200"), f"replied {head[:40]!r}")
        _, found, rest = head.partition(LENGTH_HEADER)
        self.expect(bool(found), "replied without a content-length")
        length = int(rest.partition(b"\r\n")[0])
        while len(self._ahead) < length:
            self._receive()
        self._ahead = self._ahead[length:]

    def put(self, name: str, body: bytes | None = None) -> None:
        """Send a PUT request of the API and read its reply. Raises: BenchError unless a 204."""
        length = b"" if body is None else f"Content-Length: {len(body)}\r\n".encode()
        head = f"PUT /api/v1/{name} HTTP/1.1\r\nHost: localhost\r\n".encode()
        self.send(head + length + b"\r\n" + (body or b""))
        reply = self._up_to(b"\r\n\r\n")
        self.expect(reply.startswith(b"HTTP/1.1 204"), f"replied {reply[:40]!r} to {name}")

    def expect(self, condition: bool, otherwise: str) -> None:
        """Insist on what the peer should have done. Raises: BenchError."""
        if not condition:
            raise self._failure(otherwise)

    def _failure(self, what: str) -> BenchError:
        return BenchError(f"The server at {self._path} {what}")

    def _up_to(self, end: bytes) -> bytes:
        while end not in self._ahead:
            self._receive()
        text, _, self._ahead = self._ahead.partition(end)
        return text + end

    def _receive(self) -> None:
        try:
            data = self._socket.recv(READ_SIZE)
        except OSError as error:
            raise self._failure(f"owes a reply: {error}") from error
        self.expect(bool(data), "closed the connection and owes a reply")
        self._ahead += data


@contextmanager
def connected(path: Path) -> Iterator[Connection]:
    """Connect to a socket that is there. Raises: BenchError when its server is gone."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(PATIENCE_S)
        try:
            client.connect(str(path))
        except OSError as error:
            raise BenchError(f"The server at {path} is gone: {error.strerror}") from error
        yield Connection(client, path)


@contextmanager
def first_connection(path: Path, server: Launch) -> Iterator[Connection]:
    """Connect as soon as the server's socket is there. Raises: BenchError when it never is."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(PATIENCE_S)
        while not _connects(client, path):
            if server.process.poll() is not None or server.elapsed_ms > PATIENCE_S * 1000:
                raise server.failure(f"opened no socket at {path}")
            # Nothing tells of a socket in the making; the error is half of this at most.
            time.sleep(KNOCK_INTERVAL_S)
        yield Connection(client, path)


def _connects(client: socket.socket, path: Path) -> bool:
    try:
        client.connect(str(path))
    except (FileNotFoundError, ConnectionRefusedError):
        return False
    return True

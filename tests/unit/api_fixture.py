"""A real API server on a socket, before an owner that only remembers what it was asked."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import trio

from vmm.api.server import serve
from vmm.api.socket import open_api_socket
from vmm.config.info import MigrationInfo, PciDeviceInfo, VmInfo, VmmPingResponse, VmState
from vmm.config.vm import VmConfig
from vmm.errors import VmmError
from vmm.machine.commands import Command
from vmm.migration.progress import Progress

ABOUT = VmmPingResponse(version="1.2.3", build_version="v1.2.3-4", pid=42, features=("kvm",))
PATIENCE_S = 60
"""Far beyond what anything here takes: only a failing test waits so long."""


@dataclass
class FakeOwner:
    """Takes every command; fails with ``error``, and not before ``gate`` opens, if they are set.

    What it gives for one is ``place``.
    """

    error: VmmError | None = None
    gate: trio.Event | None = None
    place: PciDeviceInfo | None = None
    commands: list[Command] = field(default_factory=list)
    asked: trio.Event = field(default_factory=trio.Event)

    async def submit(self, command: Command) -> PciDeviceInfo | None:
        self.commands.append(command)
        self.asked.set()
        if self.gate is not None:
            await self.gate.wait()
        self._fail()
        return self.place

    def info(self) -> VmInfo:
        self._fail()
        return VmInfo(config=VmConfig(), state=VmState.CREATED, memory_actual_size=512 << 20)

    def counters(self) -> dict[str, dict[str, int]]:
        self._fail()
        return {"_disk0": {"read_bytes": 7}}

    def migration(self) -> MigrationInfo:
        self._fail()
        return Progress(is_incoming=False, clock=lambda: 0.0).describe()

    def _fail(self) -> None:
        if self.error is not None:
            raise self.error


@dataclass
class Api:
    """A running server, and a client of it."""

    path: str
    client: httpx.AsyncClient
    server: trio.Nursery

    async def ask(self, method: str, path: str, body: bytes | None = None) -> httpx.Response:
        return await self.client.request(method, f"/api/v1{path}", content=body)

    async def connect(self) -> trio.SocketStream:
        return await trio.open_unix_socket(self.path)


@asynccontextmanager
async def serving(owner: FakeOwner, folder: Path) -> AsyncIterator[Api]:
    """Serve on a new socket in the folder, until the end of the block."""
    path = str(folder / "api.sock")
    with trio.fail_after(PATIENCE_S), open_api_socket(path) as listener:
        async with trio.open_nursery() as nursery, client_of(path) as client:
            await nursery.start(serve, owner, listener, ABOUT)
            yield Api(path, client, nursery)
            nursery.cancel_scope.cancel()


def client_of(path: str) -> httpx.AsyncClient:
    transport = httpx.AsyncHTTPTransport(uds=path)
    return httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=PATIENCE_S)


async def read_answer(stream: trio.SocketStream) -> tuple[bytes, bytes]:
    """Read one answer as it comes over the wire: its head and, by Content-Length, its body."""
    data = b""
    while b"\r\n\r\n" not in data:
        data += await _some(stream)
    head, _, body = data.partition(b"\r\n\r\n")
    length = head.partition(b"Content-Length: ")[2].partition(b"\r\n")[0] or b"0"
    while len(body) < int(length):
        body += await _some(stream)
    return head, body


async def _some(stream: trio.SocketStream) -> bytes:
    data = await stream.receive_some()
    assert data, "the server closed the connection"
    return bytes(data)


def is_refused(path: str) -> bool:
    """Whether nobody listens on the path any more."""
    with socket.socket(socket.AF_UNIX) as client:
        try:
            client.connect(path)
        except OSError:
            return True
    return False

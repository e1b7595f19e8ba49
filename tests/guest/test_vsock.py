"""Sockets between a stock guest and its host: both call, talk, end and are killed; hot plug."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from tests.guest.conftest import Guest, booted
from tools.images.kernels import Kernel
from tools.images.vsock import vsock_initramfs

pytestmark = pytest.mark.guest

MIB = 1 << 20
DATA_BYTES = 256 << 10
CID = 42
ECHO, CALLED, REFUSED = 1234, 5000, 9
PATIENCE_S = 60.0

HOLD = """
import socket, sys, time
peer = socket.socket(socket.AF_UNIX)
peer.connect(sys.argv[1])
peer.sendall(b"CONNECT 1234\\n")
peer.recv(100)
print("connected", flush=True)
time.sleep(1000)
"""
"""A program of the host that connects and stays."""


@pytest.fixture(scope="session")
def archive(linux: Kernel) -> Path:
    """An initramfs with the drivers and the command ``vsock``."""
    return vsock_initramfs(linux)


@pytest.fixture(scope="session")
def data() -> bytes:
    """Nothing that repeats."""
    return random.Random(7).randbytes(DATA_BYTES)


async def called(path: Path, port: int) -> trio.SocketStream:
    """Call a port of the guest's; its stream."""
    stream = await trio.open_unix_socket(str(path))
    await stream.send_all(b"CONNECT %d\n" % port)
    line = await read(stream, b"\n")
    assert line.startswith(b"OK "), line
    return stream


async def read(stream: trio.SocketStream, until: bytes = b"") -> bytes:
    """Read a byte at a time up to some text, or all there is."""
    data = b""
    with trio.fail_after(PATIENCE_S):
        while piece := await stream.receive_some(1 if until else None):
            data += piece
            if until and data.endswith(until):
                break
    return data


async def echoed(stream: trio.SocketStream, data: bytes) -> bytes:
    """Send bytes and the end, and read what comes back until the end."""
    async with trio.open_nursery() as nursery:

        async def send() -> None:
            await stream.send_all(data)
            await stream.send_eof()

        nursery.start_soon(send)
        return await read(stream)


@asynccontextmanager
async def calls(path: Path, port: int) -> AsyncIterator[Callable[[], Awaitable[trio.SocketStream]]]:
    """Listen for the guest's calls of a port."""
    place = f"{path}_{port}"
    with trio.socket.socket(trio.socket.AF_UNIX) as server:
        await server.bind(place)
        server.listen()

        async def accept() -> trio.SocketStream:
            with trio.fail_after(PATIENCE_S):
                peer, _ = await server.accept()
            return trio.SocketStream(peer)

        yield accept
    os.unlink(place)


async def has_no_cat(guest: Guest) -> None:
    """Wait until the guest's end of every connection is gone."""
    await guest.run("while pidof cat > /dev/null; do sleep 0.1; done", PATIENCE_S)


async def test_guest_and_host_call_each_other_and_see_every_end(
    place: Path, linux: Kernel, archive: Path, data: bytes
) -> None:
    path = place / "vsock"
    async with booted(place, linux, archive, "--vsock", f"cid={CID},socket={path}") as guest:
        assert await guest.run("cat /sys/bus/virtio/drivers/vmw_vsock_virtio_transport/*/device")
        await guest.run(f"vsock listen {ECHO} cat")
        await check_host_calls(path, data)
        await check_guest_calls(guest, path, data)
        await check_kills(guest, path)
        await check_pause(guest, path)
        counters = (await guest.vmm.api("GET", "vm.counters")).json["_vsock0"]
        assert counters["rx_bytes"] >= 2 * DATA_BYTES
        assert counters["tx_bytes"] >= 2 * DATA_BYTES
        assert (await guest.vmm.info())["config"]["vsock"]["id"] == "_vsock0"
    assert not path.exists()


async def check_host_calls(path: Path, data: bytes) -> None:
    """Several at once, and one where nobody listens."""
    streams = [await called(path, ECHO) for _ in range(8)]
    for stream in streams:
        await stream.send_all(b"hello")
    assert await echoed(streams[0], data) == b"hello" + data
    for stream in streams[1:]:
        assert await echoed(stream, b"") == b"hello"
    for stream in streams:
        await stream.aclose()
    async with await trio.open_unix_socket(str(path)) as stream:
        await stream.send_all(b"CONNECT %d\n" % REFUSED)
        assert await read(stream) == b""


async def check_guest_calls(guest: Guest, path: Path, data: bytes) -> None:
    """One that is answered, and one where nobody listens."""
    async with calls(path, CALLED) as accept:
        await guest.run(f"(vsock connect {CALLED} sh -c 'echo hello; cat' &)")
        async with await accept() as stream:
            assert await echoed(stream, data) == b"hello\n" + data
    refused = await guest.run(f"vsock connect {REFUSED} true 2>&1; echo code $?")
    assert "Connection reset by peer" in refused
    assert "code 1" in refused


async def check_kills(guest: Guest, path: Path) -> None:
    """A killed program is an end like any other, on both sides."""
    await has_no_cat(guest)
    holder = await trio.lowlevel.open_process(
        [sys.executable, "-S", "-c", HOLD, str(path)], stdout=subprocess.PIPE
    )
    assert holder.stdout is not None
    async with holder.stdout as said:
        with trio.fail_after(PATIENCE_S):
            assert await said.receive_some() == b"connected\n"
    assert await guest.run("pidof cat")
    holder.kill()
    await holder.wait()
    await has_no_cat(guest)

    async with await called(path, ECHO) as stream:
        await guest.run("kill -9 $(pidof cat)")
        assert await read(stream) == b""


async def check_pause(guest: Guest, path: Path) -> None:
    """A connection outlives a pause."""
    async with await called(path, ECHO) as stream:
        await guest.vmm.put("vm.pause")
        await stream.send_all(b"while it stood\n")
        await guest.vmm.put("vm.resume")
        assert await read(stream, b"\n") == b"while it stood\n"


async def test_vsock_and_pmem_come_and_go_while_the_guest_runs(
    place: Path, linux: Kernel, archive: Path, data: bytes
) -> None:
    path, file = place / "vsock", place / "file"
    file.write_bytes(data)
    os.truncate(file, 8 * MIB)
    async with booted(place, linux, archive) as guest:
        vsock = {"cid": CID, "socket": str(path)}
        for what, entry in (("vsock", vsock), ("pmem", {"file": str(file)})):
            reply = await guest.vmm.api("PUT", f"vm.add-{what}", entry)
            assert reply.status == 200, reply.body
        second = await guest.vmm.api("PUT", "vm.add-vsock", {**vsock, "socket": str(place / "b")})
        assert second.status == 400, second.body
        driver = "/sys/bus/virtio/drivers/vmw_vsock_virtio_transport/virtio*"
        await guest.run(f"until [ -e {driver} -a -e /dev/pmem0 ]; do sleep 0.1; done", PATIENCE_S)
        await guest.run(f"vsock listen {ECHO} cat")
        async with await called(path, ECHO) as stream:
            assert await echoed(stream, b"hello") == b"hello"
        await guest.run("echo written | dd of=/dev/pmem0 bs=4k conv=sync,fsync")
        assert file.read_bytes()[: len(b"written\n")] == b"written\n"

        names = set((await guest.vmm.info())["device_tree"])
        for id in ("_vsock0", "_pmem1"):
            assert id in names
            before = guest.vmm.events().count("vm:device-removed")
            await guest.vmm.put("vm.remove-device", {"id": id})
            await guest.vmm.wait_for_event("vm:device-removed", PATIENCE_S, after=before)
        assert not path.exists()
        await guest.run("while [ -e /dev/pmem0 ]; do sleep 0.1; done", PATIENCE_S)
        assert (await guest.run("echo alive")) == "alive\n"

"""A stock guest moves to and fro under load: its disk and a TCP stream see nothing of it.

Both VMMs are on one host, so what a VM finds by name has to get another name from under the one
that holds it: the tap, and the socket of the serial port. A bridge stands for the network between
hosts.
"""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
import trio

from tests.guest.conftest import BOOT_S, Guest, booted
from tests.guest.debian import tool
from tests.guest.moving import bridged, migrate
from tests.guest.shell_load import disk_load, disk_rounds
from tools.images.kernels import Kernel
from vmm.config.requests import SendMigrationData, TimeoutStrategy
from vmm.testing.console import GuestConsole
from vmm.testing.process import VmmProcess

pytestmark = pytest.mark.guest

MIB = 1 << 20
HOST, GUEST, PORT = "192.168.78.1", "192.168.78.2", 5000
SECONDS = 180.0
MOVES = 2
PASSES_S = 15
"""After so long the guest is stopped, however much it has changed meanwhile."""
TAP, BRIDGE = "move0", "moves0"

RAM, BALLOON = 320 * MIB, 48 * MIB
NODES = "cd /sys/devices/system/node; cat node*/cpulist; ls -d node*/memory[0-9]*"


@pytest.fixture
async def network() -> AsyncIterator[None]:
    """A bridge with the host's address."""
    async with bridged(BRIDGE, HOST):
        yield


async def plug_tap() -> None:
    await tool("ip", "tuntap", "add", TAP, "mode", "tap", "vnet_hdr")
    await tool("ip", "link", "set", TAP, "master", BRIDGE, "up")


async def set_aside(place: Path, number: int) -> None:
    """Free the names that a VM holds."""
    await tool("ip", "link", "set", TAP, "down")
    await tool("ip", "link", "set", TAP, "name", f"old{number}")
    await tool("ip", "link", "set", f"old{number}", "up")
    os.rename(place / "serial.sock", place / f"old{number}.sock")
    await plug_tap()


async def until_ram_is(guest: Guest, size: int) -> None:
    """Wait until the guest's balloon has the size that was asked for."""
    with trio.fail_after(SECONDS):
        while (await guest.vmm.info())["memory_actual_size"] != size:  # noqa: ASYNC110
            await trio.sleep(0.1)  # Nothing tells when a guest has obeyed.


class Stream:
    """Bytes to the guest over TCP, for as long as they are wanted."""

    def __init__(self) -> None:
        self.digest = hashlib.md5(usedforsecurity=False)
        self.sent = 0
        self._is_enough = trio.Event()

    async def send(self, *, task_status: trio.TaskStatus[None]) -> None:
        source = random.Random(5)
        while True:
            try:
                stream = await trio.open_tcp_stream(GUEST, PORT)
            except OSError:
                await trio.sleep(0.1)  # Nothing tells from outside that it listens.
                continue
            break
        task_status.started()
        async with stream:
            while not self._is_enough.is_set():
                data = source.randbytes(16384)
                await stream.send_all(data)
                self.digest.update(data)
                self.sent += len(data)
                await trio.sleep(0.01)  # The guest needs time for its disk, too.

    def end(self) -> None:
        self._is_enough.set()


async def move(
    guest: Guest, vmm: VmmProcess, place: Path, number: int, stack: AsyncExitStack
) -> Guest:
    """Move the guest to a VMM that has none, by TCP or, every other time, by a unix socket."""
    await set_aside(place, number)
    url = f"unix:{place}/m" if number % 2 else f"tcp:127.0.0.1:{7100 + number}"
    request = SendMigrationData(
        destination_url=url,
        connections=1 if number % 2 else 4,
        timeout_s=PASSES_S,
        timeout_strategy=TimeoutStrategy.IGNORE,
    )
    await migrate(guest.vmm, vmm, request)
    await tool("ip", "link", "delete", f"old{number}")
    console = GuestConsole.connect(place / "serial.sock")
    return Guest(vmm, await stack.enter_async_context(console))


@asynccontextmanager
async def streaming(guest: Guest) -> AsyncIterator[Stream]:
    """Have the guest take a stream from now on, and sum it up at the end."""
    await guest.console.type(f"nc -l -p {PORT} < /dev/null | md5sum; echo STREAM-''END\n")
    stream = Stream()
    async with trio.open_nursery() as nursery:
        await nursery.start(stream.send)
        yield stream
        stream.end()


async def test_guest_moves_to_and_fro_with_its_disk_and_its_streams(
    place: Path, linux: Kernel, with_virtio: Path, network: None
) -> None:
    image = place / "shared.raw"
    image.touch()
    os.truncate(image, 32 * MIB)
    await plug_tap()
    options = ["--cpus", "boot=2", "--disk", f"path={image},image_type=raw"]
    options += ["--net", f"tap={TAP},mac=02:00:00:00:78:02", "--balloon", "size=0", "--watchdog"]
    options += ["--memory", "size=0", "--memory-zone", "id=near,size=192M", "id=far,size=128M"]
    options += ["--numa", "guest_numa_id=0,cpus=[0],memory_zones=[near]"]
    options += ["guest_numa_id=1,cpus=[1],memory_zones=[far]"]
    async with AsyncExitStack() as stack:
        others = []
        for number in range(MOVES):
            folder = place / f"vmm{number}"
            folder.mkdir()
            others.append(await stack.enter_async_context(VmmProcess.start(folder, api=True)))
            await others[-1].wait_until_served(BOOT_S)
        guest = await stack.enter_async_context(booted(place, linux, with_virtio, *options))
        await guest.run(f"ip addr add {GUEST}/24 dev eth0; ip link set eth0 up")
        nodes = await guest.run(NODES)
        await guest.vmm.put("vm.resize", {"desired_balloon": BALLOON})
        await until_ram_is(guest, RAM - BALLOON)
        await guest.run(disk_load(1024))
        async with streaming(guest) as stream:
            for number, vmm in enumerate(others):
                before = stream.sent
                guest = await move(guest, vmm, place, number, stack)
                with trio.fail_after(SECONDS):
                    while stream.sent < before + MIB:  # noqa: ASYNC110  it is sent in a task
                        await trio.sleep(0.1)
        at = await guest.console.wait_for("STREAM-END", SECONDS)
        assert stream.digest.hexdigest() in guest.console.text[:at]

        assert await disk_rounds(guest) > 3

        assert await guest.run(NODES) == nodes
        assert (await guest.vmm.info())["memory_actual_size"] == RAM - BALLOON
        await guest.vmm.put("vm.resize", {"desired_balloon": 0})
        await until_ram_is(guest, RAM)
        assert "__watchdog" in (await guest.vmm.info())["device_tree"]

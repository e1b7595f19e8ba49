"""Debian with systemd moves to and fro between two networks while it works.

Each VMM is in a network namespace of its own, as on a host of its own: both have a tap of the same
name in a bridge of the same name. A link leads from each to the bridge of the test, which stands
for the network between hosts; what carries the memory goes over it, too. The disks are one file
for both.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
import trio

from tests.guest.conftest import BOOT_S, Guest, booted
from tests.guest.debian import (
    GATEWAY,
    NETWORK,
    SLOW_S,
    check_file_system,
    check_multi_user,
    check_ping,
    disk,
    tool,
    wait_for_power_off,
)
from tests.guest.moving import bridged, migrate
from tools.images.initramfs import initramfs
from tools.images.kernels import kernel
from tools.images.rootdisk import root_disk
from tools.images.sparse import MIB, copy_sparse
from vmm.config.requests import SendMigrationData, TimeoutStrategy
from vmm.testing.console import GuestConsole
from vmm.testing.namespace import held_namespace
from vmm.testing.process import VmmProcess

pytestmark = pytest.mark.guest

BRIDGE, TAP, UPLINK = "lan0", "guest0", "uplink0"
HOSTS = ("192.0.2.11", "192.0.2.12")
"""The addresses of the two hosts, in the guest's network."""
MAC = "02:00:00:00:02:02"
ECHO_PORT, MIGRATION_PORT = 5000, 7100

CONNECTIONS = (1, 4, 16)
"""One move for each, to and fro."""
PASSES_S = 10
"""After so long the guest is stopped, however much it has changed meanwhile."""
DATA_MIB = 32
CLOCK_S = 2.0

# Written before the guest moves, looked at when it has: a part of the disk that stays as it is.
SETTLED = (
    "fio --name=settled --filename=/dev/vdb --offset=16m --size=4m --rw=write --bs=64k "
    "--eta=never --ioengine=libaio --iodepth=8 --direct=1 --verify=crc32c --verify_fatal=1 "
    "--output=/run/settled"
)
# Another part is written and looked at over and over.
DISK_LOAD = (
    "( n=0; bad=0; while [ ! -e /run/stop ]; do fio --name=load --filename=/dev/vdb --size=4m "
    "--rw=randwrite --bsrange=4k-64k --ioengine=libaio --iodepth=8 --direct=1 --rate=2m "
    "--randrepeat=0 --eta=never --verify=crc32c --verify_fatal=1 --output=/run/load "
    "|| { bad=1; break; }; n=$((n+1)); echo $n > /run/rounds; done; echo $bad > /run/loaded ) "
    "< /dev/null > /dev/null 2>&1 &"
)
# A number in each of so many pages, counted up round after round; what differs ends it.
MEMORY_LOAD = (
    "( perl -e '$m = qq(\\0) x (4096 * 1024); for ($r = 0; !-e qq(/run/stop); $r++) { "
    "for ($at = 0; $at < length $m; $at += 4096) { "
    "exit 1 if unpack(qq(N), substr($m, $at, 4)) != $r; "
    "substr($m, $at, 4) = pack(qq(N), $r + 1) } select undef, undef, undef, 0.1 } "
    "print $r' > /run/counted; echo $? > /run/remembered ) &"
)
# Whatever comes from the host goes back to it.
ECHO = f"( exec 3<> /dev/tcp/{GATEWAY}/{ECHO_PORT}; cat <&3 >&3; echo $? > /run/echoed ) &"

# A kernel says these of itself or of a device that failed it. Not among them are lockups and
# stalls: an emulated host that others keep busy stands still for longer than a kernel's patience.
WRONG = "kernel BUG|Oops|general protection|unable to handle|I/O error|EXT4-fs error"
"""Pattern of egrep."""


@pytest.fixture
async def lan() -> AsyncIterator[None]:
    """A bridge with the address that the guest takes for its gateway."""
    async with bridged(BRIDGE, GATEWAY):
        yield


@asynccontextmanager
async def host_network(address: str, link: str) -> AsyncIterator[Path]:
    """The network of a host: a bridge with its address, a tap for a guest, a link to the lan."""
    with held_namespace() as network:
        inside = ("nsenter", f"--net={network}", "ip")
        far = ("peer", "name", UPLINK, "netns", network)
        await tool("ip", "link", "add", link, "type", "veth", *far)
        try:
            await tool("ip", "link", "set", link, "master", BRIDGE, "up")
            await tool(*inside, "link", "add", BRIDGE, "type", "bridge")
            await tool(*inside, "link", "set", UPLINK, "master", BRIDGE, "up")
            await tool(*inside, "tuntap", "add", TAP, "mode", "tap", "vnet_hdr")
            await tool(*inside, "link", "set", TAP, "master", BRIDGE, "up")
            await tool(*inside, "address", "add", f"{address}/24", "dev", BRIDGE)
            await tool(*inside, "link", "set", BRIDGE, "up")
            yield network
        finally:
            await tool("ip", "link", "delete", link)


@pytest.fixture
async def networks(lan: None) -> AsyncIterator[Sequence[Path]]:
    """The networks of the two hosts."""
    async with AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(host_network(address, f"host{number}"))
            for number, address in enumerate(HOSTS)
        ]


class Echoes:
    """One connection over which the guest gives back, byte by byte, what it is sent."""

    def __init__(self) -> None:
        self.count = 0
        self._is_enough = trio.Event()

    async def serve(self, *, task_status: trio.TaskStatus[None]) -> None:
        (listener,) = await trio.open_tcp_listeners(ECHO_PORT, host=GATEWAY)
        async with listener:
            task_status.started()
            stream = await listener.accept()
        source = random.Random(8)
        async with stream:
            while not self._is_enough.is_set():
                await self._exchange(stream, source.randbytes(8192))
                await trio.sleep(0.02)  # The guest needs time for its disk, too.

    async def _exchange(self, stream: trio.SocketStream, sent: bytes) -> None:
        await stream.send_all(sent)
        got = b""
        while len(got) < len(sent):
            data = await stream.receive_some(len(sent) - len(got))
            assert data, "the guest ended the connection"
            got += data
        assert got == sent
        self.count += 1

    async def until(self, count: int) -> None:
        """Wait until so many blocks have come back."""
        with trio.fail_after(SLOW_S):
            while self.count < count:  # noqa: ASYNC110  they come in another task
                await trio.sleep(0.05)

    def end(self) -> None:
        self._is_enough.set()


async def clock_offset(guest: Guest) -> tuple[float, float]:
    """How far the guest's clock is before the host's at the least, and at the most."""
    before = time.time()
    seen = float(await guest.run("date +%s.%N"))
    return seen - time.time(), seen - before


async def check_clock(guest: Guest, least: float, most: float) -> None:
    """The guest's clock is as far before the host's as it was."""
    now_least, now_most = await clock_offset(guest)
    assert now_most > least - CLOCK_S, (least, most, now_least, now_most)
    assert now_least < most + CLOCK_S, (least, most, now_least, now_most)


async def until_disk_is_used(guest: Guest) -> None:
    """Wait until this VMM has read or written for the guest on its second disk."""
    with trio.fail_after(SLOW_S):
        while True:
            counters = (await guest.vmm.api("GET", "vm.counters")).json["_disk1"]
            if counters["read_bytes"] + counters["write_bytes"]:
                return
            await trio.sleep(0.1)  # Nothing tells of it.


async def move(
    guest: Guest, vmm: VmmProcess, number: int, serial: Path, stack: AsyncExitStack
) -> Guest:
    """Move the guest to a VMM on the other host, which finds its disk and its network at work."""
    request = SendMigrationData(
        destination_url=f"tcp:{HOSTS[(number + 1) % 2]}:{MIGRATION_PORT}",
        connections=CONNECTIONS[number],
        timeout_s=PASSES_S,
        timeout_strategy=TimeoutStrategy.IGNORE,
    )
    # The socket of the serial port has a name in the file system, which the two hosts share.
    os.rename(serial, serial.with_name(f"old{number}.sock"))
    await migrate(guest.vmm, vmm, request)
    return Guest(vmm, await stack.enter_async_context(GuestConsole.connect(serial)))


async def start_load(guest: Guest) -> None:
    await guest.run(f"{SETTLED} --do_verify=0", SLOW_S)
    for load in (DISK_LOAD, MEMORY_LOAD, ECHO):
        await guest.run(f"{{ {load} }}")


async def check_load(guest: Guest) -> None:
    """End what the guest does, all of which has found everything as it left it."""
    await guest.run("touch /run/stop")
    for load in ("loaded", "remembered", "echoed"):
        await guest.run(f"until [ -s /run/{load} ]; do sleep 0.1; done", SLOW_S)
    seen = await guest.run("cat /run/load /run/loaded /run/remembered /run/echoed")
    assert seen.endswith("\n0\n0\n0\n"), seen
    assert int(await guest.run("cat /run/rounds")) > 0
    assert int(await guest.run("cat /run/counted")) > len(CONNECTIONS)
    await guest.run(f"{SETTLED} --verify_only || {{ cat /run/settled; false; }}", SLOW_S)


async def test_debian_under_load_moves_to_and_fro_between_two_networks(
    place: Path, networks: Sequence[Path]
) -> None:
    linux = kernel("6.12-cloud")
    root, data = copy_sparse(root_disk(), place / "root.raw"), place / "data.raw"
    data.touch()
    os.truncate(data, DATA_MIB * MIB)
    options = ["--cpus", "boot=2", "--memory", "size=512M", "--disk", disk(root), disk(data)]
    options += ["--net", f"tap={TAP},mac={MAC}"]
    async with AsyncExitStack() as stack:
        others = []
        for number in range(len(CONNECTIONS)):
            folder = place / f"vmm{number}"
            folder.mkdir()
            started = VmmProcess.start(folder, api=True, network=networks[(number + 1) % 2])
            others.append(await stack.enter_async_context(started))
            await others[-1].wait_until_served(BOOT_S)
        start = booted(
            place, linux, initramfs(linux, "root"), *options, extra=NETWORK, network=networks[0]
        )
        guest = await stack.enter_async_context(start)
        await check_multi_user(guest, linux)
        # In an emulated host that others keep busy it starts out wrong by seconds.
        offset = await clock_offset(guest)

        echoes = Echoes()
        async with trio.open_nursery() as nursery:
            await nursery.start(echoes.serve)
            await start_load(guest)
            await echoes.until(1)
            for number, vmm in enumerate(others):
                guest = await move(guest, vmm, number, place / "serial.sock", stack)
                await echoes.until(echoes.count + 16)
                await check_clock(guest, *offset)
                await until_disk_is_used(guest)
            echoes.end()
        await check_load(guest)
        await check_ping(guest)
        await check_multi_user(guest, linux)
        assert await guest.run(f"dmesg | grep -E '{WRONG}' || true") == ""

        await guest.console.type("systemctl start --no-block poweroff.target\n")
        await wait_for_power_off(guest)
    await check_file_system(root)
